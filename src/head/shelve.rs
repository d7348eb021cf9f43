//! Statistics on disk: scatter and factors are megabytes, and learning, fitting and saving need one
//! part of them at a time.

use std::ops::Range;
use std::sync::Arc;

use postcard::Deserializer;
use postcard::de_flavors::Flavor;
use serde::ser::{Error as _, SerializeSeq, SerializeStruct};
use serde::{Deserialize, Serialize, Serializer};

use super::accumulate::{LearnWork, learn_part};
use super::{ClassId, Component, Factor, HeadError, Layout, Statistics, TaskId};
use crate::data::{CacheError, RowFile, Shelf};
use crate::state::StreamError;

/// Images of a class whose features are in memory while they are learned.
const WINDOW: usize = 64;
/// Numbers read at a time, on the stack.
const CHUNK: usize = 1024;

/// Where the numbers are. What is there is never changed while somebody else has it too, so a copy
/// of the statistics costs no copy of the files.
#[derive(Debug, Clone)]
pub(super) struct Shelved {
    /// `[parts, dim (dim + 1) / 2]`
    scatter: Arc<RowFile>,
    pub factors: Arc<Shelf>,
}

impl Shelved {
    /// The scatter of one part, `[dim (dim + 1) / 2]`.
    pub fn read(&self, part: usize, out: &mut [f32]) -> Result<(), CacheError> {
        self.scatter.read(part, 0..out.len(), out)
    }

    /// The same, piece after piece.
    pub fn each(
        &self,
        part: usize,
        packed: usize,
        mut sees: impl FnMut(&[f32]),
    ) -> Result<(), CacheError> {
        let mut chunk = [0.0; CHUNK];
        for first in (0..packed).step_by(CHUNK) {
            let columns = first..packed.min(first + CHUNK);
            let chunk = &mut chunk[..columns.len()];
            self.scatter.read(part, columns, chunk)?;
            sees(chunk);
        }
        Ok(())
    }

    /// Replaces the scatter of one part.
    pub fn write(&mut self, part: usize, values: &[f32]) -> Result<(), CacheError> {
        if Arc::get_mut(&mut self.scatter).is_none() {
            self.scatter = Arc::new(self.scatter.copy()?);
        }
        self.scatter.write(part, 0, values)
    }
}

impl Statistics {
    /// Moves scatter and factors to unnamed files, from where they are read when they are needed.
    ///
    /// # Errors
    /// When there is no room for the files; nothing is lost then.
    pub fn shelve(&mut self) -> Result<(), CacheError> {
        if self.shelved.is_some() {
            return Ok(());
        }
        let packed = self.layout.packed();
        let scatter = RowFile::create(self.layout.parts, packed)?;
        for (part, values) in self.held.clone().zip(self.scatter.chunks_exact(packed)) {
            scatter.write(part, 0, values)?;
        }
        let factors = Arc::new(Shelf::create()?);
        for component in &mut self.components {
            if let Some(factor) = &mut component.factor {
                factor.shelve(&factors, false)?;
            }
        }
        self.scatter = Vec::new();
        self.shelved = Some(Shelved {
            scatter: Arc::new(scatter),
            factors,
        });
        Ok(())
    }

    /// Reads what postcard wrote of statistics, as [`Statistics::shelve`] would leave them, and never
    /// with more than a part of a class in memory.
    pub(crate) fn deserialize_shelved<'de, F: Flavor<'de>>(
        from: &mut Deserializer<'de, F>,
    ) -> Result<Self, StreamError> {
        let damaged = |what| StreamError::from(HeadError::Damaged(what));
        let layout = Layout::deserialize(&mut *from)?;
        let removable = bool::deserialize(&mut *from)?;
        let held = Range::<usize>::deserialize(&mut *from)?;
        let Layout { parts, dim } = layout;
        if dim == 0 || parts == 0 || dim > 1 << 16 || parts > 1 << 12 || held != (0..parts) {
            return Err(damaged("impossible feature layout"));
        }
        let numbers = usize::deserialize(&mut *from)?;
        if numbers > 0 && numbers != parts * layout.packed() {
            return Err(damaged("the shared scatter is unusable"));
        }
        let file = RowFile::create(parts, layout.packed()).map_err(HeadError::from)?;
        let mut chunk = [0.0; CHUNK];
        for part in 0..if numbers > 0 { parts } else { 0 } {
            for first in (0..layout.packed()).step_by(CHUNK) {
                let chunk = &mut chunk[..CHUNK.min(layout.packed() - first)];
                for value in chunk.iter_mut() {
                    *value = f32::deserialize(&mut *from)?;
                }
                file.write(part, first, chunk).map_err(HeadError::from)?;
            }
        }
        let factors = Arc::new(Shelf::create().map_err(HeadError::from)?);
        let mut components = Vec::new();
        for _ in 0..usize::deserialize(&mut *from)? {
            components.push(Component {
                class: Deserialize::deserialize(&mut *from)?,
                task: Deserialize::deserialize(&mut *from)?,
                count: Deserialize::deserialize(&mut *from)?,
                drift: Deserialize::deserialize(&mut *from)?,
                mean: Deserialize::deserialize(&mut *from)?,
                // An option is a byte of 0 or 1 and what there is.
                factor: match bool::deserialize(&mut *from)? {
                    true => Some(Factor::deserialize_shelved(&mut *from, parts, &factors)?),
                    false => None,
                },
            });
        }
        if numbers == 0 && !components.is_empty() {
            return Err(damaged("the shared scatter is unusable"));
        }
        Ok(Self {
            layout,
            removable,
            held,
            scatter: Vec::new(),
            components,
            pooled: Deserialize::deserialize(&mut *from)?,
            shelved: Some(Shelved {
                scatter: Arc::new(file),
                factors,
            }),
        })
    }

    /// Brings the scatter back into memory, for what changes all parts at once. Factors stay where
    /// they are.
    ///
    /// # Errors
    /// When the disk fails; nothing has changed then.
    pub fn unshelve(&mut self) -> Result<(), HeadError> {
        let Some(shelved) = &self.shelved else {
            return Ok(());
        };
        let packed = self.layout.packed();
        let parts = match self.components.is_empty() {
            true => 0,
            false => self.held.len(),
        };
        let mut scatter = vec![0.0; parts * packed];
        for (part, values) in self.held.clone().zip(scatter.chunks_exact_mut(packed)) {
            shelved.read(part, values)?;
        }
        self.scatter = scatter;
        self.shelved = None;
        Ok(())
    }

    /// Puts the factors on a new shelf once most of the old one is what moved or went.
    ///
    /// # Errors
    /// When the disk fails; all factors can still be read then.
    pub fn tidy(&mut self) -> Result<(), CacheError> {
        /// Not worth the work below.
        const LEAST: u64 = 8 << 20;
        let Some(shelved) = &mut self.shelved else {
            return Ok(());
        };
        let factors = || self.components.iter().filter_map(|c| c.factor.as_ref());
        let live: u64 = factors().map(|factor| factor.shelved()).sum();
        if shelved.factors.bytes() <= 2 * live + LEAST {
            return Ok(());
        }
        let fresh = Arc::new(Shelf::create()?);
        for component in &mut self.components {
            if let Some(factor) = &mut component.factor {
                factor.shelve(&fresh, true)?;
            }
        }
        shelved.factors = fresh;
        Ok(())
    }

    /// Learns images of a new task one part after another, on disk: as [`Statistics::learn`] would,
    /// in the memory of one part.
    ///
    /// `images` are sorted by class; `read(image, columns, out)` writes some of an image's
    /// features.
    ///
    /// # Errors
    /// What `read` returns, [`HeadError::NotFinite`], and when the disk fails. The statistics are
    /// not to be used any more then: work on a copy.
    pub fn learn_on_shelf<E: From<HeadError>>(
        &mut self,
        task: TaskId,
        images: &[(ClassId, usize)],
        mut read: impl FnMut(usize, Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let layout = self.layout;
        let nothing = self.components.is_empty();
        if nothing {
            // Nothing is in the files, so fresh ones are as good, and not shared.
            self.shelved = None;
        }
        self.shelve().map_err(HeadError::from)?;
        let groups = || images.chunk_by(|a, b| a.0 == b.0);
        for group in groups() {
            self.place(group[0].0, task)?;
        }
        let largest = groups().map(<[_]>::len).max().unwrap_or(0);
        let mut window = vec![0.0; largest.min(WINDOW) * layout.dim];
        let mut scatter = vec![0.0; layout.packed()];
        let mut work = LearnWork::new(layout.dim);
        let shelved = self.shelved.as_mut().ok_or(HeadError::Empty)?;
        for part in self.held.clone() {
            let columns = layout.part(part);
            match nothing {
                true => scatter.fill(0.0),
                false => shelved.read(part, &mut scatter).map_err(HeadError::from)?,
            }
            for group in groups() {
                let key = (group[0].0, task);
                let at = self
                    .components
                    .binary_search_by_key(&key, |c| (c.class, c.task));
                let (class, task) = key;
                let at = at.map_err(|_| HeadError::UnknownComponent { class, task })?;
                let component = &mut self.components[at];
                let mut before = component.count;
                for images in group.chunks(WINDOW) {
                    let rows = &mut window[..images.len() * layout.dim];
                    for (&(_, image), row) in images.iter().zip(rows.chunks_exact_mut(layout.dim)) {
                        read(image, columns.clone(), row)?;
                        layout.check_part(row, image, part)?;
                    }
                    let rows = rows.chunks_exact(layout.dim);
                    learn_part(component, part, before, rows, &mut scatter, &mut work)?;
                    before = before.saturating_add(images.len() as u32);
                }
                if let Some(factor) = &mut component.factor {
                    factor
                        .shelve_part(part, &shelved.factors, false)
                        .map_err(HeadError::from)?;
                }
            }
            shelved.write(part, &scatter).map_err(HeadError::from)?;
        }
        for group in groups() {
            if let Ok(at) = self.search(group[0].0, task) {
                let count = &mut self.components[at].count;
                *count = count.saturating_add(u32::try_from(group.len()).unwrap_or(u32::MAX));
            }
        }
        Ok(())
    }
}

/// By what was learned, wherever it is; what cannot be read back equals nothing.
impl PartialEq for Statistics {
    fn eq(&self, other: &Self) -> bool {
        self.layout == other.layout
            && self.removable == other.removable
            && self.held == other.held
            && self.pooled == other.pooled
            && self.components == other.components
            && self.held.clone().all(
                |part| matches!((self.scatter(part), other.scatter(part)), (Ok(a), Ok(b)) if a == b),
            )
    }
}

/// As the derived form would be with everything in memory.
impl Serialize for Statistics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Statistics", 6)?;
        fields.serialize_field("layout", &self.layout)?;
        fields.serialize_field("removable", &self.removable)?;
        fields.serialize_field("held", &self.held)?;
        fields.serialize_field("scatter", &Scatter(self))?;
        fields.serialize_field("components", &self.components)?;
        fields.serialize_field("pooled", &self.pooled)?;
        fields.end()
    }
}

/// The scatter of all held parts.
struct Scatter<'a>(&'a Statistics);

impl Serialize for Scatter<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let statistics = self.0;
        let Some(shelved) = &statistics.shelved else {
            return statistics.scatter.serialize(serializer);
        };
        // Before anything is learned there is none.
        let packed = statistics.layout.packed();
        let parts = match statistics.components.is_empty() {
            true => 0..0,
            false => statistics.held.clone(),
        };
        let mut all = serializer.serialize_seq(Some(parts.len() * packed))?;
        for part in parts {
            let mut outcome = Ok(());
            let read = shelved.each(part, packed, |values| {
                for value in values {
                    if outcome.is_ok() {
                        outcome = all.serialize_element(value);
                    }
                }
            });
            read.map_err(S::Error::custom)?;
            outcome?;
        }
        all.end()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Classifier, Layout};
    use super::*;

    fn image(class: usize, number: usize, width: usize) -> Vec<f32> {
        (0..width)
            .map(|k| ((class * 31 + number * 17 + k * 7) % 13) as f32 - 6.0 + class as f32)
            .collect()
    }

    fn learned(layout: Layout, classes: std::ops::Range<usize>, task: TaskId) -> Statistics {
        let mut statistics = Statistics::new(layout);
        learn(&mut statistics, classes, task);
        statistics
    }

    fn learn(statistics: &mut Statistics, classes: std::ops::Range<usize>, task: TaskId) {
        let width = statistics.layout().width();
        for class in classes {
            let rows: Vec<f32> = (0..9).flat_map(|n| image(class, n, width)).collect();
            statistics.learn(class as ClassId, task, &rows).unwrap();
        }
    }

    #[test]
    fn statistics_on_disk_are_the_same_statistics() {
        let layout = Layout { parts: 3, dim: 5 };
        let held = learned(layout, 0..2, 0);
        let mut shelved = held.clone();
        shelved.shelve().unwrap();
        assert!(shelved.scatter.is_empty());
        assert_eq!(shelved, held);
        assert_eq!(
            postcard::to_allocvec(&shelved).unwrap(),
            postcard::to_allocvec(&held).unwrap()
        );
        let fit = |statistics| Classifier::fit(&[statistics], 0.1).unwrap();
        assert_eq!(fit(&shelved), fit(&held));
        shelved.unshelve().unwrap();
        assert_eq!(shelved.scatter, held.scatter);
    }

    #[test]
    fn learning_on_disk_is_learning_and_leaves_a_copy_alone() {
        let layout = Layout { parts: 3, dim: 5 };
        let mut expected = learned(layout, 0..2, 0);
        let mut before = expected.clone();
        before.shelve().unwrap();
        let mut after = before.clone();
        learn(&mut expected, 1..4, 1);
        let images: Vec<(ClassId, usize)> = (1..4)
            .flat_map(|class| (0..9).map(move |n| (class, class as usize * 9 + n)))
            .collect();
        after
            .learn_on_shelf::<HeadError>(1, &images, |at, columns, out| {
                out.copy_from_slice(&image(at / 9, at % 9, layout.width())[columns]);
                Ok(())
            })
            .unwrap();
        assert_eq!(after, expected);
        assert_eq!(before, learned(layout, 0..2, 0));
        after.forget(1).unwrap();
        expected.forget(1).unwrap();
        assert_eq!(after, expected);
    }
}

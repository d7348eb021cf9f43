//! What the head learned: counts and means per component, one shared scatter per part.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use serde::Deserialize;
use serde::Serialize;

use super::accumulate::{LearnWork, learn_part};
use super::factor::{Factor, Rows};
use super::shelve::Shelved;
use super::{ClassId, HeadError, Layout, TaskId};

/// One class as one task showed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Component {
    pub class: ClassId,
    pub task: TaskId,
    /// Images learned.
    pub count: u32,
    /// The squared error that [following features](Statistics::add_drift) is expected to have added to the
    /// mean, as a share of an image's squared distance from it: 0.02 is as if there were one image instead of
    /// another 50.
    pub drift: f32,
    /// `[parts * dim]`
    pub mean: Vec<f32>,
    /// Its own share of the shared scatter; without it the component cannot be removed.
    pub factor: Option<Factor>,
}

/// Sufficient statistics of the LDA head, exact to update and exact to remove from.
///
/// The shared scatter is stored beside the components' own factors although it is their sum:
/// learning and fitting then cost the same however many classes there are, and both may wait on
/// disk ([`Statistics::shelve`]) while only means are in memory.
#[derive(Debug, Clone, Deserialize)]
pub struct Statistics {
    pub(super) layout: Layout,
    pub(super) removable: bool,
    /// The parts that are learned; the others have no scatter and a mean of zeros.
    pub(super) held: Range<usize>,
    /// Packed lower triangles, `[held, dim (dim + 1) / 2]`.
    pub(super) scatter: Vec<f32>,
    /// Sorted by class, then task.
    pub(super) components: Vec<Component>,
    /// Classes whose components are fitted as one, ascending.
    pub(super) pooled: Vec<ClassId>,
    /// Where scatter and factors are, when they are not in memory.
    #[serde(skip)]
    pub(super) shelved: Option<Shelved>,
}

impl Statistics {
    /// Statistics that components can be removed from: each keeps a factor of its scatter.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            removable: true,
            held: 0..layout.parts,
            // Nothing is learned yet, so nothing has to be kept.
            scatter: Vec::new(),
            components: Vec::new(),
            pooled: Vec::new(),
            shelved: None,
        }
    }

    /// Statistics of one part that components can be removed from.
    pub(super) fn of_part(layout: Layout, part: usize) -> Self {
        Self {
            held: part..part + 1,
            ..Self::new(layout)
        }
    }

    /// Statistics of some parts without factors, for a fit that is thrown away: smaller and
    /// faster to learn. Whole feature vectors go in; parts outside `held` are skipped, and only
    /// those inside can be fitted. A range beyond the layout is cut to it.
    pub fn transient(layout: Layout, held: Range<usize>) -> Self {
        let end = held.end.min(layout.parts);
        let held = held.start.min(end)..end;
        Self {
            layout,
            removable: false,
            scatter: vec![0.0; held.len() * layout.packed()],
            held,
            components: Vec::new(),
            pooled: Vec::new(),
            shelved: None,
        }
    }

    /// Forgets everything and keeps the memory of the scatter.
    pub fn clear(&mut self) {
        self.shelved = None;
        self.scatter.fill(0.0);
        self.components.clear();
        self.pooled.clear();
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Sorted by class, then task.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// How many tasks the components come from.
    pub fn tasks(&self) -> usize {
        let tasks: BTreeSet<TaskId> = self.components.iter().map(|c| c.task).collect();
        tasks.len()
    }

    /// The classes learned, ascending.
    pub fn classes(&self) -> Vec<ClassId> {
        let mut classes: Vec<ClassId> = self.components.iter().map(|c| c.class).collect();
        classes.dedup();
        classes
    }

    /// Images learned.
    pub fn images(&self) -> u64 {
        self.components.iter().map(|c| u64::from(c.count)).sum()
    }

    /// The parts that are learned: all of them, unless [`Statistics::transient`] said otherwise.
    pub fn held(&self) -> Range<usize> {
        self.held.clone()
    }

    /// Packed lower triangle of one part's within-component scatter, row by row; empty when the
    /// part is not held or nothing was learned yet.
    ///
    /// # Errors
    /// When it waits on disk and cannot be read.
    pub fn scatter(&self, part: usize) -> Result<Cow<'_, [f32]>, HeadError> {
        if let Some(shelved) = self
            .shelved
            .as_ref()
            .filter(|_| !self.components.is_empty())
        {
            let mut values = vec![0.0; self.layout.packed()];
            shelved.read(part, &mut values)?;
            return Ok(values.into());
        }
        if !self.held.contains(&part) || self.scatter.is_empty() {
            return Ok(Cow::Borrowed(&[]));
        }
        Ok(self.scatter[self.scatter_of(part)].into())
    }

    /// Hands the scatter of one part to `sees` piece after piece. Allocates nothing.
    ///
    /// # Errors
    /// When it waits on disk and cannot be read.
    pub(super) fn each_scatter(
        &self,
        part: usize,
        mut sees: impl FnMut(&[f32]),
    ) -> Result<(), HeadError> {
        if let Some(shelved) = &self.shelved {
            return match self.components.is_empty() {
                true => Ok(()),
                false => Ok(shelved.each(part, self.layout.packed(), sees)?),
            };
        }
        if self.held.contains(&part) && !self.scatter.is_empty() {
            sees(&self.scatter[self.scatter_of(part)]);
        }
        Ok(())
    }

    /// Bytes of the stored numbers.
    pub fn bytes(&self) -> usize {
        let components = self.components.iter();
        4 * self.scatter.len()
            + components
                .map(|c| 12 + 4 * c.mean.len() + c.factor.as_ref().map_or(0, Factor::bytes))
                .sum::<usize>()
    }

    /// Bytes in memory with scatter and factors [on disk](Statistics::shelve).
    pub fn memory(&self) -> usize {
        let components = self.components.iter().map(|component| {
            let factor = component.factor.as_ref().map_or(0, Factor::memory_on_shelf);
            size_of::<Component>() + 4 * component.mean.len() + factor
        });
        // A vector grows by doubling.
        components.sum::<usize>() + size_of::<Component>() * self.components.len()
    }

    /// Images of the largest component.
    pub fn largest(&self) -> usize {
        let counts = self.components.iter().map(|component| component.count);
        counts.max().map_or(0, |count| count as usize)
    }

    /// Learns images of one class: `features` is `[n, parts * dim]`. A component that exists
    /// already grows; any order and any batching gives the same statistics up to rounding.
    ///
    /// Every image adds `sqrt(n / (n + 1)) (x - mean_n)` to the rows whose outer products make
    /// the scatter (Welford 1962, in outer-product form), so n images make n - 1 rows.
    ///
    /// # Errors
    /// As [`Layout::check`], and [`HeadError::NoFactor`] for a component that lost its factor; the
    /// statistics are then unchanged.
    pub fn learn(
        &mut self,
        class: ClassId,
        task: TaskId,
        features: &[f32],
    ) -> Result<(), HeadError> {
        let added = self.layout.check(features)?;
        if added == 0 {
            return Ok(());
        }
        self.unshelve()?;
        let index = self.place(class, task)?;
        let scatter = self.held.len() * self.layout.packed();
        self.scatter.resize(scatter, 0.0);
        let width = self.layout.width();
        let mut work = LearnWork::new(self.layout.dim);
        for part in self.held.clone() {
            let range = self.layout.part(part);
            let place = self.scatter_of(part);
            let (scatter, component) = (&mut self.scatter[place], &mut self.components[index]);
            let features = features
                .chunks_exact(width)
                .map(|feature| &feature[range.clone()]);
            let before = component.count;
            learn_part(component, part, before, features, scatter, &mut work)?;
        }
        let count = &mut self.components[index].count;
        *count = count.saturating_add(u32::try_from(added).unwrap_or(u32::MAX));
        Ok(())
    }

    /// Hands mean `[dim]` and factor rows of every component to `moves(part, mean, rows)`, part by
    /// part, and sums the scatter of those parts anew from what comes back.
    pub(super) fn move_parts(
        &mut self,
        layout: Layout,
        parts: impl Iterator<Item = usize>,
        moves: impl Fn(usize, &mut [f32], &mut Rows),
    ) -> Result<(), HeadError> {
        if layout != self.layout {
            return Err(HeadError::Shape {
                what: "moved features",
                expected: self.layout.width(),
                found: layout.width(),
            });
        }
        (0..self.components.len()).try_for_each(|index| self.check_factor(index))?;
        let mut rows = Rows::new(layout.dim);
        let mut own = Vec::new();
        for part in parts.filter(|part| self.held.contains(part)) {
            // On disk, the part's scatter is made beside the old one.
            let place = match self.shelved {
                Some(_) => None,
                None => Some(self.scatter_of(part)),
            };
            let scatter = match place {
                Some(place) => &mut self.scatter[place],
                None => {
                    own.resize(layout.packed(), 0.0);
                    &mut own[..]
                }
            };
            scatter.fill(0.0);
            for component in &mut self.components {
                rows.clear();
                if let Some(factor) = &component.factor {
                    factor.unpack(part, &mut rows)?;
                }
                moves(part, &mut component.mean[layout.part(part)], &mut rows);
                if let Some(factor) = &mut component.factor {
                    rows.fold(0);
                    factor.pack(part, &mut rows);
                    if let Some(shelved) = &self.shelved {
                        factor.shelve_part(part, &shelved.factors, false)?;
                    }
                }
                rows.add_gram(1.0, scatter);
            }
            if let Some(shelved) = &mut self.shelved {
                shelved.write(part, &own)?;
            }
        }
        Ok(())
    }

    /// Checks statistics that were read from a file: every later call relies on these lengths.
    ///
    /// # Errors
    /// [`HeadError::Damaged`] with what is wrong.
    pub fn check(&self) -> Result<(), HeadError> {
        let Layout { parts, dim } = self.layout;
        // A limit keeps the products below from overflowing on hostile sizes.
        if dim == 0 || parts == 0 || dim > 1 << 16 || parts > 1 << 12 {
            return Err(HeadError::Damaged("impossible feature layout"));
        }
        let usable = |values: &[f32]| values.iter().all(|v| v.is_finite());
        if self.held != (0..parts) {
            return Err(HeadError::Damaged("parts are missing"));
        }
        let expected = match self.components.is_empty() && self.scatter.is_empty() {
            true => 0,
            false => parts * self.layout.packed(),
        };
        let mut fits = self.shelved.is_some() || self.scatter.len() == expected;
        for part in 0..if fits { parts } else { 0 } {
            self.each_scatter(part, |values| fits &= usable(values))?;
        }
        if !fits {
            return Err(HeadError::Damaged("the shared scatter is unusable"));
        }
        for component in &self.components {
            if component.count == 0
                || !(component.drift >= 0.0 && component.drift.is_finite())
                || component.mean.len() != self.layout.width()
                || self.layout.check(&component.mean).is_err()
            {
                return Err(HeadError::Damaged("a class mean is unusable"));
            }
            if let Some(factor) = &component.factor {
                factor.check(parts, dim)?;
            }
        }
        let key = |c: &Component| (c.class, c.task);
        if !self.components.is_sorted_by(|a, b| key(a) < key(b)) {
            return Err(HeadError::Damaged("components are out of order"));
        }
        if !self.pooled.is_sorted_by(|a, b| a < b) {
            return Err(HeadError::Damaged("pooled classes are out of order"));
        }
        Ok(())
    }

    /// Where the scatter of a held part lies.
    pub(super) fn scatter_of(&self, part: usize) -> Range<usize> {
        let packed = self.layout.packed();
        let start = (part - self.held.start) * packed;
        start..start + packed
    }

    pub(super) fn search(&self, class: ClassId, task: TaskId) -> Result<usize, usize> {
        let key = |c: &Component| (c.class, c.task);
        self.components.binary_search_by_key(&(class, task), key)
    }

    fn check_factor(&self, index: usize) -> Result<(), HeadError> {
        let Component { class, task, .. } = self.components[index];
        if self.removable && self.components[index].factor.is_none() {
            return Err(HeadError::NoFactor { class, task });
        }
        Ok(())
    }

    /// The index of a component that may grow, made if it is new.
    pub(super) fn place(&mut self, class: ClassId, task: TaskId) -> Result<usize, HeadError> {
        match self.search(class, task) {
            Ok(index) => self.check_factor(index).map(|()| index),
            Err(index) => {
                let component = Component {
                    class,
                    task,
                    count: 0,
                    drift: 0.0,
                    mean: vec![0.0; self.layout.width()],
                    factor: self.removable.then(|| Factor::empty(self.layout.parts)),
                };
                self.components.insert(index, component);
                Ok(index)
            }
        }
    }
}

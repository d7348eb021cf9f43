//! The shared scatter on disk: training fits one part after another and needs one at a time.

use super::Statistics;
use crate::data::{CacheError, RowFile};

/// The scatter of every part, `[parts, dim (dim + 1) / 2]` in a file.
#[derive(Debug)]
pub struct Spilled(RowFile);

impl Statistics {
    /// Moves the scatter to an unnamed file. Until it is [back](Statistics::unspill), only the part
    /// that was [loaded](Statistics::load) last can be fitted, and nothing can be learned. None when
    /// nothing was learned yet.
    ///
    /// # Errors
    /// When there is no room for the file; the scatter is then where it was.
    pub fn spill(&mut self) -> Result<Option<Spilled>, CacheError> {
        if self.scatter.is_empty() {
            return Ok(None);
        }
        let file = RowFile::create(self.layout.parts, self.layout.packed())?;
        for (part, values) in self.scatter.chunks_exact(self.layout.packed()).enumerate() {
            file.write(part, 0, values)?;
        }
        self.scatter = vec![0.0; self.layout.packed()];
        self.held = 0..0;
        Ok(Some(Spilled(file)))
    }

    /// Reads the scatter of one part. Allocates nothing.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn load(&mut self, part: usize, spilled: &Spilled) -> Result<(), CacheError> {
        let packed = self.layout.packed();
        spilled.0.read(part, 0..packed, &mut self.scatter)?;
        self.held = part..part + 1;
        Ok(())
    }

    /// Brings the scatter back.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn unspill(&mut self, spilled: &Spilled) -> Result<(), CacheError> {
        let packed = self.layout.packed();
        self.scatter = vec![0.0; self.layout.parts * packed];
        for (part, values) in self.scatter.chunks_exact_mut(packed).enumerate() {
            spilled.0.read(part, 0..packed, values)?;
        }
        self.held = 0..self.layout.parts;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Classifier, Layout, Workspace};
    use super::*;

    #[test]
    fn a_spilled_head_fits_part_by_part_and_comes_back_as_it_was() {
        let layout = Layout { parts: 3, dim: 4 };
        let mut statistics = Statistics::new(layout);
        assert!(statistics.spill().unwrap().is_none());
        for (class, shift) in [(0, 0.0), (1, 2.0)] {
            let rows: Vec<f32> = (0..5 * 12).map(|k| (k * 7 % 11) as f32 + shift).collect();
            statistics.learn(class, 0, &rows).unwrap();
        }
        let before = statistics.clone();
        let whole = Classifier::fit(&[&statistics], 0.1).unwrap();
        let spilled = statistics.spill().unwrap().unwrap();
        let (mut head, mut workspace) = (Classifier::empty(layout), Workspace::default());
        head.start(&[&statistics], 0.1, &mut workspace).unwrap();
        for part in 0..layout.parts {
            statistics.load(part, &spilled).unwrap();
            head.refit(&[&statistics], part..part + 1, &mut workspace)
                .unwrap();
        }
        assert_eq!(head, whole);
        statistics.unspill(&spilled).unwrap();
        assert_eq!(statistics, before);
    }
}

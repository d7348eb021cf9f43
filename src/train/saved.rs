//! Numbers that training may have to go back to, on disk meanwhile.

use crate::adapt::Adapters;
use crate::data::{CacheError, RowFile};

/// Adapters as they were.
#[derive(Debug)]
pub struct Saved {
    file: RowFile,
    remembered: f64,
}

impl Saved {
    /// Keeps a copy of `adapters` in an unnamed file.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn adapters(adapters: &Adapters) -> Result<Self, CacheError> {
        let numbers = adapters.numbers().map(<[f32]>::len).sum();
        let file = RowFile::create(1, numbers)?;
        let mut column = 0;
        for slice in adapters.numbers() {
            file.write(0, column, slice)?;
            column += slice.len();
        }
        Ok(Self {
            file,
            remembered: adapters.remembered,
        })
    }

    /// Brings `adapters` back to what they were; their shape is the same.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn restore(&self, adapters: &mut Adapters) -> Result<(), CacheError> {
        let mut column = 0;
        for slice in adapters.numbers_mut() {
            self.file.read(0, column..column + slice.len(), slice)?;
            column += slice.len();
        }
        adapters.remembered = self.remembered;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::adapt::Projection;

    #[test]
    fn adapters_come_back_as_they_were() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let projections = [Projection::Query, Projection::Value];
        let mut adapters = Adapters::new(12, 3, 1..3, &projections, 2, &mut rng);
        adapters.remembered = 7.0;
        let before = adapters.clone();
        let saved = Saved::adapters(&adapters).unwrap();
        adapters.numbers_mut().for_each(|slice| slice.fill(9.0));
        adapters.remembered = 0.0;
        saved.restore(&mut adapters).unwrap();
        assert_eq!(adapters, before);
    }
}

//! What training goes back to when it fails.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::stack::Phase;
use crate::adapt::Adapters;
use crate::data::{CacheError, RowFile};

/// Adapters as they were.
#[derive(Debug)]
pub enum Saved {
    /// All numbers in one row, and how many tokens the guard rests on: before a first task.
    OnDisk(RowFile, f64),
    /// Before a later one, without bases where these stay as they are.
    InMemory(Adapters),
}

impl Saved {
    /// Keeps what a task may change: a first task everything, a later one `bases` or not.
    ///
    /// # Errors
    /// When there is no room on disk for it.
    pub fn adapters(adapters: &Adapters, phase: Phase, bases: bool) -> Result<Self, CacheError> {
        if phase == Phase::Cores {
            return Ok(Self::InMemory(match bases {
                true => adapters.clone(),
                false => adapters.without_bases(),
            }));
        }
        let file = RowFile::create(1, numbers(adapters).map(<[f32]>::len).sum())?;
        let mut column = 0;
        for slice in numbers(adapters) {
            file.write(0, column, slice)?;
            column += slice.len();
        }
        Ok(Self::OnDisk(file, adapters.remembered))
    }

    /// What is in memory: adapters before a later task.
    pub fn in_memory(&self) -> Option<&Adapters> {
        match self {
            Self::InMemory(before) => Some(before),
            Self::OnDisk(..) => None,
        }
    }

    /// Brings `adapters` back to what they were; their shape is the same. What cannot be read back
    /// from disk is drawn anew: nothing rests on it before a first task is learned.
    pub fn restore(&self, adapters: &mut Adapters) {
        match self {
            Self::InMemory(before) => adapters.restore(before),
            Self::OnDisk(file, remembered) => {
                adapters.remembered = *remembered;
                if read(file, adapters).is_err() {
                    adapters.restart(&mut ChaCha8Rng::seed_from_u64(0));
                }
            }
        }
    }
}

/// Every number, a slice after another.
fn numbers(adapters: &Adapters) -> impl Iterator<Item = &[f32]> {
    let sites = adapters.sites.iter();
    sites
        .flat_map(|site| [site.a.as_slice(), &site.b, &site.core, &site.gram])
        .chain([adapters.prompts.as_slice(), &adapters.prompt_fisher])
}

fn read(file: &RowFile, adapters: &mut Adapters) -> Result<(), CacheError> {
    let sites = adapters.sites.iter_mut();
    let numbers = sites
        .flat_map(|site| {
            let (a, b) = (site.a.as_mut_slice(), site.b.as_mut_slice());
            [a, b, site.core.as_mut_slice(), &mut site.gram]
        })
        .chain([
            adapters.prompts.as_mut_slice(),
            adapters.prompt_fisher.as_mut_slice(),
        ]);
    let mut column = 0;
    for slice in numbers {
        file.read(0, column..column + slice.len(), slice)?;
        column += slice.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapt::Projection;

    #[test]
    fn adapters_come_back_as_they_were() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let projections = [Projection::Query, Projection::Value];
        let mut adapters = Adapters::new(12, 3, 1..3, &projections, 2, &mut rng);
        adapters.remembered = 7.0;
        let before = adapters.clone();
        let saved = Saved::adapters(&adapters, Phase::Bases, true).unwrap();
        spoil(&mut adapters);
        saved.restore(&mut adapters);
        assert_eq!(adapters, before);
        let saved = Saved::adapters(&adapters, Phase::Cores, true).unwrap();
        spoil(&mut adapters);
        saved.restore(&mut adapters);
        assert_eq!(adapters, before);
        // Where bases stay as they are, they are not kept.
        let saved = Saved::adapters(&adapters, Phase::Cores, false).unwrap();
        spoil(&mut adapters);
        for (site, before) in adapters.sites.iter_mut().zip(&before.sites) {
            site.a.copy_from_slice(&before.a);
            site.b.copy_from_slice(&before.b);
        }
        saved.restore(&mut adapters);
        assert_eq!(adapters, before);
    }

    fn spoil(adapters: &mut Adapters) {
        for site in &mut adapters.sites {
            site.a.fill(9.0);
            site.b.fill(9.0);
            site.core.fill(9.0);
            site.gram.fill(9.0);
        }
        adapters.prompts.fill(9.0);
        adapters.prompt_fisher.fill(9.0);
        adapters.remembered = 0.0;
    }
}

//! What training goes back to when it fails.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::stack::Phase;
use crate::adapt::Adapters;
use crate::data::{CacheError, RowFile};

/// Adapters as they were: everything but the bases in memory, and bases that are about to be learned
/// on disk.
#[derive(Debug)]
pub struct Saved {
    /// Without bases.
    rest: Adapters,
    bases: Option<RowFile>,
}

impl Saved {
    /// Keeps what a task may change.
    ///
    /// # Errors
    /// When there is no room on disk for it.
    pub fn adapters(adapters: &Adapters, phase: Phase) -> Result<Self, CacheError> {
        let bases = match phase {
            Phase::Cores => None,
            Phase::Bases => {
                let width = adapters.dim * adapters.rank;
                let file = RowFile::create(2 * adapters.sites.len(), width)?;
                for (row, basis) in bases(adapters).enumerate() {
                    file.write(row, 0, basis)?;
                }
                Some(file)
            }
        };
        Ok(Self {
            rest: adapters.without_bases(),
            bases,
        })
    }

    /// Brings `adapters` back to what they were; their shape is the same. Bases that cannot be read
    /// back are drawn anew: nothing rests on them before a first task is learned.
    pub fn restore(&self, adapters: &mut Adapters) {
        if let Some(file) = &self.bases
            && restore_bases(file, adapters).is_err()
        {
            adapters.restart(&mut ChaCha8Rng::seed_from_u64(0));
            return;
        }
        adapters.restore_all_but_bases(&self.rest);
    }
}

fn bases(adapters: &Adapters) -> impl Iterator<Item = &[f32]> {
    let sites = adapters.sites.iter();
    sites.flat_map(|site| [site.a.as_slice(), &site.b])
}

fn restore_bases(file: &RowFile, adapters: &mut Adapters) -> Result<(), CacheError> {
    let sites = adapters.sites.iter_mut();
    let bases = sites.flat_map(|site| [site.a.as_mut_slice(), &mut site.b]);
    for (row, basis) in bases.enumerate() {
        file.read(row, 0..basis.len(), basis)?;
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
        let saved = Saved::adapters(&adapters, Phase::Bases).unwrap();
        spoil(&mut adapters);
        for site in &mut adapters.sites {
            site.a.fill(9.0);
            site.b.fill(9.0);
        }
        saved.restore(&mut adapters);
        assert_eq!(adapters, before);
        // A later task leaves the bases alone.
        let saved = Saved::adapters(&adapters, Phase::Cores).unwrap();
        spoil(&mut adapters);
        saved.restore(&mut adapters);
        assert_eq!(adapters, before);
    }

    fn spoil(adapters: &mut Adapters) {
        for site in &mut adapters.sites {
            site.core.fill(9.0);
            site.gram.fill(9.0);
        }
        adapters.prompts.fill(9.0);
        adapters.prompt_fisher.fill(9.0);
        adapters.remembered = 0.0;
    }
}

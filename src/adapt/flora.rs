//! Bases and cores of F-LoRA, one site a block and projection.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::orthonormal::orthonormalise_columns;
use crate::kernels::matmul::{MatMut, MatRef, matmul};
use crate::train::block::Adapter;

/// A projection of the attention that can carry an adapter, in the order of the fused columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Projection {
    Query = 0,
    Key = 1,
    Value = 2,
}

/// An adapter on one projection of one block: `y += ((h A) C) B^T`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// Block index, from 0.
    pub block: usize,
    pub projection: Projection,
    /// `[D, r]`; orthonormal columns once the first task is learned.
    pub a: Vec<f32>,
    /// `[D, r]`; orthonormal columns once the first task is learned.
    pub b: Vec<f32>,
    /// `[r, r]`: what is left of it where bases learned on in a task, which take it up, and what tasks added
    /// since.
    pub core: Vec<f32>,
    /// `[r, r]`: mean of `z z^T` with `z = A^T h` over every token of every task learned so far.
    pub gram: Vec<f32>,
}

impl Site {
    /// `B C^T` `[D, r]`
    fn absorbed(&self, dim: usize, r: usize, out: &mut [f32]) {
        let core = MatRef::new(&self.core, r, r).t();
        matmul(
            1.0,
            MatRef::new(&self.b, dim, r),
            core,
            0.0,
            MatMut::new(out, dim, r),
        );
    }
}

/// What one task added to the core of one site: `M N^T`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskCore {
    /// `[r, r_t]`
    pub m: Vec<f32>,
    /// `[r, r_t]`
    pub n: Vec<f32>,
}

/// Every adapter of a model. The default has no site and takes no memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Adapters {
    pub dim: usize,
    /// Rank r of the bases.
    pub rank: usize,
    /// Block-major, projections in order within a block.
    pub sites: Vec<Site>,
    /// `[m, D]`, inserted after the class token at the first adapted block.
    pub prompts: Vec<f32>,
    /// `[m, D]`: diagonal of the prompts' Fisher information, summed over the tasks learned so far.
    pub prompt_fisher: Vec<f32>,
    /// Tokens that the sites' `gram` are means over.
    pub remembered: f64,
}

impl Adapters {
    /// Fresh adapters that change nothing yet: A has random orthonormal columns, B is zero, C is
    /// the identity
    /// (the LoRA start, Hu et al., arXiv 2106.09685, section 4.1).
    pub fn new(
        dim: usize,
        rank: usize,
        blocks: std::ops::Range<usize>,
        projections: &[Projection],
        prompts: usize,
        rng: &mut impl Rng,
    ) -> Self {
        let places: Vec<(usize, Projection)> = blocks
            .flat_map(|block| projections.iter().map(move |&p| (block, p)))
            .collect();
        Self::at(dim, rank, &places, prompts, rng)
    }

    /// Starts again in the same places, with nothing of what was learned.
    pub fn restart(&mut self, rng: &mut impl Rng) {
        let places: Vec<_> = self.sites.iter().map(|s| (s.block, s.projection)).collect();
        let prompts = self.prompts.len() / self.dim;
        *self = Self::at(self.dim, self.rank, &places, prompts, rng);
    }

    fn at(
        dim: usize,
        rank: usize,
        places: &[(usize, Projection)],
        prompts: usize,
        rng: &mut impl Rng,
    ) -> Self {
        let bound = (3.0 / dim as f32).sqrt();
        let sites = places
            .iter()
            .map(|&(block, projection)| Site {
                block,
                projection,
                a: (0..dim * rank)
                    .map(|_| rng.random_range(-bound..bound))
                    .collect(),
                b: vec![0.0; dim * rank],
                core: identity(rank),
                gram: vec![0.0; rank * rank],
            })
            .collect();
        let mut adapters = Self {
            dim,
            rank,
            sites,
            prompts: (0..prompts * dim)
                .map(|_| rng.random_range(-0.02..0.02))
                .collect(),
            prompt_fisher: vec![0.0; prompts * dim],
            remembered: 0.0,
        };
        for site in &mut adapters.sites {
            orthonormalise_columns(&mut site.a, dim, rank);
        }
        adapters
    }

    /// For a first task that trains nothing: random orthonormal output bases and cores of zero, so
    /// that no feature changes and later tasks still have bases to learn cores in.
    pub fn draw_output_bases(&mut self, rng: &mut impl Rng) {
        for site in &mut self.sites {
            site.b
                .iter_mut()
                .for_each(|b| *b = rng.random_range(-1.0..1.0));
            orthonormalise_columns(&mut site.b, self.dim, self.rank);
        }
        self.clear_cores();
    }

    /// A copy without bases: cores, drift guard and prompts, a few KB.
    pub fn without_bases(&self) -> Self {
        let sites = self.sites.iter().map(|site| Site {
            block: site.block,
            projection: site.projection,
            a: Vec::new(),
            b: Vec::new(),
            core: site.core.clone(),
            gram: site.gram.clone(),
        });
        Self {
            dim: self.dim,
            rank: self.rank,
            sites: sites.collect(),
            prompts: self.prompts.clone(),
            prompt_fisher: self.prompt_fisher.clone(),
            remembered: self.remembered,
        }
    }

    /// Goes only a share of the way from `base`, where a first task's B is zero, to what was learned:
    /// `W_0 + share A B^T`, and the prompts likewise.
    pub fn blend(&mut self, base: &Self, share: f32) {
        for site in &mut self.sites {
            site.b.iter_mut().for_each(|b| *b *= share);
        }
        for (now, old) in self.prompts.iter_mut().zip(&base.prompts) {
            *now = old + share * (*now - old);
        }
    }

    /// Goes only a share of the way from `base`, whose bases are orthonormal, to bases that learned on
    /// from its [absorbed](Adapters::absorb_cores) ones, and the prompts likewise.
    pub fn blend_bases(&mut self, base: &Self, share: f32) {
        let (dim, r) = (self.dim, self.rank);
        let toward = |now: &mut [f32], old: &[f32]| {
            for (now, old) in now.iter_mut().zip(old) {
                *now = old + share * (*now - old);
            }
        };
        let mut absorbed = vec![0.0; dim * r];
        for (site, old) in self.sites.iter_mut().zip(&base.sites) {
            toward(&mut site.a, &old.a);
            old.absorbed(dim, r, &mut absorbed);
            toward(&mut site.b, &absorbed);
        }
        toward(&mut self.prompts, &base.prompts);
    }

    /// Moves the cores into B, so that `A C B^T` stays what it was with C the identity: where bases
    /// learn on from.
    pub fn absorb_cores(&mut self) {
        let (dim, r) = (self.dim, self.rank);
        let mut absorbed = vec![0.0; dim * r];
        for site in &mut self.sites {
            site.absorbed(dim, r, &mut absorbed);
            site.b.copy_from_slice(&absorbed);
            site.core.copy_from_slice(&identity(r));
        }
    }

    /// Turns the drift guard's `gram` from the bases of `before` to those of now: with
    /// `T = A_before^T A`, `G <- T^T G T`, exact as far as both span the same.
    pub fn turn_gram(&mut self, before: &Self) {
        let (dim, r) = (self.dim, self.rank);
        let (mut turn, mut half) = (vec![0.0; r * r], vec![0.0; r * r]);
        for (site, old) in self.sites.iter_mut().zip(&before.sites) {
            let (was, is) = (MatRef::new(&old.a, dim, r), MatRef::new(&site.a, dim, r));
            matmul(1.0, was.t(), is, 0.0, MatMut::new(&mut turn, r, r));
            let turn = MatRef::new(&turn, r, r);
            let gram = MatRef::new(&old.gram, r, r);
            matmul(1.0, gram, turn, 0.0, MatMut::new(&mut half, r, r));
            let half = MatRef::new(&half, r, r);
            matmul(1.0, turn.t(), half, 0.0, MatMut::new(&mut site.gram, r, r));
        }
    }

    /// Goes back to `other` in everything; in everything but the bases where that is a [copy without
    /// them](Adapters::without_bases).
    pub fn restore(&mut self, other: &Self) {
        for (site, other) in self.sites.iter_mut().zip(&other.sites) {
            if !other.a.is_empty() {
                site.a.copy_from_slice(&other.a);
                site.b.copy_from_slice(&other.b);
            }
            site.core.copy_from_slice(&other.core);
            site.gram.copy_from_slice(&other.gram);
        }
        self.prompts.copy_from_slice(&other.prompts);
        self.prompt_fisher.copy_from_slice(&other.prompt_fisher);
        self.remembered = other.remembered;
    }

    /// Makes every adapter change nothing, and keeps the bases.
    pub fn clear_cores(&mut self) {
        for site in &mut self.sites {
            site.core.fill(0.0);
        }
    }

    /// Adds a learned task to what the drift guard protects: `sum` holds `z z^T` summed over
    /// `tokens` tokens, `[r, r]` a site.
    pub fn remember(&mut self, sum: &[f32], tokens: usize) {
        let total = self.remembered + tokens as f64;
        let (old, new) = ((self.remembered / total) as f32, (1.0 / total) as f32);
        for (site, sum) in self
            .sites
            .iter_mut()
            .zip(sum.chunks_exact(self.rank * self.rank))
        {
            for (mean, &s) in site.gram.iter_mut().zip(sum) {
                *mean = old * *mean + new * s;
            }
        }
        self.remembered = total;
    }

    /// The adapters of one block, as its forward and backward take them: query, key, value.
    pub fn of_block(&self, block: usize) -> [Option<Adapter<'_>>; 3] {
        let mut found = [None; 3];
        for site in self.sites.iter().filter(|site| site.block == block) {
            found[site.projection as usize] = Some(Adapter {
                a: &site.a,
                c: &site.core,
                b: &site.b,
                rank: self.rank,
            });
        }
        found
    }

    /// Makes the columns of A and B orthonormal and moves what is left into the core, so that
    /// `A C B^T` stays what it was: with `A = Q_a R_a` and `B = Q_b R_b`, the new core is
    /// `R_a C R_b^T`.
    pub fn orthonormalise(&mut self) {
        let r = self.rank;
        for site in &mut self.sites {
            let ra = orthonormalise_columns(&mut site.a, self.dim, r);
            let rb = orthonormalise_columns(&mut site.b, self.dim, r);
            let mut left = vec![0.0; r * r];
            let core = MatRef::new(&site.core, r, r);
            matmul(
                1.0,
                MatRef::new(&ra, r, r),
                core,
                0.0,
                MatMut::new(&mut left, r, r),
            );
            let mut moved = vec![0.0; r * r];
            let rb = MatRef::new(&rb, r, r).t();
            matmul(
                1.0,
                MatRef::new(&left, r, r),
                rb,
                0.0,
                MatMut::new(&mut moved, r, r),
            );
            site.core = moved;
        }
    }
}

fn identity(n: usize) -> Vec<f32> {
    (0..n * n)
        .map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn product(site: &Site, dim: usize, rank: usize) -> Vec<f64> {
        let mut out = vec![0.0; dim * dim];
        for i in 0..dim {
            for j in 0..dim {
                for p in 0..rank {
                    for q in 0..rank {
                        out[i * dim + j] += f64::from(site.a[i * rank + p])
                            * f64::from(site.core[p * rank + q])
                            * f64::from(site.b[j * rank + q]);
                    }
                }
            }
        }
        out
    }

    fn gram_error(x: &[f32], rows: usize, cols: usize) -> f32 {
        let mut worst = 0.0f32;
        for a in 0..cols {
            for b in 0..cols {
                let dot: f32 = (0..rows).map(|i| x[i * cols + a] * x[i * cols + b]).sum();
                worst = worst.max((dot - if a == b { 1.0 } else { 0.0 }).abs());
            }
        }
        worst
    }

    #[test]
    fn orthonormal_bases_leave_the_product_unchanged() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut adapters = Adapters::new(
            20,
            4,
            2..4,
            &[Projection::Query, Projection::Value],
            0,
            &mut rng,
        );
        for site in &mut adapters.sites {
            site.b
                .iter_mut()
                .for_each(|b| *b = rng.random_range(-1.0..1.0));
        }
        let before: Vec<_> = adapters.sites.iter().map(|s| product(s, 20, 4)).collect();
        adapters.orthonormalise();
        for (site, before) in adapters.sites.iter().zip(before) {
            assert!(gram_error(&site.a, 20, 4) < 1e-5 && gram_error(&site.b, 20, 4) < 1e-5);
            for (x, y) in product(site, 20, 4).iter().zip(before) {
                assert!((x - y).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn absorbed_cores_and_blended_bases_lie_where_they_should() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
        let mut base = Adapters::new(10, 3, 0..2, &[Projection::Value], 1, &mut rng);
        base.draw_output_bases(&mut rng);
        for site in &mut base.sites {
            site.core
                .iter_mut()
                .for_each(|c| *c = rng.random_range(-1.0..1.0));
        }
        let mut learned = base.clone();
        learned.absorb_cores();
        for (site, base) in learned.sites.iter().zip(&base.sites) {
            for (x, y) in product(site, 10, 3).iter().zip(product(base, 10, 3)) {
                assert!((x - y).abs() < 1e-5);
            }
        }
        let absorbed = learned.clone();
        for site in &mut learned.sites {
            let numbers = site.a.iter_mut().chain(&mut site.b);
            numbers.for_each(|x| *x += rng.random_range(-1.0..1.0));
        }
        let mut none = learned.clone();
        none.blend_bases(&base, 0.0);
        assert_eq!(none, absorbed);
        let mut quarter = learned.clone();
        quarter.blend_bases(&base, 0.25);
        for ((quarter, from), to) in quarter
            .sites
            .iter()
            .zip(&absorbed.sites)
            .zip(&learned.sites)
        {
            let pairs = quarter.b.iter().zip(&from.b).zip(&to.b);
            for ((x, from), to) in pairs {
                assert!((x - (0.75 * from + 0.25 * to)).abs() < 1e-6);
            }
        }
        learned.restore(&base);
        assert_eq!(learned, base);
    }

    #[test]
    fn a_gram_turns_with_bases_of_the_same_span() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(9);
        let base = Adapters::new(9, 3, 0..1, &[Projection::Query], 0, &mut rng);
        let tokens: Vec<f32> = (0..7 * 9).map(|_| rng.random_range(-1.0..1.0)).collect();
        let gram = |a: &[f32]| {
            let mut z = vec![0.0; 7 * 3];
            let (tokens, a) = (MatRef::new(&tokens, 7, 9), MatRef::new(a, 9, 3));
            matmul(1.0, tokens, a, 0.0, MatMut::new(&mut z, 7, 3));
            let mut gram = vec![0.0; 9];
            let z = MatRef::new(&z, 7, 3);
            matmul(1.0, z.t(), z, 0.0, MatMut::new(&mut gram, 3, 3));
            gram
        };
        let mut before = base.clone();
        before.sites[0].gram = gram(&before.sites[0].a);
        let mut after = before.clone();
        // The same span: every column plus twice the next one, made orthonormal again.
        for row in after.sites[0].a.chunks_exact_mut(3) {
            let (x, y, z) = (row[0], row[1], row[2]);
            row.copy_from_slice(&[x + 2.0 * y, y + 2.0 * z, z]);
        }
        after.orthonormalise();
        after.turn_gram(&before);
        for (turned, fresh) in after.sites[0].gram.iter().zip(gram(&after.sites[0].a)) {
            assert!((turned - fresh).abs() < 1e-4, "{turned} {fresh}");
        }
    }

    #[test]
    fn a_blend_lies_between_the_frozen_weights_and_the_learned_ones() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
        let base = Adapters::new(8, 4, 0..2, &[Projection::Value], 1, &mut rng);
        let mut learned = base.clone();
        for site in &mut learned.sites {
            let numbers = site.a.iter_mut().chain(&mut site.b);
            numbers.for_each(|x| *x = rng.random_range(-1.0..1.0));
        }
        learned.prompts.fill(3.0);
        let mut quarter = learned.clone();
        quarter.blend(&base, 0.25);
        for (site, whole) in quarter.sites.iter().zip(&learned.sites) {
            for (x, whole) in product(site, 8, 4).iter().zip(product(whole, 8, 4)) {
                assert!((x - 0.25 * whole).abs() < 1e-5, "{x} of {whole}");
            }
        }
        for (x, old) in quarter.prompts.iter().zip(&base.prompts) {
            assert!((x - (old + 0.25 * (3.0 - old))).abs() < 1e-6);
        }
    }

    #[test]
    fn drawn_output_bases_are_orthonormal_and_change_nothing() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let mut adapters = Adapters::new(16, 4, 0..2, &[Projection::Query], 0, &mut rng);
        adapters.draw_output_bases(&mut rng);
        for site in &adapters.sites {
            assert!(gram_error(&site.a, 16, 4) < 1e-5 && gram_error(&site.b, 16, 4) < 1e-5);
            assert!(product(site, 16, 4).iter().all(|&p| p == 0.0));
        }
        assert_ne!(adapters.sites[0].b, adapters.sites[1].b);
    }

    #[test]
    fn a_basis_that_never_moved_from_zero_becomes_orthonormal_with_a_zero_core() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let mut adapters = Adapters::new(12, 3, 0..1, &[Projection::Value], 0, &mut rng);
        adapters.orthonormalise();
        let site = &adapters.sites[0];
        assert!(gram_error(&site.b, 12, 3) < 1e-5);
        assert!(site.core.iter().all(|&c| c.abs() < 1e-6));
    }
}

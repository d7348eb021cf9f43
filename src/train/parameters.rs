//! The numbers that a task learns, as one flat vector for the optimiser, and the way between them
//! and the adapters that the blocks see.

use rand::{Rng, RngExt};

use super::stack::Phase;
use crate::adapt::{Adapters, TaskCore};
use crate::kernels::matmul::{MatMut, MatRef, matmul};

/// What keeps the cores from moving away from what earlier tasks rest on.
#[derive(Debug, Clone, Copy)]
pub enum Guard<'a> {
    /// Old tasks reach the core only through `z = A^T h`, so with `G` the mean of `z z^T` over
    /// everything learned so far and orthonormal B, the mean squared change of the adapter's
    /// output is exactly `tr(dC^T G dC)` with `dC = M N^T`; its gradient is `2 G dC`.
    Gram,
    /// Elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796, eq. 3): the sum of
    /// `F dC^2` over a core's elements, F the diagonal of its Fisher information, `[r, r]` a site.
    Fisher(&'a [f32]),
}

/// Learned numbers of one task: per site A and B (first task) or M and N (later ones), then the
/// prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    phase: Phase,
    dim: usize,
    rank: usize,
    /// Rank r_t of this task's M and N.
    task_rank: usize,
    sites: usize,
    values: Vec<f32>,
}

impl Parameters {
    /// The start of a task: `adapters` as they are, M random and N zero, so that nothing changes.
    pub fn new(adapters: &Adapters, phase: Phase, task_rank: usize, rng: &mut impl Rng) -> Self {
        let mut values = Vec::new();
        for site in &adapters.sites {
            match phase {
                Phase::Bases => {
                    values.extend_from_slice(&site.a);
                    values.extend_from_slice(&site.b);
                }
                Phase::Cores => {
                    let bound = (3.0 / adapters.rank as f32).sqrt();
                    let m = adapters.rank * task_rank;
                    values.extend((0..m).map(|_| rng.random_range(-bound..bound)));
                    values.extend(std::iter::repeat_n(0.0, m));
                }
            }
        }
        values.extend_from_slice(&adapters.prompts);
        Self {
            phase,
            dim: adapters.dim,
            rank: adapters.rank,
            task_rank,
            sites: adapters.sites.len(),
            values,
        }
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Takes over the values of `other`, without allocating.
    ///
    /// # Panics
    /// When `other` has another layout.
    pub fn copy_from(&mut self, other: &Self) {
        self.values.copy_from_slice(&other.values);
    }

    /// Where the prompts start.
    pub fn prompts_start(&self) -> usize {
        self.sites * self.site_len()
    }

    fn site_len(&self) -> usize {
        2 * match self.phase {
            Phase::Bases => self.dim * self.rank,
            Phase::Cores => self.rank * self.task_rank,
        }
    }

    /// M and N of one site.
    fn factors(&self, site: usize) -> (&[f32], &[f32]) {
        let start = site * self.site_len();
        self.values[start..start + self.site_len()].split_at(self.site_len() / 2)
    }

    /// Sets `adapters` to what the blocks should see: `base` with these parameters in it.
    pub fn apply(&self, base: &Adapters, adapters: &mut Adapters) {
        for (index, (site, old)) in adapters.sites.iter_mut().zip(&base.sites).enumerate() {
            let (first, second) = self.factors(index);
            match self.phase {
                Phase::Bases => {
                    site.a.copy_from_slice(first);
                    site.b.copy_from_slice(second);
                }
                Phase::Cores => {
                    site.core.copy_from_slice(&old.core);
                    self.add_task_core(first, second, &mut site.core);
                }
            }
        }
        adapters
            .prompts
            .copy_from_slice(&self.values[self.prompts_start()..]);
    }

    /// The gradient of the parameters from that of the adapters, laid out as
    /// [`super::stack::StackShape::gradient_len`] says: with `C = C_old + M N^T`, `dM = dC N` and
    /// `dN = dC^T M`.
    ///
    /// # Panics
    /// When a slice has another length than its layout says.
    pub fn chain(&self, adapter_gradient: &[f32], gradient: &mut [f32]) {
        assert_eq!(gradient.len(), self.values.len());
        match self.phase {
            Phase::Bases => gradient.copy_from_slice(adapter_gradient),
            Phase::Cores => {
                let (r, t) = (self.rank, self.task_rank);
                let (cores, prompts) = adapter_gradient.split_at(self.sites * r * r);
                let (sites, d_prompts) = gradient.split_at_mut(self.prompts_start());
                d_prompts.copy_from_slice(prompts);
                let slices = sites.chunks_exact_mut(self.site_len().max(1));
                for (index, (dc, out)) in cores.chunks_exact(r * r).zip(slices).enumerate() {
                    let (m, n) = self.factors(index);
                    let (dm, dn) = out.split_at_mut(r * t);
                    let dc = MatRef::new(dc, r, r);
                    matmul(1.0, dc, MatRef::new(n, r, t), 0.0, MatMut::new(dm, r, t));
                    matmul(
                        1.0,
                        dc.t(),
                        MatRef::new(m, r, t),
                        0.0,
                        MatMut::new(dn, r, t),
                    );
                }
            }
        }
    }

    /// What the task adds to the core of each site, empty for the first task.
    pub fn task_cores(&self) -> Vec<TaskCore> {
        match self.phase {
            Phase::Bases => Vec::new(),
            Phase::Cores => (0..self.sites)
                .map(|site| {
                    let (m, n) = self.factors(site);
                    TaskCore {
                        m: m.to_vec(),
                        n: n.to_vec(),
                    }
                })
                .collect(),
        }
    }

    /// Adds the gradient of the drift guard, `strength` times what [`Guard`] says, to the cores in
    /// `adapter_gradient`.
    pub fn add_guard(
        &self,
        base: &Adapters,
        guard: Guard<'_>,
        strength: f32,
        work: &mut [f32],
        gradient: &mut [f32],
    ) {
        if self.phase == Phase::Bases || strength == 0.0 {
            return;
        }
        let r = self.rank;
        let delta = &mut work[..r * r];
        for (index, (site, dc)) in base
            .sites
            .iter()
            .zip(gradient.chunks_exact_mut(r * r))
            .enumerate()
        {
            let (m, n) = self.factors(index);
            delta.fill(0.0);
            self.add_task_core(m, n, delta);
            match guard {
                Guard::Gram => matmul(
                    2.0 * strength,
                    MatRef::new(&site.gram, r, r),
                    MatRef::new(delta, r, r),
                    1.0,
                    MatMut::new(dc, r, r),
                ),
                Guard::Fisher(fisher) => {
                    let fisher = fisher.iter().skip(index * r * r);
                    for ((g, d), f) in dc.iter_mut().zip(&*delta).zip(fisher) {
                        *g += 2.0 * strength * f * d;
                    }
                }
            }
        }
    }

    /// `core += M N^T`.
    fn add_task_core(&self, m: &[f32], n: &[f32], core: &mut [f32]) {
        let (r, t) = (self.rank, self.task_rank);
        let n = MatRef::new(n, r, t).t();
        matmul(1.0, MatRef::new(m, r, t), n, 1.0, MatMut::new(core, r, r));
    }
}

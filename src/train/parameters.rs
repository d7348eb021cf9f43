//! The numbers that a task learns, in one order for the optimiser, and the way between them and the
//! adapters that the blocks see.

use rand::{Rng, RngExt};

use super::adam::Adam;
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
/// prompts. A first task's are the adapters' own, so that there is one copy of them; a later task's
/// are here.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    phase: Phase,
    dim: usize,
    rank: usize,
    /// Rank r_t of this task's M and N.
    task_rank: usize,
    sites: usize,
    /// Numbers in the prompts.
    prompts: usize,
    /// M and N of every site, and the prompts; empty for a first task.
    values: Vec<f32>,
    /// Factor of each column of `M N^T`, `[r_t]`: all ones but while the rank is being selected.
    gates: Vec<f32>,
}

impl Parameters {
    /// The start of a task: `adapters` as they are, M random and N zero, so that nothing changes.
    pub fn new(adapters: &Adapters, phase: Phase, task_rank: usize, rng: &mut impl Rng) -> Self {
        let mut values = Vec::new();
        if phase == Phase::Cores {
            let m = adapters.rank * task_rank;
            // Exactly: a vector that grows takes up to twice what it holds.
            values.reserve_exact(2 * m * adapters.sites.len() + adapters.prompts.len());
            let bound = (3.0 / adapters.rank as f32).sqrt();
            for _ in &adapters.sites {
                values.extend((0..m).map(|_| rng.random_range(-bound..bound)));
                values.extend(std::iter::repeat_n(0.0, m));
            }
            values.extend_from_slice(&adapters.prompts);
        }
        Self {
            phase,
            dim: adapters.dim,
            rank: adapters.rank,
            task_rank,
            sites: adapters.sites.len(),
            prompts: adapters.prompts.len(),
            values,
            gates: vec![1.0; task_rank],
        }
    }

    /// Numbers that are learned.
    pub fn len(&self) -> usize {
        self.prompts_start() + self.prompts
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those that are kept here: all of a later task, none of a first one.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// As [`Parameters::values_mut`].
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// One step of the optimiser. [`Parameters::apply`] shows it to the blocks.
    pub fn update(
        &mut self,
        adapters: &mut Adapters,
        adam: &mut Adam,
        gradient: &[f32],
        rate: impl Fn(usize) -> f32,
    ) {
        match self.phase {
            Phase::Bases => {
                let sites = adapters.sites.iter_mut();
                let sites = sites.flat_map(|site| [site.a.as_mut_slice(), &mut site.b]);
                let learned = sites.chain([adapters.prompts.as_mut_slice()]);
                adam.update_all(learned, gradient, rate);
            }
            Phase::Cores => adam.update(&mut self.values, gradient, rate),
        }
    }

    /// Rank r_t of M and N.
    pub fn task_rank(&self) -> usize {
        self.task_rank
    }

    pub fn gates_mut(&mut self) -> &mut [f32] {
        &mut self.gates
    }

    /// Keeps the first `rank` columns of M and N, each M column multiplied by its gate, which is
    /// then one. Returns whether a value stayed, told by its index before.
    pub fn truncate(&mut self, rank: usize) -> impl Fn(usize) -> bool + use<> {
        let (old, start) = (self.task_rank, self.prompts_start());
        let columns = start * usize::from(self.phase == Phase::Cores);
        let half = self.rank * old;
        let kept = move |i: usize| i >= columns || i % old < rank;
        for i in 0..columns {
            if (i / half).is_multiple_of(2) {
                self.values[i] *= self.gates[i % old];
            }
        }
        let mut index = 0..;
        self.values.retain(|_| index.next().is_some_and(kept));
        self.task_rank = rank.min(old);
        self.gates.truncate(self.task_rank);
        self.gates.fill(1.0);
        kept
    }

    /// Gradient of the gates `[r_t]` from that of the cores in `adapter_gradient`: summed over
    /// sites, `m_k^T dC n_k` for column k.
    pub fn gate_gradient(&self, adapter_gradient: &[f32], d_gates: &mut [f32]) {
        d_gates.fill(0.0);
        let (r, t) = (self.rank, self.task_rank);
        for (index, dc) in adapter_gradient
            .chunks_exact(r * r)
            .take(self.sites)
            .enumerate()
        {
            let (m, n) = self.factors(index);
            for (i, row) in dc.chunks_exact(r).enumerate() {
                for (j, d) in row.iter().enumerate() {
                    for (k, sum) in d_gates.iter_mut().enumerate() {
                        *sum += m[i * t + k] * d * n[j * t + k];
                    }
                }
            }
        }
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

    /// Sets `adapters` to what the blocks should see: `base` with these parameters in it. A first
    /// task's are there already.
    pub fn apply(&self, base: &Adapters, adapters: &mut Adapters) {
        if self.phase == Phase::Bases {
            return;
        }
        for (index, (site, old)) in adapters.sites.iter_mut().zip(&base.sites).enumerate() {
            let (m, n) = self.factors(index);
            site.core.copy_from_slice(&old.core);
            self.add_task_core(m, n, &mut site.core);
        }
        adapters
            .prompts
            .copy_from_slice(&self.values[self.prompts_start()..]);
    }

    /// The gradient of the parameters from that of the adapters, laid out as
    /// [`super::stack::StackShape::gradient_len`] says: with `C = C_old + M N^T`, `dM = dC N` and
    /// `dN = dC^T M`, each column times its gate.
    ///
    /// The bases' is the adapters' own; that of M and N is written to `work`, of
    /// [`Parameters::chain_len`] floats.
    ///
    /// # Panics
    /// When a slice has another length than its layout says.
    pub fn chain<'g>(&self, adapter_gradient: &'g [f32], work: &'g mut [f32]) -> &'g [f32] {
        match self.phase {
            Phase::Bases => adapter_gradient,
            Phase::Cores => {
                let gradient = work;
                assert_eq!(gradient.len(), self.values.len());
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
                    for row in out.chunks_exact_mut(t) {
                        row.iter_mut().zip(&self.gates).for_each(|(d, g)| *d *= g);
                    }
                }
                gradient
            }
        }
    }

    /// Floats that [`Parameters::chain`] works in.
    pub fn chain_len(&self) -> usize {
        match self.phase {
            Phase::Bases => 0,
            Phase::Cores => self.values.len(),
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
    /// `adapter_gradient`, and to the prompts that of `F (P - P_old)^2` summed over their
    /// elements, F the diagonal of their Fisher information.
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
        let prompts = self.values[self.prompts_start()..].iter();
        let moved = prompts.zip(&base.prompts).map(|(now, old)| now - old);
        let d_prompts = &mut gradient[self.sites * r * r..];
        for ((g, d), f) in d_prompts.iter_mut().zip(moved).zip(&base.prompt_fisher) {
            *g += 2.0 * strength * f * d;
        }
    }

    /// `core += M diag(gates) N^T`.
    fn add_task_core(&self, m: &[f32], n: &[f32], core: &mut [f32]) {
        let (r, t) = (self.rank, self.task_rank);
        if self.gates.iter().all(|&gate| gate == 1.0) {
            let n = MatRef::new(n, r, t).t();
            matmul(1.0, MatRef::new(m, r, t), n, 1.0, MatMut::new(core, r, r));
            return;
        }
        for (row, m) in core.chunks_exact_mut(r).zip(m.chunks_exact(t)) {
            for (c, n) in row.iter_mut().zip(n.chunks_exact(t)) {
                let gated = m.iter().zip(n).zip(&self.gates);
                *c += gated.map(|((m, n), g)| m * n * g).sum::<f32>();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::adapt::Projection;

    fn gated() -> (Adapters, Parameters) {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut base = Adapters::new(8, 4, 0..2, &[Projection::Query], 1, &mut rng);
        base.draw_output_bases(&mut rng);
        let mut parameters = Parameters::new(&base, Phase::Cores, 4, &mut rng);
        let draw = |_| rng.random_range(-1.0f32..1.0);
        let values: Vec<f32> = (0..parameters.len()).map(draw).collect();
        parameters.values_mut().copy_from_slice(&values);
        parameters
            .gates_mut()
            .copy_from_slice(&[1.0, 0.8, 0.5, 0.1]);
        (base, parameters)
    }

    /// A loss that is linear in the cores: its gradient is `pull` everywhere.
    fn loss(base: &Adapters, parameters: &Parameters, pull: &[f32]) -> f32 {
        let mut adapters = base.clone();
        parameters.apply(base, &mut adapters);
        let cores = adapters.sites.iter().flat_map(|site| &site.core);
        cores.zip(pull).map(|(c, p)| c * p).sum()
    }

    #[test]
    fn gradients_through_gates_match_central_differences() {
        let (base, parameters) = gated();
        let mut pull: Vec<f32> = (0..2 * 16).map(|i| (i as f32).sin()).collect();
        pull.extend([0.0; 8]);
        let mut gradient = vec![0.0; parameters.len()];
        parameters.chain(&pull, &mut gradient);
        for (i, &analytic) in gradient[..parameters.prompts_start()].iter().enumerate() {
            let (mut up, mut down) = (parameters.clone(), parameters.clone());
            up.values_mut()[i] += 1e-2;
            down.values_mut()[i] -= 1e-2;
            let slope = (loss(&base, &up, &pull) - loss(&base, &down, &pull)) / 2e-2;
            assert!((slope - analytic).abs() < 1e-3, "{i}");
        }
        let mut d_gates = [0.0; 4];
        parameters.gate_gradient(&pull, &mut d_gates);
        for (i, analytic) in d_gates.into_iter().enumerate() {
            let (mut up, mut down) = (parameters.clone(), parameters.clone());
            up.gates_mut()[i] += 1e-2;
            down.gates_mut()[i] -= 1e-2;
            let slope = (loss(&base, &up, &pull) - loss(&base, &down, &pull)) / 2e-2;
            assert!((slope - analytic).abs() < 1e-3, "gate {i}");
        }
    }

    #[test]
    fn truncation_keeps_what_the_first_columns_added() {
        let (base, mut parameters) = gated();
        let mut closed = parameters.clone();
        closed.gates_mut()[2..].fill(0.0);
        let (mut expected, mut found) = (base.clone(), base.clone());
        closed.apply(&base, &mut expected);
        let before = parameters.len();
        let kept = parameters.truncate(2);
        let kept = (0..before).filter(|&i| kept(i)).count();
        parameters.apply(&base, &mut found);
        assert_eq!((parameters.task_rank(), parameters.len()), (2, kept));
        assert_eq!(found.prompts, expected.prompts);
        for (a, b) in found.sites.iter().zip(&expected.sites) {
            let pairs = a.core.iter().zip(&b.core);
            assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}

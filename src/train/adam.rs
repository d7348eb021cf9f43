//! Adam with bias correction (Kingma and Ba, arXiv 1412.6980, algorithm 1) and a cosine schedule.

const BETA1: f32 = 0.9;
/// Shorter than the paper's 0.999: a task is some hundred steps.
const BETA2: f32 = 0.99;
const EPS: f32 = 1e-8;

/// Optimiser state for one flat vector of parameters.
#[derive(Debug)]
pub struct Adam {
    first: Vec<f32>,
    second: Vec<f32>,
    step: i32,
}

impl Adam {
    pub fn new(parameters: usize) -> Self {
        Self {
            first: vec![0.0; parameters],
            second: vec![0.0; parameters],
            step: 0,
        }
    }

    /// Goes on with some of the parameters only, told by their index.
    pub fn keep(&mut self, kept: impl Fn(usize) -> bool) {
        for moments in [&mut self.first, &mut self.second] {
            let mut index = 0..;
            moments.retain(|_| index.next().is_some_and(&kept));
        }
    }

    /// One update of `parameters` against `gradient`; `rate(i)` is the learning rate of element i.
    pub fn update(
        &mut self,
        parameters: &mut [f32],
        gradient: &[f32],
        rate: impl Fn(usize) -> f32,
    ) {
        self.update_all([parameters], gradient, rate);
    }

    /// [`Adam::update`] of parameters that lie in several places, in the gradient's order.
    pub fn update_all<'p>(
        &mut self,
        parameters: impl IntoIterator<Item = &'p mut [f32]>,
        gradient: &[f32],
        rate: impl Fn(usize) -> f32,
    ) {
        self.step = self.step.saturating_add(1);
        let correct1 = 1.0 - BETA1.powi(self.step);
        let correct2 = 1.0 - BETA2.powi(self.step);
        let moments = self.first.iter_mut().zip(&mut self.second);
        let parameters = parameters.into_iter().flatten();
        for (i, ((x, &g), (m, v))) in parameters.zip(gradient).zip(moments).enumerate() {
            *m = BETA1 * *m + (1.0 - BETA1) * g;
            *v = BETA2 * *v + (1.0 - BETA2) * g * g;
            *x -= rate(i) * (*m / correct1) / ((*v / correct2).sqrt() + EPS);
        }
    }
}

/// Cosine decay from 1 to 0 over `total` steps (Loshchilov and Hutter, arXiv 1608.03983, eq. 5)
/// behind a linear warm-up over the first `warmup` steps.
pub fn cosine(step: usize, warmup: usize, total: usize) -> f32 {
    if step < warmup {
        return (step + 1) as f32 / warmup as f32;
    }
    let span = total.saturating_sub(warmup).max(1);
    let progress = ((step - warmup) as f32 / span as f32).min(1.0);
    0.5 * (1.0 + (std::f32::consts::PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_moves_by_the_learning_rate_against_the_sign() {
        let mut x = vec![1.0, -2.0];
        Adam::new(2).update(&mut x, &[0.5, -3.0], |_| 0.1);
        assert!((x[0] - 0.9).abs() < 1e-6 && (x[1] + 1.9).abs() < 1e-6);
    }

    #[test]
    fn what_is_kept_goes_on_as_if_alone() {
        let (mut both, mut alone) = (Adam::new(3), Adam::new(1));
        let (mut x, mut y) = (vec![1.0f32, 2.0, 3.0], vec![2.0f32]);
        both.update(&mut x, &[0.3, 0.7, -0.2], |_| 0.1);
        alone.update(&mut y, &[0.7], |_| 0.1);
        both.keep(|index| index == 1);
        let mut x = vec![x[1]];
        both.update(&mut x, &[-0.1], |_| 0.1);
        alone.update(&mut y, &[-0.1], |_| 0.1);
        assert_eq!(x, y);
    }

    #[test]
    fn a_quadratic_is_minimised() {
        let (mut x, mut adam) = (vec![3.0f32, -5.0], Adam::new(2));
        for step in 0..400 {
            let gradient: Vec<f32> = x.iter().map(|x| 2.0 * (x - 1.0)).collect();
            adam.update(&mut x, &gradient, |_| 0.1 * cosine(step, 5, 400));
        }
        assert!(x.iter().all(|x| (x - 1.0).abs() < 1e-2), "{x:?}");
    }

    #[test]
    fn the_schedule_warms_up_then_falls_to_zero() {
        assert!(cosine(0, 4, 10) < cosine(3, 4, 10));
        assert_eq!(cosine(4, 4, 10), 1.0);
        assert!(cosine(10, 4, 10) < 1e-6 && cosine(99, 4, 10) < 1e-6);
    }
}

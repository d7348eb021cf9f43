//! From the residual stream at a tap to the two vectors the head sees: the class token as it is, and
//! the mean of the patch tokens, each normalised to zero mean and unit variance first.

/// Added to a token's variance, so that a constant token stays finite.
const EPS: f32 = 1e-6;

/// `tokens` `[T, D]` to `pooled` `[2, D]`: the class token, then the mean over the patch tokens,
/// which are all tokens from `first_patch` on.
///
/// # Panics
/// When there is no patch token or a slice has the wrong length.
pub fn pool(tokens: &[f32], dim: usize, first_patch: usize, pooled: &mut [f32]) {
    let (class, mean) = pooled.split_at_mut(dim);
    assert_eq!(mean.len(), dim, "pooled is [2, D]");
    let patches = tokens[first_patch * dim..].chunks_exact(dim);
    let scale = 1.0 / patches.len() as f32;
    assert!(patches.len() > 0, "an image has patches");
    class.copy_from_slice(&tokens[..dim]);
    mean.fill(0.0);
    for token in patches {
        let (centre, rstd) = moments(token);
        let rstd = rstd * scale;
        for (out, x) in mean.iter_mut().zip(token) {
            *out += (x - centre) * rstd;
        }
    }
}

/// Adds to `d_tokens` `[T, D]` the gradient that `d_pooled` `[2, D]` sends back through [`pool`].
pub fn pool_backward(
    tokens: &[f32],
    dim: usize,
    first_patch: usize,
    d_pooled: &[f32],
    d_tokens: &mut [f32],
) {
    let (d_class, d_mean) = d_pooled.split_at(dim);
    d_tokens[..dim]
        .iter_mut()
        .zip(d_class)
        .for_each(|(d, g)| *d += g);
    let patches = tokens[first_patch * dim..].chunks_exact(dim);
    let scale = 1.0 / patches.len() as f32;
    for (token, d_token) in patches.zip(d_tokens[first_patch * dim..].chunks_exact_mut(dim)) {
        normalise_backward(token, d_mean, scale, d_token);
    }
}

/// Mean and reciprocal standard deviation of one token.
fn moments(token: &[f32]) -> (f32, f32) {
    let inverse = 1.0 / token.len() as f32;
    let centre = lane_sum(token, |x| x) * inverse;
    let variance = lane_sum(token, |x| (x - centre) * (x - centre)) * inverse;
    (centre, (variance + EPS).sqrt().recip())
}

/// With y = (x - mean) rstd: dx = rstd (g - mean(g) - y mean(g y)), g = `scale` times `d_out`.
fn normalise_backward(token: &[f32], d_out: &[f32], scale: f32, d_token: &mut [f32]) {
    let inverse = 1.0 / token.len() as f32;
    let (centre, rstd) = moments(token);
    let mean_g = lane_sum(d_out, |g| g) * inverse;
    let products = token
        .iter()
        .zip(d_out)
        .map(|(x, g)| (x - centre) * rstd * g);
    let mean_gy = products.sum::<f32>() * inverse;
    for ((d, x), g) in d_token.iter_mut().zip(token).zip(d_out) {
        *d += scale * rstd * (g - mean_g - (x - centre) * rstd * mean_gy);
    }
}

/// Sum of `f` over `values` in sixteen independent lanes, which the compiler can vectorise and
/// which rounds the same way on every machine.
fn lane_sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = values.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|&x| f(x)).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool_f64(tokens: &[f64], dim: usize, first_patch: usize) -> Vec<f64> {
        let normalise = |t: &[f64]| -> Vec<f64> {
            let mean = t.iter().sum::<f64>() / dim as f64;
            let var = t.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / dim as f64;
            t.iter().map(|x| (x - mean) / (var + 1e-6).sqrt()).collect()
        };
        let mut out = tokens[..dim].to_vec();
        let patches: Vec<Vec<f64>> = tokens[first_patch * dim..]
            .chunks(dim)
            .map(normalise)
            .collect();
        out.extend(
            (0..dim).map(|j| patches.iter().map(|p| p[j]).sum::<f64>() / patches.len() as f64),
        );
        out
    }

    proptest! {
        #[test]
        fn pooling_and_its_gradient_match_the_f64_twin(
            dim in 2usize..40, leading in 1usize..5, patches in 1usize..6, seed in 0u32..1000,
        ) {
            let n = (leading + patches) * dim;
            let noise = |i: usize| ((i as f64 + 1.0) * (f64::from(seed) + 1.7)).sin();
            let x: Vec<f64> = (0..n).map(noise).collect();
            let x32: Vec<f32> = x.iter().map(|&v| v as f32).collect();
            let mut y = vec![0.0; 2 * dim];
            pool(&x32, dim, leading, &mut y);
            for (a, b) in y.iter().zip(pool_f64(&x, dim, leading)) {
                prop_assert!((f64::from(*a) - b).abs() < 1e-3);
            }
            let weights: Vec<f64> = (0..2 * dim).map(|i| noise(i + 7919)).collect();
            let g: Vec<f32> = weights.iter().map(|&v| v as f32).collect();
            let mut dx = vec![0.0; n];
            pool_backward(&x32, dim, leading, &g, &mut dx);
            let loss = |x: &[f64]| -> f64 {
                pool_f64(x, dim, leading).iter().zip(&weights).map(|(a, b)| a * b).sum()
            };
            let scale = dx.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            for i in 0..n {
                let (mut up, mut down) = (x.clone(), x.clone());
                up[i] += 1e-5;
                down[i] -= 1e-5;
                let expected = (loss(&up) - loss(&down)) / 2e-5;
                prop_assert!((f64::from(dx[i]) - expected).abs() < 2e-3 * f64::from(scale), "{i}: {} {expected}", dx[i]);
            }
        }
    }
}

//! How kernels share a large piece of work with threads that have nothing to do.
//!
//! Work is offered to the pool that the caller runs in and taken back where nobody came for it, so
//! that a kernel may be called from one thread of a pool or from all at once. A thread outside any
//! pool works alone. What is computed does not depend on who computes it.

/// Threads that the caller's pool has.
pub(super) fn at_hand() -> usize {
    match rayon::current_thread_index() {
        Some(_) => rayon::current_num_threads(),
        None => 1,
    }
}

/// Runs `work` on consecutive parts of `values`, each of at least `least` elements; it also gets
/// the index of its part's first element, a multiple of 16.
pub(super) fn share(values: &mut [f32], least: usize, work: &(impl Fn(usize, &mut [f32]) + Sync)) {
    let parts = at_hand().min(values.len() / least).max(1);
    part(values, 0, parts, work);
}

fn part(
    values: &mut [f32],
    first: usize,
    parts: usize,
    work: &(impl Fn(usize, &mut [f32]) + Sync),
) {
    if parts < 2 {
        return work(first, values);
    }
    let left = parts / 2;
    let middle = (values.len() * left / parts)
        .next_multiple_of(16)
        .min(values.len());
    let (one, two) = values.split_at_mut(middle);
    rayon::join(
        || part(one, first, left, work),
        || part(two, first + middle, parts - left, work),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_work_reaches_every_element_once() {
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let mut values = vec![0.0; 1003];
            pool.install(|| {
                share(&mut values, 100, &|first, part| {
                    assert!(first.is_multiple_of(16));
                    part.iter_mut()
                        .enumerate()
                        .for_each(|(i, v)| *v += (first + i) as f32);
                });
            });
            assert!(values.iter().enumerate().all(|(i, &v)| v == i as f32));
        }
    }
}

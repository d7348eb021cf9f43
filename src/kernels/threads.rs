//! How kernels share a large piece of work with threads that have nothing to do.
//!
//! Work is offered to the pool that the caller runs in and taken back where nobody came for it, so
//! that a kernel may be called from one thread of a pool or from all at once. A thread outside any
//! pool works alone. What is computed does not depend on who computes it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Threads that the caller's pool has.
pub(super) fn at_hand() -> usize {
    match rayon::current_thread_index() {
        Some(_) => rayon::current_num_threads(),
        None => 1,
    }
}

/// Longest that an idle thread stays awake for more work.
const LINGER: Duration = Duration::from_micros(200);

/// Runs `work` while idle threads of the pool stay awake for what it shares: to wake one takes as
/// long as a small product. A thread without work for [`LINGER`] goes back to sleep.
pub(crate) fn awake<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let done = AtomicBool::new(false);
    let work = || {
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    };
    match at_hand() {
        1 => work(),
        threads => rayon::join(work, || stay(threads - 1, &done)).0,
    }
}

/// Keeps so many threads awake until `done`.
fn stay(threads: usize, done: &AtomicBool) {
    if threads > 1 {
        rayon::join(|| linger(done), || stay(threads - 1, done));
    } else {
        linger(done);
    }
}

fn linger(done: &AtomicBool) {
    let mut idle = Instant::now();
    while !done.load(Ordering::Relaxed) && idle.elapsed() < LINGER {
        match rayon::yield_now() {
            Some(rayon::Yield::Executed) => idle = Instant::now(),
            _ => std::hint::spin_loop(),
        }
    }
}

/// Runs both, the second on another thread where one comes for it, which is then waited for without
/// going to sleep: halves end at nearly the same time, and to be woken takes longer than what is left.
pub(super) fn join(one: impl FnOnce() + Send, two: impl FnOnce() + Send) {
    let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
    rayon::join(
        || {
            one();
            // Where nobody came for the second, `rayon::join` takes it back.
            if begun.load(Ordering::Relaxed) {
                let since = Instant::now();
                while !done.load(Ordering::Relaxed) && since.elapsed() < LINGER {
                    std::hint::spin_loop();
                }
            }
        },
        || {
            begun.store(true, Ordering::Relaxed);
            two();
            done.store(true, Ordering::Relaxed);
        },
    );
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
    join(
        || part(one, first, left, work),
        || part(two, first + middle, parts - left, work),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_work_ends_whoever_stays_awake_for_it() {
        use rayon::prelude::*;
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let sum: usize = pool.install(|| {
                let work = |i| awake(|| rayon::join(|| i, || awake(|| 1)));
                let pairs = (0..100).into_par_iter().map(work);
                pairs.map(|(i, one)| i * one).sum()
            });
            assert_eq!(sum, 4950);
        }
    }

    #[test]
    fn a_long_list_of_work_does_not_pile_up_on_the_stack() {
        use rayon::prelude::*;
        use std::cell::Cell;
        use std::sync::atomic::AtomicUsize;
        thread_local!(static DEPTH: Cell<usize> = const { Cell::new(0) });
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(8)
            .build()
            .unwrap();
        let deepest = AtomicUsize::new(0);
        let work = |_| {
            DEPTH.set(DEPTH.get() + 1);
            deepest.fetch_max(DEPTH.get(), Ordering::Relaxed);
            awake(|| {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_micros(50) {
                    rayon::join(std::hint::spin_loop, std::hint::spin_loop);
                }
            });
            DEPTH.set(DEPTH.get() - 1);
        };
        let list = (0..10_000u32).into_par_iter().with_max_len(1);
        pool.install(|| list.for_each(work));
        // Threads that linger take up other work: what waits for them must not go on without end.
        assert!(deepest.into_inner() < 16);
    }

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

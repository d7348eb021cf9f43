//! Memory that threads share to decode photos in.

use std::sync::{Condvar, Mutex, PoisonError};

/// So many bytes, lent piece by piece.
#[derive(Debug)]
pub(super) struct Window {
    bytes: usize,
    left: Mutex<usize>,
    returned: Condvar,
}

/// A piece of a [`Window`], returned when dropped.
#[derive(Debug)]
pub(super) struct Piece<'w> {
    window: &'w Window,
    bytes: usize,
}

impl Window {
    pub fn new(bytes: usize) -> Self {
        Self {
            bytes,
            left: Mutex::new(bytes),
            returned: Condvar::new(),
        }
    }

    /// All bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Waits until so many bytes are left, and takes them; none where there never will be. A thread
    /// must not ask for a second piece while it holds one.
    pub fn take(&self, bytes: usize) -> Option<Piece<'_>> {
        if bytes > self.bytes {
            return None;
        }
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = self
            .returned
            .wait_while(left, |left| *left < bytes)
            .unwrap_or_else(PoisonError::into_inner);
        *left -= bytes;
        Some(Piece {
            window: self,
            bytes,
        })
    }
}

impl Drop for Piece<'_> {
    fn drop(&mut self) {
        let mut left = self
            .window
            .left
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *left += self.bytes;
        self.window.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn threads_never_hold_more_than_there_is_and_all_get_their_turn() {
        let window = Window::new(10);
        let (held, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (window, held, turns) = (&window, &held, &turns);
                scope.spawn(move || {
                    for turn in 0..200 {
                        let bytes = 1 + (thread * 7 + turn) % 10;
                        let piece = window.take(bytes).unwrap();
                        assert!(held.fetch_add(bytes, Ordering::SeqCst) + bytes <= 10);
                        held.fetch_sub(bytes, Ordering::SeqCst);
                        drop(piece);
                        turns.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(turns.into_inner(), 800);
        assert!(window.take(10).is_some());
    }

    #[test]
    fn more_than_there_ever_is_is_refused_at_once() {
        assert!(Window::new(10).take(11).is_none());
    }
}

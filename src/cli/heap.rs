//! How much heap the program uses, counted by its allocator.

use fledge::eval::PeakHeap;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The program's own heap.
#[derive(Debug, Clone, Copy)]
pub struct Counted;

impl PeakHeap for Counted {
    fn reset(&self) {
        ALLOCATOR.reset_peak_usage();
    }

    fn now(&self) -> usize {
        ALLOCATOR.current_usage()
    }

    fn peak(&self) -> usize {
        ALLOCATOR.peak_usage()
    }
}

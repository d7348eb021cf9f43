//! Evaluation: continual-learning protocols, methods to compare with, and the figures of the
//! papers.
//!
//! A [`Listing`] is what a folder of labelled images holds, and a [`Benchmark`] those images run
//! through the frozen prefix once and cut into tasks. [`evaluate`] lets every method learn its tasks in turn, classifies the test images of all
//! tasks seen so far after each, and reports accuracy, forgetting and cost, averaged over seeds.

mod benchmark;
mod contender;
mod lda;
mod linear;
mod listing;
mod method;
mod metrics;
mod plot;
mod report;
mod run;

pub use benchmark::{Benchmark, Lesson};
pub use listing::{BenchmarkError, Listing, Protocol};
pub use method::{Method, UnknownMethod, Variant};
pub use metrics::Figures;
pub use plot::{PlotError, plot};
pub use report::{Difference, EvalReport, MethodReport, Run};
pub use run::{EvalError, EvalSettings, PeakHeap, evaluate};

//! Evaluation: continual-learning protocols, methods to compare with, and the figures of the
//! papers.
//!
//! A [`Benchmark`] is a folder of labelled images cut into tasks and run through the frozen prefix
//! once. [`evaluate`] lets every method learn its tasks in turn, classifies the test images of all
//! tasks seen so far after each, and reports accuracy, forgetting and cost, averaged over seeds.

mod benchmark;
mod contender;
mod lda;
mod linear;
mod method;
mod metrics;
mod plot;
mod report;
mod run;

pub use benchmark::{Benchmark, BenchmarkError, Protocol};
pub use method::{Method, UnknownMethod, Variant};
pub use metrics::Figures;
pub use plot::{PlotError, plot};
pub use report::{EvalReport, MethodReport, Run};
pub use run::{EvalError, EvalSettings, PeakHeap, evaluate};

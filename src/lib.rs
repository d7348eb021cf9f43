//! fledge teaches a small board new things to recognise, one task after another, and it does not
//! forget the earlier ones.
//!
//! The rooms follow the flow of an image: [`data`] decodes it, [`vit`] runs the frozen blocks,
//! [`train`] runs and adapts the last ones with [`kernels`] and [`adapt`], [`head`] names the
//! class, and [`state`] keeps what was learned. [`camera`] brings pictures as they come, [`board`]
//! tells what the machine is and bears, and [`eval`] compares methods on benchmarks. [`learner`] is
//! the front door:
//!
//! ```no_run
//! use std::path::Path;
//!
//! use fledge::vit::Weights;
//! use fledge::{LearnSettings, Learner, Setup, Silent};
//!
//! let weights = Weights::open(Path::new("vit-s14-focus.weights"))?;
//! let mut learner = Learner::new(weights, "vit-s14-focus", &Setup::default(), 2)?;
//! let report = learner.learn(Path::new("birds"), &LearnSettings::default(), &Silent)?;
//! assert!(report.images > 0);
//!
//! let recogniser = learner.recogniser()?.rejecting(0.05)?;
//! let answer = recogniser.classify(&mut recogniser.session(), Path::new("photo.jpg"))?;
//! assert!(answer.unknown || answer.guesses[0].probability <= 1.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(unsafe_code)]

pub mod adapt;
pub mod board;
pub mod camera;
pub mod data;
pub mod eval;
pub mod head;
#[allow(unsafe_code)]
pub mod kernels;
pub mod learner;
pub mod progress;
pub mod state;
pub mod train;
pub mod vit;

pub use learner::{AdaptBlocks, LearnReport, LearnSettings, Learner, Setup};
pub use progress::{Progress, Silent, Stage};

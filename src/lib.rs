//! fledge teaches a small board new things to recognise, one task after another, and it does not
//! forget the earlier ones.
//!
//! The rooms follow the flow of an image: [`data`] decodes it, [`vit`] runs the frozen blocks,
//! [`train`] runs and adapts the last ones with [`kernels`] and [`adapt`], [`head`] names the
//! class, and [`state`] keeps what was learned. [`learner`] is the front door.

pub mod adapt;
pub mod data;
pub mod head;
pub mod kernels;
pub mod learner;
pub mod progress;
pub mod state;
pub mod train;
pub mod vit;

pub use learner::{AdaptBlocks, LearnReport, LearnSettings, Learner, Setup};
pub use progress::{Progress, Silent, Stage};

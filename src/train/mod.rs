//! (room under construction)

pub mod block;

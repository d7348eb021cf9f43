//! The birds of the demonstration, as data: what a field guide would say about each.
//!
//! Coordinates of a [`Mark`] on the body are in hundredths of a body length, x towards the beak
//! and y down, with the middle of the body at the origin. On the head the unit is the radius of
//! the head and the origin its middle.

mod first_day;
mod second_day;

pub use first_day::FIRST_TASK;
pub use second_day::SECOND_TASK;

/// Red, green, blue, 0 to 255.
pub type Rgb = [u8; 3];

/// One stroke of the field guide: a coloured area or line on a bird.
#[derive(Debug, Clone, Copy)]
pub enum Mark {
    /// An ellipse turned by `turn` degrees; `soft` of its radius (0 to 1) fades out.
    Patch {
        at: [f32; 2],
        radii: [f32; 2],
        turn: f32,
        colour: Rgb,
        soft: f32,
    },
    /// A line from `from` to `to` that bows through `bend`.
    Stripe {
        from: [f32; 2],
        bend: [f32; 2],
        to: [f32; 2],
        width: f32,
        colour: Rgb,
    },
    /// Short dark streaks strewn over an ellipse.
    Streaks {
        at: [f32; 2],
        radii: [f32; 2],
        count: u32,
        colour: Rgb,
    },
}

/// [`Mark::Patch`], short enough for a table.
const fn patch(at: [f32; 2], radii: [f32; 2], turn: f32, colour: Rgb, soft: f32) -> Mark {
    Mark::Patch {
        at,
        radii,
        turn,
        colour,
        soft,
    }
}

/// [`Mark::Stripe`], short enough for a table.
const fn stripe(from: [f32; 2], bend: [f32; 2], to: [f32; 2], width: f32, colour: Rgb) -> Mark {
    Mark::Stripe {
        from,
        bend,
        to,
        width,
        colour,
    }
}

/// [`Mark::Streaks`], short enough for a table.
const fn streaks(at: [f32; 2], radii: [f32; 2], count: u32, colour: Rgb) -> Mark {
    Mark::Streaks {
        at,
        radii,
        count,
        colour,
    }
}

/// How a tail ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TailEnd {
    Square,
    Notched,
    Round,
}

#[derive(Debug, Clone, Copy)]
pub struct Tail {
    /// Hundredths of a body length.
    pub length: f32,
    pub width: f32,
    /// Degrees above the line of the body.
    pub cocked: f32,
    pub end: TailEnd,
    pub colour: Rgb,
}

#[derive(Debug, Clone, Copy)]
pub struct Beak {
    /// Radii of the head.
    pub length: f32,
    pub depth: f32,
    pub colour: Rgb,
}

#[derive(Debug, Clone, Copy)]
pub struct Wing {
    pub colour: Rgb,
    /// Colour of the long flight feathers.
    pub tip: Rgb,
    /// Marks in body coordinates, seen only on the wing.
    pub marks: &'static [Mark],
}

/// A species: its proportions and its plumage.
#[derive(Debug, Clone, Copy)]
pub struct Species {
    /// Also the name of its class folder.
    pub name: &'static str,
    /// Depth of the body, in hundredths of its length.
    pub depth: f32,
    /// Radius of the head, in hundredths of the body length.
    pub head: f32,
    /// Degrees by which it likes to sit upright.
    pub upright: f32,
    /// How large it is next to the others.
    pub size: f32,
    pub back: Rgb,
    pub head_colour: Rgb,
    pub belly: Rgb,
    pub legs: Rgb,
    pub eye_ring: Option<Rgb>,
    pub tail: Tail,
    pub beak: Beak,
    pub wing: Wing,
    pub body_marks: &'static [Mark],
    pub head_marks: &'static [Mark],
}

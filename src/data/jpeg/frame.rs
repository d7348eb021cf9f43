//! What the headers of a JPEG say, and what decoding it takes.

use image::metadata::Orientation;

use super::bits::CHUNK;
use super::plane::Plane;

/// What the headers of a JPEG say, up to the frame's.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub width: usize,
    pub height: usize,
    pub progressive: bool,
    /// Coefficients have to wait for other scans: it is progressive, or its first scan leaves components out.
    pub in_scans: bool,
    /// As the EXIF segment before the frame header says.
    pub orientation: Orientation,
    pub components: heapless::Vec<FrameComponent, 4>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct FrameComponent {
    pub id: u8,
    /// Blocks of a minimum coded unit.
    pub h: usize,
    pub v: usize,
    pub table: usize,
}

impl Frame {
    /// Bytes of all coefficients.
    pub fn coefficients(&self) -> usize {
        let (rows, columns) = self.units();
        let blocks: usize = self.components.iter().map(|c| c.h * c.v).sum();
        2 * 64 * rows * columns * blocks
    }

    /// Whether [`decode`](super::reduced::decode) knows this kind: 8 bits, one or three components of proportions that
    /// cameras write.
    pub fn can_be_reduced(&self) -> bool {
        let (h_max, v_max) = self.largest();
        let fits = |c: &FrameComponent| {
            let (x, y) = (h_max / c.h.max(1), v_max / c.v.max(1));
            c.table < 4
                && c.h * x == h_max
                && c.v * y == v_max
                && x.is_power_of_two()
                && y.is_power_of_two()
        };
        matches!(self.components.len(), 1 | 3)
            && self.width > 0
            && self.height > 0
            && self.components.iter().all(fits)
    }

    pub fn largest(&self) -> (usize, usize) {
        let h = self.components.iter().map(|c| c.h).max().unwrap_or(1);
        let v = self.components.iter().map(|c| c.v).max().unwrap_or(1);
        (h, v)
    }

    /// Rows and columns of minimum coded units.
    pub fn units(&self) -> (usize, usize) {
        let (h, v) = self.largest();
        (self.height.div_ceil(8 * v), self.width.div_ceil(8 * h))
    }

    /// Width and height at `1 / factor`.
    pub fn reduced(&self, factor: usize) -> (usize, usize) {
        (self.width.div_ceil(factor), self.height.div_ceil(factor))
    }

    /// Bytes that decoding at `1 / factor` takes at most, the result included.
    pub fn memory(&self, factor: usize) -> usize {
        let planes = self.planes(factor);
        let (rows, _) = self.units();
        let stored = if self.in_scans { rows } else { 1 };
        let (width, height) = self.reduced(factor);
        let of_planes: usize = planes
            .iter()
            .map(|plane| plane.bytes(stored, self.progressive))
            .sum();
        of_planes + 3 * width * height + FIXED
    }

    pub fn planes(&self, factor: usize) -> heapless::Vec<Plane, 3> {
        let (h_max, v_max) = self.largest();
        let (_, columns) = self.units();
        let kept = 8 / factor;
        let components = self.components.iter().take(3);
        components
            .map(|c| Plane {
                id: c.id,
                h: c.h,
                v: c.v,
                // What is coded at a lower resolution keeps more of its frequencies instead.
                kx: (kept * h_max / c.h).min(8),
                ky: (kept * v_max / c.v).min(8),
                wide: columns * c.h,
                table: c.table,
                quantisation: None,
                kept: Vec::new(),
                seen: Vec::new(),
                samples: Vec::new(),
            })
            .collect()
    }
}

/// Tables, the window on the file and the EXIF segment.
const FIXED: usize = CHUNK + 8 * (2 << 9) + (64 << 10) + 4096;

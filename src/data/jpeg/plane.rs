//! One component of a JPEG: what is kept of its blocks, and the pixels that it becomes.

use std::f64::consts::PI;

use super::bits::Broken;
use super::frame::Frame;

/// Where the k-th coefficient of a block stands, column + 8 * row.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// One component, and what is kept of its blocks.
pub(super) struct Plane {
    pub id: u8,
    pub h: usize,
    pub v: usize,
    /// Frequencies that are kept, and pixels that a block becomes, per axis.
    pub kx: usize,
    pub ky: usize,
    /// Blocks in a row, those of cut-off units included.
    pub wide: usize,
    pub table: usize,
    pub quantisation: Option<[u16; 64]>,
    /// `[blocks, ky, kx]`
    pub kept: Vec<i16>,
    /// Of every block, which coefficients are not zero, in zigzag order; for progressive ones.
    pub seen: Vec<u64>,
    /// Pixels of one row of units, `[v * ky, wide * kx]`.
    pub samples: Vec<u8>,
}

impl Plane {
    pub fn bytes(&self, rows_of_units: usize, progressive: bool) -> usize {
        let blocks = rows_of_units * self.v * self.wide;
        let kept = blocks * (2 * self.kx * self.ky + if progressive { 8 } else { 0 });
        kept + self.v * self.ky * self.wide * self.kx
    }

    pub fn allocate(&mut self, rows_of_units: usize, progressive: bool) {
        let blocks = rows_of_units * self.v * self.wide;
        self.kept = vec![0; blocks * self.kx * self.ky];
        self.seen = vec![0; if progressive { blocks } else { 0 }];
        self.samples = vec![0; self.v * self.ky * self.wide * self.kx];
    }

    pub fn block(&mut self, index: usize) -> &mut [i16] {
        let size = self.kx * self.ky;
        &mut self.kept[index * size..][..size]
    }

    /// Where the k-th coefficient of a block is kept.
    pub fn place(&self, k: usize) -> Option<usize> {
        let at = usize::from(ZIGZAG[k]);
        let (x, y) = (at % 8, at / 8);
        (x < self.kx && y < self.ky).then_some(y * self.kx + x)
    }

    /// Pixels of a row of units from the coefficients of `first` block row on.
    fn render(&mut self, first: usize) -> Result<(), Broken> {
        let table = self
            .quantisation
            .as_ref()
            .ok_or(Broken::Damaged("a component has no pixel data"))?;
        let (kx, ky, wide) = (self.kx, self.ky, self.wide);
        let (across, down) = (basis(kx), basis(ky));
        let mut scale = [0.0f32; 64];
        for (k, &quantum) in table.iter().enumerate() {
            let at = usize::from(ZIGZAG[k]);
            scale[at] = f32::from(quantum);
        }
        for row in 0..self.v {
            for column in 0..wide {
                let block = &self.kept[((first + row) * wide + column) * kx * ky..][..kx * ky];
                let at = |y: usize| (row * ky + y) * wide * kx + column * kx;
                if block[1..].iter().all(|&c| c == 0) {
                    let flat = (f32::from(block[0]) * scale[0] / 8.0 + 128.5).clamp(0.0, 255.0);
                    (0..ky).for_each(|y| self.samples[at(y)..at(y) + kx].fill(flat as u8));
                    continue;
                }
                // Rows of frequencies to columns of pixels, then the other axis.
                let mut half = [[0.0f32; 8]; 8];
                for (v, (line, coefficients)) in
                    half.iter_mut().zip(block.chunks_exact(kx)).enumerate()
                {
                    for (u, &c) in coefficients.iter().enumerate().filter(|(_, c)| **c != 0) {
                        let value = f32::from(c) * scale[8 * v + u];
                        for (sum, weights) in line[..kx].iter_mut().zip(&across) {
                            *sum += weights[u] * value;
                        }
                    }
                }
                for (y, weights) in down[..ky].iter().enumerate() {
                    for (x, pixel) in self.samples[at(y)..at(y) + kx].iter_mut().enumerate() {
                        let sum: f32 = (0..ky).map(|v| weights[v] * half[v][x]).sum();
                        *pixel = (sum + 128.5).clamp(0.0, 255.0) as u8;
                    }
                }
            }
        }
        Ok(())
    }
}

/// `basis[x][u]`: what frequency u of 8 adds to pixel x of k. The orthonormal inverse DCT of k
/// points, times `sqrt(k / 8)`, as the frequencies are those of 8 points.
fn basis(k: usize) -> [[f32; 8]; 8] {
    let mut basis = [[0.0; 8]; 8];
    for (x, row) in basis.iter_mut().take(k).enumerate() {
        for (u, weight) in row.iter_mut().take(k).enumerate() {
            let angle = (2 * x + 1) as f64 * u as f64 * PI / (2 * k) as f64;
            let norm = if u == 0 { 1.0f64 } else { 2.0 };
            *weight = ((norm / 8.0).sqrt() * angle.cos()) as f32;
        }
    }
    basis
}

/// Colours of three components.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    YCbCr,
    Rgb,
}

impl Colours {
    /// Writes the pixels of a row of units, whose coefficients are the `stored`-th.
    pub fn paint(
        self,
        frame: &Frame,
        factor: usize,
        row: usize,
        stored: usize,
        planes: &mut [Plane],
        pixels: &mut [u8],
    ) -> Result<(), Broken> {
        for plane in planes.iter_mut() {
            let first = stored * plane.v;
            plane.render(first)?;
        }
        let (h_max, v_max) = frame.largest();
        let (width, height) = frame.reduced(factor);
        let kept = 8 / factor;
        let top = row * v_max * kept;
        let lines = pixels[3 * width * top..]
            .chunks_exact_mut(3 * width)
            .take((v_max * kept).min(height - top));
        for (y, line) in lines.enumerate() {
            let of = |plane: &Plane, x: usize| {
                let across = x * plane.h * plane.kx / (h_max * kept);
                let down = y * plane.v * plane.ky / (v_max * kept);
                plane.samples[down * plane.wide * plane.kx + across]
            };
            for (x, pixel) in line.chunks_exact_mut(3).enumerate() {
                match planes {
                    [first, second, third] => {
                        let values = [of(first, x), of(second, x), of(third, x)];
                        pixel.copy_from_slice(&match self {
                            Self::Rgb => values,
                            Self::YCbCr => to_rgb(values),
                        });
                    }
                    _ => pixel.fill(of(&planes[0], x)),
                }
            }
        }
        Ok(())
    }
}

/// ITU-T T.871, section 7.
fn to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    [
        y + 1.402 * cr,
        y - 0.344_136 * cb - 0.714_136 * cr,
        y + 1.772 * cb,
    ]
    .map(|value| (value + 0.5).clamp(0.0, 255.0) as u8)
}

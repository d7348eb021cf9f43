//! A component's own scatter as a compact factor, so that it can be removed exactly.
//!
//! The deviations of n images span at most n - 1 directions: with one row per direction, R
//! `[rank, dim]` and `R^T R` the scatter. Householder reflections mix the rows into an upper
//! trapezoid, so no row is one image's deviation, and more than `dim` rows fold back into `dim`.
//! Rows are stored as f16 with a power-of-two scale each: half the bytes, nothing over- or
//! underflows. Whatever rounding does happens before the factor's product enters the shared
//! scatter, hence subtracting the same product later is exact to f32 rounding.

use std::sync::Arc;

use half::f16;
use postcard::Deserializer;
use postcard::de_flavors::Flavor;
use serde::{Deserialize, Serialize};

use super::HeadError;
use crate::data::{CacheError, Shelf};
use crate::kernels::matmul::{MatMut, MatRef, matmul};
use crate::state::StreamError;

/// Rows that may pile up beyond `dim` before they are folded, and the height of a tile of a
/// Gram product.
pub(crate) const TILE: usize = 32;
/// Scaled rows have their largest magnitude in `[2^13, 2^14)`, safely inside f16.
const TOP_EXPONENT: i32 = 13;

/// Scatter factors of one component, one per part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Factor {
    parts: Vec<PartFactor>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct PartFactor {
    /// One power of two a row; its length is the rank.
    scales: Vec<f32>,
    /// Row i holds its columns from i on, as little-endian f16.
    trapezoid: Run,
}

/// Bytes in memory, or on a shelf.
#[derive(Debug, Clone)]
enum Run {
    Held(Vec<u8>),
    Shelved {
        shelf: Arc<Shelf>,
        at: u64,
        bytes: usize,
    },
}

/// Bytes read from a shelf at a time, on the stack; an even number.
const CHUNK: usize = 4096;

impl Run {
    fn len(&self) -> usize {
        match self {
            Self::Held(bytes) => bytes.len(),
            Self::Shelved { bytes, .. } => *bytes,
        }
    }

    /// Hands all bytes to `sees`, an even number at a time.
    fn each(&self, mut sees: impl FnMut(&[u8])) -> Result<(), CacheError> {
        match self {
            Self::Held(bytes) => sees(bytes),
            Self::Shelved { shelf, at, bytes } => {
                let mut chunk = [0; CHUNK];
                for first in (0..*bytes).step_by(CHUNK) {
                    let chunk = &mut chunk[..CHUNK.min(bytes - first)];
                    shelf.read(at + first as u64, chunk)?;
                    sees(chunk);
                }
            }
        }
        Ok(())
    }

    fn to_vec(&self) -> Result<Vec<u8>, CacheError> {
        let mut all = Vec::with_capacity(self.len());
        self.each(|bytes| all.extend_from_slice(bytes))?;
        Ok(all)
    }
}

impl Default for Run {
    fn default() -> Self {
        Self::Held(Vec::new())
    }
}

/// By content; what cannot be read back equals nothing.
impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Held(ours), Self::Held(theirs)) => ours == theirs,
            _ => {
                self.len() == other.len()
                    && matches!((self.to_vec(), other.to_vec()), (Ok(ours), Ok(theirs)) if ours == theirs)
            }
        }
    }
}

impl Factor {
    /// The factor of a component without images or with a single one: rank 0 in every part.
    pub(super) fn empty(parts: usize) -> Self {
        Self {
            parts: vec![PartFactor::default(); parts],
        }
    }

    /// Rows of one part, at most `min(count - 1, dim)`.
    pub fn rank(&self, part: usize) -> usize {
        self.parts[part].scales.len()
    }

    /// Bytes of the stored numbers.
    pub fn bytes(&self) -> usize {
        self.parts
            .iter()
            .map(|p| p.trapezoid.len() + 4 * p.scales.len())
            .sum()
    }

    /// Bytes in memory with the numbers on a shelf.
    pub(super) fn memory_on_shelf(&self) -> usize {
        let of_part = |part: &PartFactor| size_of::<PartFactor>() + 4 * part.scales.len();
        self.parts.iter().map(of_part).sum()
    }

    /// Bytes on shelves.
    pub(super) fn shelved(&self) -> u64 {
        let runs = self.parts.iter().map(|part| &part.trapezoid);
        runs.map(|run| match run {
            Run::Held(_) => 0,
            Run::Shelved { bytes, .. } => *bytes as u64,
        })
        .sum()
    }

    /// Moves what is in memory to a shelf; with `all`, what is on others too.
    pub(super) fn shelve(&mut self, to: &Arc<Shelf>, all: bool) -> Result<(), CacheError> {
        (0..self.parts.len()).try_for_each(|part| self.shelve_part(part, to, all))
    }

    /// Reads what postcard wrote of a factor of `parts` parts, each of which goes to a shelf.
    pub(super) fn deserialize_shelved<'de, F: Flavor<'de>>(
        from: &mut Deserializer<'de, F>,
        parts: usize,
        to: &Arc<Shelf>,
    ) -> Result<Self, StreamError> {
        if usize::deserialize(&mut *from)? != parts {
            return Err(HeadError::Damaged("a factor has the wrong number of parts").into());
        }
        let mut factor = Self::empty(parts);
        for part in 0..parts {
            factor.parts[part] = PartFactor::deserialize(&mut *from)?;
            let shelved = factor.shelve_part(part, to, false);
            shelved.map_err(HeadError::from)?;
        }
        Ok(factor)
    }

    /// [`Factor::shelve`] for one part.
    pub(super) fn shelve_part(
        &mut self,
        part: usize,
        to: &Arc<Shelf>,
        all: bool,
    ) -> Result<(), CacheError> {
        let run = &mut self.parts[part].trapezoid;
        let bytes = run.len();
        let at = match run {
            Run::Held(held) => to.put(held)?,
            Run::Shelved { .. } if all => to.put(&run.to_vec()?)?,
            Run::Shelved { .. } => return Ok(()),
        };
        let shelf = Arc::clone(to);
        *run = Run::Shelved { shelf, at, bytes };
        self.parts[part].scales.shrink_to_fit();
        Ok(())
    }

    pub(super) fn check(&self, parts: usize, dim: usize) -> Result<(), HeadError> {
        if self.parts.len() != parts {
            return Err(HeadError::Damaged("a factor has the wrong number of parts"));
        }
        for part in &self.parts {
            let rank = part.scales.len();
            if rank > dim || part.trapezoid.len() != 2 * trapezoid_len(rank, dim) {
                return Err(HeadError::Damaged("a factor has the wrong size"));
            }
            let mut usable = part.scales.iter().all(|s| s.is_finite());
            part.trapezoid.each(|bytes| {
                let mut values = bytes.chunks_exact(2);
                usable &= values.all(|b| f16::from_le_bytes([b[0], b[1]]).is_finite());
            })?;
            if !usable {
                return Err(HeadError::Damaged(
                    "a factor holds a number that is not finite",
                ));
            }
        }
        Ok(())
    }

    /// Appends the rows of one part to `rows`.
    pub(super) fn unpack(&self, part: usize, rows: &mut Rows) -> Result<(), CacheError> {
        let part = &self.parts[part];
        let (dim, first) = (rows.dim, rows.data.len());
        rows.data.resize(first + part.scales.len() * dim, 0.0);
        let data = &mut rows.data[first..];
        let (mut i, mut j) = (0, 0);
        part.trapezoid.each(|mut bytes| {
            while !bytes.is_empty() {
                // As much of a row as there is.
                let values = (dim - j).min(bytes.len() / 2);
                let (now, later) = bytes.split_at(2 * values);
                let row = &mut data[i * dim + j..][..values];
                for (value, b) in row.iter_mut().zip(now.chunks_exact(2)) {
                    *value = f16::from_le_bytes([b[0], b[1]]).to_f32() * part.scales[i];
                }
                bytes = later;
                j += values;
                if j == dim {
                    i += 1;
                    j = i;
                }
            }
        })
    }

    /// Stores folded rows as the factor of one part and rounds `rows` to what was stored.
    pub(super) fn pack(&mut self, part: usize, rows: &mut Rows) {
        let dim = rows.dim;
        let stored = &mut self.parts[part];
        stored.scales.clear();
        let mut trapezoid = Vec::with_capacity(2 * trapezoid_len(rows.len(), dim));
        for (i, row) in rows.data.chunks_exact_mut(dim).enumerate() {
            let peak = row.iter().fold(0.0f32, |peak, v| peak.max(v.abs()));
            let scale = if peak >= f32::MIN_POSITIVE {
                2.0f32.powi((peak.log2().floor() as i32 - TOP_EXPONENT).max(-126))
            } else {
                1.0
            };
            stored.scales.push(scale);
            for value in &mut row[i..] {
                let rounded = f16::from_f32(*value / scale);
                trapezoid.extend_from_slice(&rounded.to_le_bytes());
                *value = rounded.to_f32() * scale;
            }
        }
        stored.trapezoid = Run::Held(trapezoid);
    }
}

fn trapezoid_len(rank: usize, dim: usize) -> usize {
    rank * dim - rank * rank.saturating_sub(1) / 2
}

/// Rows whose outer products add up to a scatter, `[len, dim]`.
#[derive(Debug)]
pub(super) struct Rows {
    dim: usize,
    data: Vec<f32>,
}

impl Rows {
    pub(super) fn new(dim: usize) -> Self {
        Self {
            dim,
            data: Vec::new(),
        }
    }

    /// With room for as many rows as pile up before they are consumed.
    pub(super) fn with_room(dim: usize) -> Self {
        Self {
            dim,
            data: Vec::with_capacity((TILE + 1) * dim),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.data.len() / self.dim
    }

    pub(super) fn clear(&mut self) {
        self.data.clear();
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        &self.data
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// A new row of zeros at the end.
    pub(super) fn push(&mut self) -> &mut [f32] {
        let start = self.data.len();
        self.data.resize(start + self.dim, 0.0);
        &mut self.data[start..]
    }

    /// The sum of the rows with signs: its outer product is `R^T R` on average over them.
    pub(super) fn mix(&self, mut sign: impl FnMut() -> bool, out: &mut [f32]) {
        out.fill(0.0);
        for row in self.data.chunks_exact(self.dim) {
            let weight = if sign() { 1.0 } else { -1.0 };
            for (sum, v) in out.iter_mut().zip(row) {
                *sum += weight * v;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..][..self.dim]
    }

    /// Whether enough rows have piled up that they should be consumed.
    pub(super) fn full(&self, kept: usize) -> bool {
        self.len() >= kept + TILE
    }

    /// Orthogonal mix into an upper trapezoid of at most `dim` rows; the first `triangular` rows
    /// already have that shape. Householder QR (Golub and Van Loan, Matrix Computations, 5.2)
    /// with the orthogonal matrix never formed.
    pub(super) fn fold(&mut self, triangular: usize) {
        let (dim, rows) = (self.dim, self.len());
        let mut product = vec![0.0f32; dim];
        for k in 0..rows.min(dim) {
            let below = (k + 1).max(triangular)..rows;
            let column = |i: usize| self.data[i * dim + k];
            let tail: f64 = below.clone().map(|i| f64::from(column(i)).powi(2)).sum();
            if tail == 0.0 {
                continue;
            }
            let pivot = f64::from(column(k));
            let norm = (pivot * pivot + tail).sqrt();
            // The reflector is v = (head, column below); the sign avoids cancellation in head.
            let head = pivot + norm.copysign(pivot);
            let tau = 2.0 / (head * head + tail);
            let (upper, lower) = self.data.split_at_mut((k + 1) * dim);
            let top = &mut upper[k * dim + k..];
            let product = &mut product[k..];
            for (p, t) in product.iter_mut().zip(&*top) {
                *p = head as f32 * t;
            }
            for i in below.clone() {
                let row = &lower[(i - k - 1) * dim + k..(i - k) * dim];
                let v = row[0];
                for (p, x) in product.iter_mut().zip(row) {
                    *p += v * x;
                }
            }
            let step = (tau * head) as f32;
            for (t, p) in top.iter_mut().zip(&*product) {
                *t -= step * p;
            }
            for i in below {
                let row = &mut lower[(i - k - 1) * dim + k..(i - k) * dim];
                let step = (tau * f64::from(row[0])) as f32;
                row[0] = 0.0;
                for (x, p) in row[1..].iter_mut().zip(&product[1..]) {
                    *x -= step * p;
                }
            }
        }
        self.data.truncate(rows.min(dim) * dim);
    }

    /// Adds `sign * R^T R` to a packed lower triangle, row by row: `[dim (dim + 1) / 2]`.
    pub(super) fn add_gram(&self, sign: f32, packed: &mut [f32]) {
        self.add_gram_in(sign, packed, &mut vec![0.0; TILE * self.dim]);
    }

    /// The same in a given tile, `[TILE, dim]`.
    pub(super) fn add_gram_in(&self, sign: f32, packed: &mut [f32], tile: &mut [f32]) {
        let (dim, rows) = (self.dim, self.len());
        if rows == 0 {
            return;
        }
        for first in (0..dim).step_by(TILE) {
            let height = TILE.min(dim - first);
            let width = first + height;
            let left = MatRef::strided(&self.data[first..], rows, height, dim).t();
            let right = MatRef::strided(&self.data, rows, width, dim);
            matmul(sign, left, right, 0.0, MatMut::new(tile, height, width));
            for (i, row) in tile.chunks_exact(width).take(height).enumerate() {
                let start = packed_row(first + i);
                let target = &mut packed[start..=start + first + i];
                for (sum, term) in target.iter_mut().zip(row) {
                    *sum += term;
                }
            }
        }
    }
}

/// Where row `i` of a packed lower triangle starts; it has `i + 1` elements.
pub(super) fn packed_row(i: usize) -> usize {
    i * (i + 1) / 2
}

/// Bytes as one run: postcard would spend a variable-length integer on every u16.
mod bytes {
    use serde::de::{Deserialize, Deserializer, Error, Visitor};
    use serde::ser::{Error as _, Serialize, Serializer};

    use super::Run;

    impl Serialize for Run {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self {
                Run::Held(bytes) => serializer.serialize_bytes(bytes),
                Run::Shelved { .. } => {
                    serializer.serialize_bytes(&self.to_vec().map_err(S::Error::custom)?)
                }
            }
        }
    }

    impl<'de> Deserialize<'de> for Run {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_byte_buf(Bytes).map(Run::Held)
        }
    }

    struct Bytes;

    impl Visitor<'_> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a run of bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }
    }
}

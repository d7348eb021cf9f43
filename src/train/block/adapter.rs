//! The low-rank adapter of one projection.

use crate::kernels::matmul::{MatMut, MatRef, matmul};

/// What is learned about one projection: it becomes `h W + bias + ((h A) C) B^T`.
#[derive(Debug, Clone, Copy)]
pub struct Adapter<'a> {
    /// Input basis A, `[D, rank]`.
    pub a: &'a [f32],
    /// Core C, `[rank, rank]`.
    pub c: &'a [f32],
    /// Output basis B, `[D, rank]`.
    pub b: &'a [f32],
    pub rank: usize,
}

/// Adapters of query, key and value, in this order.
pub type Adapters<'a> = [Option<Adapter<'a>>; 3];

/// Where the gradients of one adapter are added; what is `None` is not computed.
#[derive(Debug, Default)]
pub struct AdapterGrad<'a> {
    /// `[D, rank]`
    pub da: Option<&'a mut [f32]>,
    /// `[rank, rank]`
    pub dc: Option<&'a mut [f32]>,
    /// `[D, rank]`
    pub db: Option<&'a mut [f32]>,
}

/// `z = h A` and `u = z C`, both `[rows, rank]`, carved from low_rank: normed `[rows, D]`.
fn low_rank_products<'s>(
    adapter: &Adapter<'_>,
    normed: &[f32],
    low_rank: &'s mut [f32],
) -> (&'s mut [f32], &'s mut [f32]) {
    let dim = adapter.a.len() / adapter.rank;
    let len = normed.len() / dim * adapter.rank;
    assert!(
        2 * len <= low_rank.len(),
        "an adapter's rank is above the block shape's"
    );
    let (z, u) = low_rank[..2 * len].split_at_mut(len);
    let (rows, rank) = (normed.len() / dim, adapter.rank);
    let (h, a) = (
        MatRef::new(normed, rows, dim),
        MatRef::new(adapter.a, dim, rank),
    );
    matmul(1.0, h, a, 0.0, MatMut::new(z, rows, rank));
    let c = MatRef::new(adapter.c, rank, rank);
    matmul(
        1.0,
        MatRef::new(z, rows, rank),
        c,
        0.0,
        MatMut::new(u, rows, rank),
    );
    (z, u)
}

/// `out += ((h A) C) B^T`: normed, out `[rows, D]`; low_rank `[2 rows, rank]`.
pub(super) fn adapter_forward(
    adapter: &Adapter<'_>,
    normed: &[f32],
    out: MatMut<'_>,
    low_rank: &mut [f32],
) {
    let rank = adapter.rank;
    let (_, u) = low_rank_products(adapter, normed, low_rank);
    let u = MatRef::new(u, u.len() / rank, rank);
    let b = MatRef::new(adapter.b, adapter.b.len() / rank, rank);
    matmul(1.0, u, b.t(), 1.0, out);
}

/// The gradients of one adapter: with `d_u = d_out B` and `d_z = d_u C^T`, `dB += d_out^T u`,
/// `dC += z^T d_u`, `dA += h^T d_z`, and `d_normed += d_z A^T` where it is wanted.
///
/// normed, d_out, d_normed `[rows, D]`; low_rank `[2 rows, rank]`.
pub(super) fn adapter_backward(
    adapter: &Adapter<'_>,
    normed: &[f32],
    d_out: MatRef<'_>,
    grad: &mut AdapterGrad<'_>,
    d_normed: Option<&mut [f32]>,
    low_rank: &mut [f32],
) {
    let (rows, dim, rank) = (d_out.rows(), d_out.cols(), adapter.rank);
    let (z, u) = low_rank_products(adapter, normed, low_rank);
    if let Some(db) = grad.db.as_deref_mut() {
        let u = MatRef::new(u, rows, rank);
        matmul(1.0, d_out.t(), u, 1.0, MatMut::new(db, dim, rank));
    }
    let d_u = u;
    let b = MatRef::new(adapter.b, dim, rank);
    matmul(1.0, d_out, b, 0.0, MatMut::new(d_u, rows, rank));
    let d_u = MatRef::new(d_u, rows, rank);
    if let Some(dc) = grad.dc.as_deref_mut() {
        let z = MatRef::new(z, rows, rank);
        matmul(1.0, z.t(), d_u, 1.0, MatMut::new(dc, rank, rank));
    }
    let d_z = z;
    let c = MatRef::new(adapter.c, rank, rank);
    matmul(1.0, d_u, c.t(), 0.0, MatMut::new(d_z, rows, rank));
    let d_z = MatRef::new(d_z, rows, rank);
    if let Some(da) = grad.da.as_deref_mut() {
        let h = MatRef::new(normed, rows, dim);
        matmul(1.0, h.t(), d_z, 1.0, MatMut::new(da, dim, rank));
    }
    if let Some(d_normed) = d_normed {
        let a = MatRef::new(adapter.a, dim, rank);
        matmul(1.0, d_z, a.t(), 1.0, MatMut::new(d_normed, rows, dim));
    }
}

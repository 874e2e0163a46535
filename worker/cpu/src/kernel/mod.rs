//! The inner loops: decoding a weight row, dot products, and a scaled sum; one file for each level.
//!
//! A dot product of length n has one order of summation for each level, however many right-hand sides share the call.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod scalar;

use crate::buffer::StoredRow;
use crate::level::Level;

/// Right-hand sides that one pass over a weight row serves.
pub(crate) const GROUP: usize = 4;

/// Index keys that are scored together.
pub(crate) const SCORED: usize = 32;

/// The kernels of a level that this machine has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels(Level);

impl Kernels {
    /// `None` if the machine cannot run the level.
    pub(crate) fn new(level: Level) -> Option<Self> {
        level.is_available().then_some(Self(level))
    }

    /// The best kernels of this machine.
    pub(crate) fn detect() -> Self {
        Self(Level::detect())
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }

    /// Decodes a stored row to f32, exactly. `out` has as many elements as the row.
    pub(crate) fn decode(self, row: StoredRow<'_>, out: &mut [f32]) {
        assert_eq!(row.cols, out.len(), "columns of a weight row");
        match self.0 {
            Level::Scalar => scalar::decode(row, out),
            // SAFETY: `new` has checked that the machine has the level.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::decode(row, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::decode(row, out) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => scalar::decode(row, out),
        }
    }

    /// `w · x_i` for each x.
    pub(crate) fn dots<const N: usize>(self, w: &[f32], x: [&[f32]; N]) -> [f32; N] {
        assert!(x.iter().all(|x| x.len() == w.len()), "length of a dot product");
        match self.0 {
            Level::Scalar => scalar::dots(w, x),
            // SAFETY: `new` has checked the level; all slices have the length of w.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::dots(w, x) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::dots(w, x) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => scalar::dots(w, x),
        }
    }

    /// `out[i] = w · x_i` for any number of right-hand sides; `x(i)` gives them.
    pub(crate) fn dot_all<'a>(
        self,
        w: &[f32],
        count: usize,
        x: impl Fn(usize) -> &'a [f32],
        out: &mut [f32],
    ) {
        let mut i = 0;
        while i + GROUP <= count {
            let dots: [f32; GROUP] = self.dots(w, std::array::from_fn(|j| x(i + j)));
            out[i..i + GROUP].copy_from_slice(&dots);
            i += GROUP;
        }
        for i in i..count {
            [out[i]] = self.dots(w, [x(i)]);
        }
    }

    /// `y += a · x`.
    pub(crate) fn add_scaled(self, a: f32, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "length of a scaled sum");
        match self.0 {
            Level::Scalar => scalar::add_scaled(a, x, y),
            // SAFETY: `new` has checked the level; the lengths are equal.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::add_scaled(a, x, y) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::add_scaled(a, x, y) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => scalar::add_scaled(a, x, y),
        }
    }

    /// Scores of [`SCORED`] index keys for one query: Σ_h relu(q_h · key) · weight_h, heads in order. `q` is
    /// `[heads, width]`, `keys` `[width, SCORED]`. A score has the same bits in any column.
    pub(crate) fn index_scores(self, q: &[f32], weights: &[f32], keys: &[f32], scores: &mut [f32; SCORED]) {
        assert!(
            keys.len().is_multiple_of(SCORED) && q.len() == weights.len() * (keys.len() / SCORED),
            "shape of index scores"
        );
        match self.0 {
            Level::Scalar => scalar::index_scores(q, weights, keys, scores),
            // SAFETY: `new` has checked the level; the lengths fit together.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::index_scores(q, weights, keys, scores) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::index_scores(q, weights, keys, scores) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => scalar::index_scores(q, weights, keys, scores),
        }
    }
}

#[cfg(test)]
mod tests;

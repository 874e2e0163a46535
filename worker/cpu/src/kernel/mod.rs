//! The inner loops: decoding a weight row, dot products, attention and index scores; a file for each level, or for what it can do
//! well.
//!
//! A dot product of length n has one order of summation for each level, however many right-hand sides share the call.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod elementwise;
#[cfg(target_arch = "x86_64")]
mod heads;
#[cfg(target_arch = "x86_64")]
mod pack;
pub(crate) mod scalar;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tile_bf16;
#[cfg(target_arch = "x86_64")]
mod tile_f32;

use belay_backend::Format;

use crate::buffer::StoredRow;
use crate::level::{Level, Vectors};
use crate::ops::activation;
use crate::panel::{self, Layout, Line, Order, Panel};
use crate::products::Products;

/// Right-hand sides that one pass over a weight row serves.
pub(crate) const GROUP: usize = 4;

/// Index keys that are scored together.
pub(crate) const SCORED: usize = 32;

/// The kernels of a level that this machine has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    level: Level,
    products: Products,
}

/// Weight rows of one call of `row_products` at most.
pub(crate) const BLOCK: usize = tile::BLOCK;

/// Room for weight rows that are decoded.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    values: Vec<f32>,
    room: tile::Room,
}

impl Kernels {
    /// `None` if the machine cannot run the level.
    pub(crate) fn new(level: Level) -> Option<Self> {
        level.is_available().then_some(Self { level, products: Products::default() })
    }

    /// The best kernels of this machine.
    pub(crate) fn detect() -> Self {
        Self { level: Level::detect(), products: Products::default() }
    }

    pub(crate) fn with_products(self, products: Products) -> Self {
        Self { products, ..self }
    }

    pub(crate) fn level(self) -> Level {
        self.level
    }

    pub(crate) fn products(self) -> Products {
        self.products
    }

    /// How the inputs of weights of a format are to be laid out for `row_products`.
    pub(crate) fn layout(self, format: Format) -> Layout {
        let rounded = self.products == Products::Bf16 && format != Format::F32;
        let halves = rounded && self.level >= Level::Avx512Bf16;
        let order = match format {
            // a tile has each weight's columns in their order
            _ if halves && self.level == Level::AmxBf16 => Order::Natural,
            Format::Fp4 if halves => Order::Strided(4),
            Format::Fp8 if halves => Order::Interleaved,
            Format::Fp4 if self.level >= Level::Avx512 => Order::Strided(8),
            _ => Order::Natural,
        };
        Layout { order, halves, rounded }
    }

    /// Lays out a row of inputs.
    pub(crate) fn pack(self, layout: Layout, from: &[f32], to: &mut [Line]) {
        #[cfg(target_arch = "x86_64")]
        if self.level >= Level::Avx512 {
            // SAFETY: `new` has checked the level; only one that has bf16 products lays out halves.
            return unsafe {
                if layout.halves { pack::halves(layout, from, to) } else { pack::singles(layout, from, to) }
            };
        }
        panel::pack(layout, from, to);
    }

    /// `out[r · count + i]` = product of row r with row `at(i)` of the panel, for `count` rows of it. There are at most [`BLOCK`]
    /// rows, all of one format and as wide as the panel, whose layout is that of the format. A product has the same bits beside
    /// any others.
    pub(crate) fn row_products(
        self,
        rows: &[StoredRow<'_>],
        panel: &Panel,
        count: usize,
        at: impl Fn(usize) -> usize,
        decoded: &mut Decoded,
        out: &mut [f32],
    ) {
        let Some(format) = rows.first().map(|row| row.format).filter(|_| count > 0) else { return };
        assert!(out.len() == rows.len() * count, "products of a block");
        assert!(panel.layout() == Some(self.layout(format)), "layout of a panel");
        assert!(rows.iter().all(|row| row.format == format && row.cols == panel.cols()), "rows of a product");
        #[cfg(target_arch = "x86_64")]
        if format != Format::F32 && self.level >= Level::Avx512 {
            let x = |i: usize| panel.row(at(i));
            let room = &mut decoded.room;
            // SAFETY: `layout` gives halves only for levels that have bf16 products, and `new` has checked the level.
            return unsafe {
                match panel.layout() {
                    Some(layout) if layout.halves && self.level == Level::AmxBf16 => {
                        amx::products::<amx::Hardware>(rows, count, &x, room, out);
                    }
                    Some(layout) if layout.halves => tile_bf16::products(rows, count, &x, room, out),
                    _ => tile_f32::products(rows, count, &x, room, out),
                }
            };
        }
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(count)) {
            let weights: &[f32] = match row.as_f32() {
                Some(row) => row,
                None => {
                    decoded.values.resize(row.cols, 0.0);
                    self.decode(*row, &mut decoded.values);
                    &decoded.values
                }
            };
            self.dot_all(weights, count, |i| panel.plain(at(i)), out);
        }
    }

    /// Decodes a stored row to f32, exactly. `out` has as many elements as the row.
    pub(crate) fn decode(self, row: StoredRow<'_>, out: &mut [f32]) {
        assert_eq!(row.cols, out.len(), "columns of a weight row");
        match self.level.vectors() {
            Vectors::Scalar => scalar::decode(row, out),
            // SAFETY: `new` has checked that the machine has the level.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => unsafe { avx2::decode(row, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => unsafe { avx512::decode(row, out) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => scalar::decode(row, out),
        }
    }

    /// `w · x_i` for each x.
    pub(crate) fn dots<const N: usize>(self, w: &[f32], x: [&[f32]; N]) -> [f32; N] {
        assert!(x.iter().all(|x| x.len() == w.len()), "length of a dot product");
        match self.level.vectors() {
            Vectors::Scalar => scalar::dots(w, x),
            // SAFETY: `new` has checked the level; all slices have the length of w.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => unsafe { avx2::dots(w, x) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => unsafe { avx512::dots(w, x) },
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

    /// `out[h · keys + i] = q_h · key_i` for the heads of `q`, `[heads, width]`; keys are the parts of `base` that begin at
    /// `places`. What a head gets has the same bits beside any others, and for a key in any place.
    pub(crate) fn scores(self, q: &[f32], width: usize, base: &[f32], places: &[usize], out: &mut [f32]) {
        if places.is_empty() {
            return;
        }
        assert!(lie_inside(places, width, base), "keys of scores");
        assert!(
            q.len().is_multiple_of(width) && out.len() == q.len() / width * places.len(),
            "scores of heads"
        );
        let heads = q.chunks_exact(width).zip(out.chunks_exact_mut(places.len()));
        match self.level.vectors() {
            // SAFETY: `new` has checked the level; the lengths fit together.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => unsafe { heads.for_each(|(q, out)| avx2::dots_at(q, base, places, out)) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => unsafe { heads::scores(q, width, base, places, out) },
            _ => heads.for_each(|(q, out)| scalar::dots_at(q, base, places, out)),
        }
    }

    /// Turns the scores of one head into weights: softmax of `scale` times each, with `sink` as one more that is not kept.
    pub(crate) fn softmax(self, scores: &mut [f32], scale: f32, sink: f32) {
        match self.level.vectors() {
            // SAFETY: `new` has checked that the machine has the level.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => unsafe { elementwise::softmax(scores, scale, sink) },
            _ => scalar::softmax(scores, scale, sink),
        }
    }

    /// `gate[i] = silu(min(gate[i], limit)) · clamp(up[i], ±limit)`. A result has the same bits in any place.
    pub(crate) fn gated(self, gate: &mut [f32], up: &[f32], limit: f32) {
        assert_eq!(gate.len(), up.len(), "gate and up");
        match self.level.vectors() {
            // SAFETY: `new` has checked that the machine has the level.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => unsafe { elementwise::gated(gate, up, limit) },
            _ => gate.iter_mut().zip(up).for_each(|(gate, &up)| *gate = activation::gated(*gate, up, limit)),
        }
    }

    /// `out[h, :] = Σ_i weights[h · keys + i] · key_i`, in order, for the heads of `out`, `[heads, width]`. What a head gets has
    /// the same bits beside any others.
    pub(crate) fn values(
        self,
        weights: &[f32],
        width: usize,
        base: &[f32],
        places: &[usize],
        out: &mut [f32],
    ) {
        if places.is_empty() {
            return out.fill(0.0);
        }
        assert!(lie_inside(places, width, base), "keys of values");
        assert!(
            out.len().is_multiple_of(width) && weights.len() == out.len() / width * places.len(),
            "weights of heads"
        );
        let heads = weights.chunks_exact(places.len()).zip(out.chunks_exact_mut(width));
        match self.level.vectors() {
            // SAFETY: `new` has checked the level; the lengths fit together.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => unsafe {
                heads.for_each(|(weights, out)| avx2::weighted_sum(weights, base, places, out));
            },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => unsafe { heads::values(weights, width, base, places, out) },
            _ => heads.for_each(|(weights, out)| scalar::weighted_sum(weights, base, places, out)),
        }
    }

    /// `[SCORED, width]` to `[width, SCORED]`.
    pub(crate) fn transpose(self, keys: &[f32], width: usize, to: &mut [f32]) {
        match self.level.vectors() {
            // SAFETY: `new` has checked that the machine has the level.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => unsafe { heads::transpose::<SCORED>(keys, width, to) },
            _ => {
                for (column, key) in keys.chunks_exact(width).enumerate() {
                    for (channel, &value) in key.iter().enumerate() {
                        to[channel * SCORED + column] = value;
                    }
                }
            }
        }
    }

    /// Scores of [`SCORED`] index keys for one query: Σ_h relu(q_h · key) · weight_h, heads in order. `q` is
    /// `[heads, width]`, `keys` `[width, SCORED]`. A score has the same bits in any column.
    pub(crate) fn index_scores(self, q: &[f32], weights: &[f32], keys: &[f32], scores: &mut [f32; SCORED]) {
        assert!(
            keys.len().is_multiple_of(SCORED) && q.len() == weights.len() * (keys.len() / SCORED),
            "shape of index scores"
        );
        match self.level.vectors() {
            Vectors::Scalar => scalar::index_scores(q, weights, keys, scores),
            // SAFETY: `new` has checked the level; the lengths fit together.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => unsafe { avx2::index_scores(q, weights, keys, scores) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => unsafe { avx512::index_scores(q, weights, keys, scores) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => scalar::index_scores(q, weights, keys, scores),
        }
    }
}

/// Whether `base` holds `len` elements from each place on.
fn lie_inside(places: &[usize], len: usize, base: &[f32]) -> bool {
    base.len().checked_sub(len).is_some_and(|last| places.iter().all(|&place| place <= last))
}

#[cfg(test)]
mod tests;

//! Weights in the order that tiles want.

use super::super::heads;
use super::super::tile::Row;
use super::super::tile_bf16::in_order;
use super::{SIDE, STEP, WEIGHT_LINES};
use crate::panel::{CHUNK, Line};

/// Steps of a chunk.
const STEPS: usize = CHUNK / STEP;

/// For each step two tiles of 16 weight rows: line p of a tile has columns 2p and 2p + 1 of each of its rows. Rows and columns that
/// are not there are zeros.
///
/// # Safety
/// Each row points to `cols` columns of the format, and to their scales.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
pub(super) unsafe fn pack<const F: u8>(rows: &[Row], cols: usize, scaled: bool, to: &mut [Line]) {
    let (low, high) = rows.split_at(rows.len().min(SIDE));
    for (tile, rows) in [low, high].into_iter().enumerate() {
        let mut by_row = [[Line::default(); SIDE]; STEPS];
        for (chunk, to) in to.chunks_exact_mut(STEPS * WEIGHT_LINES).enumerate() {
            for (r, row) in rows.iter().enumerate() {
                // SAFETY: by this function's promise.
                let values = unsafe { in_order::<F>(*row, chunk, cols, scaled) };
                for (lines, value) in by_row.iter_mut().zip(values) {
                    // SAFETY: both are 64 bytes, and aligned so.
                    unsafe {
                        std::ptr::from_mut(&mut lines[r]).cast::<std::arch::x86_64::__m512i>().write(value)
                    };
                }
            }
            for (lines, to) in by_row.iter().zip(to.chunks_exact_mut(WEIGHT_LINES)) {
                // a pair of columns is as wide as an f32
                let to = bytemuck::cast_slice_mut(&mut to[tile * SIDE..][..SIDE]);
                heads::transpose::<SIDE>(bytemuck::cast_slice(lines), SIDE, to);
            }
        }
    }
}

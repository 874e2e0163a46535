//! A model of the tiles that any machine can run.
//!
//! What is assumed of TDPBF16PS is what Intel documents: sums of even columns and of odd ones are made apart, from zero, each by
//! fused multiply-adds in order; then the two are added, and their sum to what the tile had. All is f32, rounded to nearest even,
//! and subnormal numbers count as zero whether they go in or come out.

use belay_backend::dtype::bf16_to_f32;

use super::{Inputs, SIDE, STEP, Sums, Tiles, WEIGHT_LINES};
use crate::panel::Line;

pub(super) struct Twin;

impl Tiles for Twin {
    unsafe fn sums(groups: [Inputs; 2], weights: *const Line, steps: usize, sums: &mut Sums) {
        // what must not be used
        sums.fill(bytemuck::cast([f32::NAN; SIDE]));
        let two_tiles = |group| [(group, 0), (group, 1)];
        for (group, tile) in [0, 1].into_iter().flat_map(two_tiles) {
            let inputs = groups[group];
            for i in 0..inputs.count {
                let mut row = [0.0; SIDE];
                for step in 0..steps {
                    let at = inputs.first.wrapping_add_signed(i.cast_signed() * inputs.stride);
                    // SAFETY: by the caller's promise, the line and the tile are there.
                    let (input, weights) = unsafe {
                        let input = std::ptr::with_exposed_provenance::<Line>(at).add(step);
                        let weights = weights.add(step * WEIGHT_LINES + tile * SIDE);
                        (&*input, std::slice::from_raw_parts(weights, SIDE))
                    };
                    multiply(bytemuck::cast_ref(input), bytemuck::cast_slice(weights), &mut row);
                }
                sums[(2 * group + tile) * SIDE + i] = bytemuck::cast(row);
            }
        }
    }
}

/// One row of the instruction: a row of inputs with a tile of weights, to a row of sums.
pub(super) fn multiply(inputs: &[u16; STEP], weights: &[u16], sums: &mut [f32; SIDE]) {
    let value = |bits: u16| flushed(bf16_to_f32(bits));
    for (n, sum) in sums.iter_mut().enumerate() {
        let mut parts = [0f32; 2];
        for (pair, weights) in inputs.chunks_exact(2).zip(weights.chunks_exact(STEP)) {
            for (part, half) in parts.iter_mut().zip(0..) {
                *part = flushed(value(pair[half]).mul_add(value(weights[2 * n + half]), *part));
            }
        }
        *sum = flushed(flushed(*sum) + flushed(parts[0] + parts[1]));
    }
}

fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

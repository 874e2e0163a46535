//! Simulated quantisation, for the mode that repeats the published code's roundings.

use belay_backend::dtype::{E2M1, E4M3, f32_to_e2m1, f32_to_e4m3, pow2_ceil};

/// Smallest magnitude that a block's scale is made for.
pub(crate) const E4M3_FLOOR: f32 = 1e-4;
/// Largest e4m3 value.
pub(crate) const E4M3_MAX: f32 = 448.0;
const E2M1_MAX: f32 = 6.0;
/// 6 · 2^−126
const E2M1_FLOOR: f32 = 6.0 * f32::MIN_POSITIVE;
/// Channels that share a scale in e2m1.
const E2M1_BLOCK: usize = 32;

/// Largest absolute value.
pub(crate) fn magnitude(block: &[f32]) -> f32 {
    block.iter().fold(0.0, |max, x| x.abs().max(max))
}

/// e4m3 and back, in blocks that share the scale 2^ceil(log2(max(|x|max, 1e-4) / 448)).
pub(crate) fn e4m3(x: &mut [f32], block: usize) {
    for block in x.chunks_mut(block) {
        let scale = pow2_ceil(magnitude(block).max(E4M3_FLOOR) / E4M3_MAX);
        for x in block {
            *x = E4M3[f32_to_e4m3(*x / scale) as usize] * scale;
        }
    }
}

/// Orthonormal Hadamard transform in natural order; the length is a power of two.
pub(crate) fn hadamard(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = (x.len() as f32).sqrt().recip();
    for x in x {
        *x *= scale;
    }
}

/// e2m1 and back, in blocks of 32 that share the scale 2^ceil(log2(max(|x|max, 6·2^−126) / 6)).
pub(crate) fn e2m1(x: &mut [f32]) {
    for block in x.chunks_mut(E2M1_BLOCK) {
        let scale = pow2_ceil(magnitude(block).max(E2M1_FLOOR) / E2M1_MAX);
        for x in block {
            *x = E2M1[f32_to_e2m1(*x / scale) as usize] * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn two_hadamard_transforms_cancel(x in prop::collection::vec(-10f32..10.0, 32)) {
            let mut twice = x.clone();
            hadamard(&mut twice);
            hadamard(&mut twice);
            prop_assert!(x.iter().zip(&twice).all(|(a, b)| (a - b).abs() < 1e-5));
        }

        #[test]
        fn rounding_is_idempotent_and_close(x in prop::collection::vec(-10f32..10.0, 1..100)) {
            let mut once = x.clone();
            e4m3(&mut once, 64);
            let mut again = once.clone();
            e4m3(&mut again, 64);
            prop_assert_eq!(&once, &again);
            // three mantissa bits, or half of the smallest subnormal step of the block
            prop_assert!(x.iter().zip(&once).all(|(a, b)| (a - b).abs() <= a.abs() / 16.0 + 10.0 / 448.0 / 256.0));
        }
    }

    #[test]
    fn hadamard_has_natural_order() {
        let mut x = [1.0, 2.0, 3.0, 4.0];
        hadamard(&mut x);
        assert_eq!(x, [5.0, -1.0, -2.0, 0.0]);
    }

    #[test]
    fn e2m1_uses_one_scale_for_32_channels() {
        let mut x = [0.3; 64];
        x[0] = 6.0;
        e2m1(&mut x);
        // 0.3 is nearer to 0.5 than to 0
        assert_eq!((x[0], x[1]), (6.0, 0.5));
        // 0.3 / 2^-4 = 4.8, between 4 and 6
        assert_eq!(x[32], 0.25);
    }
}

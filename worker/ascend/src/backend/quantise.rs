//! Weights in 8 and 4 bits: `w ≈ q · s`, symmetric, `s` for a part of an output channel.
//!
//! Where all values of the part are few multiples of one power of two, that is `s`, and nothing is lost. MXFP4 has multiples
//! of half a block's scale up to 12, so in INT8 blocks whose exponents differ by 3 at most are exact: 12 · 2³ ≤ 127. Else
//! `s` is the largest magnitude by the largest code, and a value is off by half of `s` at most.

use belay_backend::dtype::{bf16_to_f32, f32_to_bf16};

/// Inputs that share a scale in INT4: what the grouped product takes.
pub(super) const INT4_GROUP: usize = 256;
/// Inputs of an INT4 product, at most.
pub(super) const INT4_MOST_INPUTS: usize = 18432;
/// Outputs of an INT4 product come in multiples of this.
pub(super) const INT4_OUTPUTS: usize = 8;

/// Quantises an output channel to INT8. Its scale, which is given, is a bf16: products with results in bf16 want that.
pub(super) fn int8(values: &[f32], codes: &mut [i8]) -> f32 {
    let scale = scale_of(values, 127.0, |scale| bf16_to_f32(f32_to_bf16(scale)));
    encode(values, scale, 127.0, codes);
    scale
}

/// Quantises a part of an output channel to INT4. Its scale is given.
pub(super) fn int4(values: &[f32], codes: &mut [i8]) -> f32 {
    let least = scale_of(values, 7.0, |scale| scale);
    // 6 is the largest value of MXFP4: with it as the largest code, more of the others are hit
    let other = least * (7.0 / 6.0);
    let loss = |scale: f32| -> f64 {
        let error = |value: &f32| f64::from(value - (value / scale).round_ties_even() * scale);
        values.iter().map(|value| error(value).powi(2)).sum()
    };
    let scale = if loss(other) < loss(least) { other } else { least };
    encode(values, scale, 7.0, codes);
    scale
}

fn encode(values: &[f32], scale: f32, most: f32, codes: &mut [i8]) {
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value / scale).round_ties_even().clamp(-most, most) as i8;
    }
}

/// The scale with which the largest of the values gets the code `most`, or a larger one with which all are exact.
fn scale_of(values: &[f32], most: f32, rounded: impl Fn(f32) -> f32) -> f32 {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 {
        return 1.0;
    }
    let lowest_bits = values.iter().filter(|value| **value != 0.0).map(|value| lowest_bit(*value));
    let unit = lowest_bits.fold(f32::INFINITY, f32::min);
    if unit >= f32::MIN_POSITIVE && largest / unit <= most {
        return unit;
    }
    rounded(largest / most).max(f32::MIN_POSITIVE)
}

/// The largest power of two of which a number other than 0 is a multiple.
fn lowest_bit(value: f32) -> f32 {
    let bits = value.to_bits();
    let mantissa = (bits & 0x007f_ffff) | if bits & 0x7f80_0000 == 0 { 0 } else { 0x0080_0000 };
    let exponent = ((bits >> 23) & 0xff).max(1) as i32 - 150 + mantissa.trailing_zeros() as i32;
    if exponent < -126 { 0.0 } else { f32::from_bits(((exponent + 127) as u32) << 23) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_backend::dtype::E2M1;
    use proptest::prelude::*;

    fn check(values: &[f32], codes: &[i8], scale: f32, most: i8) -> Result<(), TestCaseError> {
        for (value, code) in values.iter().zip(codes) {
            prop_assert!((-most..=most).contains(code));
            let error = (f64::from(*value) - f64::from(*code) * f64::from(scale)).abs();
            // the quotient is rounded once before it is rounded to a whole number
            prop_assert!(error <= f64::from(scale) * (0.5 + 1e-5), "{value} is {code} · {scale}");
        }
        Ok(())
    }

    /// Values of one channel in MXFP4: blocks of codes, and exponents that differ by `span` at most.
    fn mxfp4(span: i32) -> impl Strategy<Value = Vec<f32>> {
        let block = (proptest::collection::vec(0usize..16, 32), 0..=span);
        (proptest::collection::vec(block, 1..9), -40i32..40).prop_map(|(blocks, least)| {
            let values = |(codes, exponent): &(Vec<usize>, i32)| {
                let scale = 2f32.powi(least + exponent);
                codes.iter().map(|code| E2M1[*code] * scale).collect::<Vec<_>>()
            };
            blocks.iter().flat_map(values).collect()
        })
    }

    proptest! {
        #[test]
        fn no_value_is_off_by_more_than_half_a_step(
            values in proptest::collection::vec(-1f32..1.0, 1..300),
            exponent in -60i32..60,
        ) {
            let values: Vec<f32> = values.iter().map(|value| value * 2f32.powi(exponent)).collect();
            let mut codes = vec![0; values.len()];
            let scale = int8(&values, &mut codes);
            check(&values, &codes, scale, 127)?;
            prop_assert_eq!(scale, bf16_to_f32(f32_to_bf16(scale)));
            let scale = int4(&values, &mut codes);
            check(&values, &codes, scale, 7)?;
        }

        #[test]
        fn mxfp4_is_exact_in_8_bits_while_exponents_span_3(values in mxfp4(3)) {
            let mut codes = vec![0; values.len()];
            let scale = int8(&values, &mut codes);
            for (value, code) in values.iter().zip(codes) {
                prop_assert_eq!(*value, f32::from(code) * scale);
            }
        }

        #[test]
        fn any_mxfp4_is_within_half_a_step(values in mxfp4(12)) {
            let mut codes = vec![0; values.len()];
            let scale = int8(&values, &mut codes);
            check(&values, &codes, scale, 127)?;
            let scale = int4(&values, &mut codes);
            check(&values, &codes, scale, 7)?;
        }
    }

    #[test]
    fn exponents_that_span_4_are_not_exact_in_8_bits() {
        let values = [0.5, 6.0 * 16.0];
        let mut codes = [0; 2];
        let scale = int8(&values, &mut codes);
        assert_ne!(values.to_vec(), codes.map(|code| f32::from(code) * scale).to_vec());
    }

    #[test]
    fn nothing_and_the_smallest_numbers_have_a_scale() {
        for values in [[0.0; 3], [f32::from_bits(1), 0.0, f32::from_bits(3)]] {
            let mut codes = [9; 3];
            for scale in [int8(&values, &mut codes), int4(&values, &mut codes)] {
                assert!(scale >= f32::MIN_POSITIVE);
            }
            assert_eq!(codes, [0; 3], "{values:?}");
        }
    }

    #[test]
    fn the_lowest_bit_divides_a_number() {
        assert_eq!([1.0, 6.0, -0.75, 96.0].map(lowest_bit), [1.0, 2.0, 0.25, 32.0]);
        assert_eq!(lowest_bit(f32::MIN_POSITIVE), f32::MIN_POSITIVE);
    }
}

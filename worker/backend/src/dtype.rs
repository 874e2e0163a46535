//! The number formats of published checkpoints: exact decoding, and round-to-nearest-even encoding for the
//! mode that repeats the reference's roundings.

/// Value of an OCP e4m3 "fn" code: sign, 4 exponent bits (bias 7), 3 mantissa bits, no infinities, NaN at 0x7f/0xff.
pub const fn e4m3_to_f32(code: u8) -> f32 {
    let magnitude = code & 0x7f;
    let exponent = (magnitude >> 3) as u32;
    let mantissa = (magnitude & 7) as u32;
    let value = if magnitude == 0x7f {
        f32::NAN
    } else if exponent == 0 {
        mantissa as f32 * pow2(-9)
    } else {
        (8 + mantissa) as f32 * pow2(exponent as i32 - 10)
    };
    if code & 0x80 == 0 { value } else { -value }
}

/// Nearest e4m3 code, ties to even, saturating at ±448. NaN gives 0x7f.
pub fn f32_to_e4m3(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    if value.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = value.abs().min(448.0);
    let exponent = exponent_of(magnitude).max(-6);
    let steps = (magnitude * pow2(3 - exponent)).round_ties_even() as u32; // 8..=16, below 8 when subnormal
    // steps = 16 carries into the exponent by itself; exponent -6 with steps < 8 is the subnormal code
    sign | (((exponent + 6) as u32 * 8) + steps) as u8
}

/// Value of an e8m0 code: 2^(code − 127), NaN at 255. No sign and no zero.
pub const fn e8m0_to_f32(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x0040_0000), // 2^-127 is subnormal in f32
        255 => f32::NAN,
        _ => f32::from_bits((code as u32) << 23),
    }
}

/// Values of the 16 e2m1 codes: sign, 2 exponent bits, 1 mantissa bit.
pub const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Values of the 256 e4m3 codes.
pub const E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = e4m3_to_f32(code as u8);
        code += 1;
    }
    table
};

/// Nearest e2m1 code, ties to even, saturating at ±6.
pub fn f32_to_e2m1(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 28) & 8) as u8;
    let magnitude = value.abs().min(6.0);
    let exponent = exponent_of(magnitude).max(0);
    let steps = (magnitude * pow2(1 - exponent)).round_ties_even() as u32; // 2..=4, below 2 when subnormal
    sign | ((exponent as u32 * 2) + steps) as u8
}

/// Widens bf16 bits; exact.
pub const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Nearest bf16 bits, ties to even. NaN stays NaN.
pub const fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    // may carry into the exponent, up to infinity, as rounding should
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The smallest power of two that is not below `value`, which must be positive and normal.
pub fn pow2_ceil(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(if bits & 0x007f_ffff == 0 { bits } else { (bits & 0x7f80_0000) + 0x0080_0000 })
}

/// 2^n for a normal result.
const fn pow2(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// floor(log2 |value|) of a normal number; −127 for zero and subnormals.
fn exponent_of(value: f32) -> i32 {
    ((value.to_bits() >> 23) & 0xff) as i32 - 127
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_definition(sign: u8, exponent: i32, mantissa: f64, mantissa_bits: i32, bias: i32) -> f64 {
        let unit = 2f64.powi(-mantissa_bits);
        let magnitude = if exponent == 0 {
            mantissa * unit * 2f64.powi(1 - bias)
        } else {
            (1.0 + mantissa * unit) * 2f64.powi(exponent - bias)
        };
        if sign == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_e4m3_code_has_its_defined_value() {
        for code in 0..=255u8 {
            if code & 0x7f == 0x7f {
                assert!(e4m3_to_f32(code).is_nan());
                continue;
            }
            let exact = by_definition(code >> 7, i32::from(code >> 3 & 15), f64::from(code & 7), 3, 7);
            assert_eq!(f64::from(e4m3_to_f32(code)), exact, "code {code:#x}");
            assert_eq!(E4M3[code as usize].to_bits(), e4m3_to_f32(code).to_bits());
        }
        assert_eq!(e4m3_to_f32(0x7e), 448.0);
    }

    #[test]
    fn every_e2m1_code_has_its_defined_value() {
        for code in 0..16u8 {
            let exact = by_definition(code >> 3, i32::from(code >> 1 & 3), f64::from(code & 1), 1, 1);
            assert_eq!(f64::from(E2M1[code as usize]), exact, "code {code:#x}");
        }
    }

    #[test]
    fn every_e8m0_code_has_its_defined_value() {
        for code in 0..255u8 {
            assert_eq!(f64::from(e8m0_to_f32(code)), 2f64.powi(i32::from(code) - 127), "code {code}");
        }
        assert!(e8m0_to_f32(255).is_nan());
    }

    #[test]
    fn encoding_a_decoded_code_gives_the_code_back() {
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(f32_to_e4m3(e4m3_to_f32(code)), code);
        }
        for code in 0..16u8 {
            assert_eq!(f32_to_e2m1(E2M1[code as usize]), code);
        }
    }

    /// The nearest of `values` (index = code), ties to the even code, found by looking at all of them.
    fn nearest(values: &[f32], x: f32) -> f32 {
        let mut best = 0;
        for code in 1..values.len() {
            let (near, far) = ((values[code] - x).abs(), (values[best] - x).abs());
            if near < far || (near == far && code % 2 == 0) {
                best = code;
            }
        }
        values[best]
    }

    proptest! {
        #[test]
        fn e4m3_rounds_to_the_nearest_even(x in -500f32..500.0, shrink in 0i32..14) {
            let x = x * 2f32.powi(-shrink);
            let rounded = e4m3_to_f32(f32_to_e4m3(x));
            prop_assert_eq!(rounded.abs(), nearest(&E4M3[..127], x.abs()));
        }

        #[test]
        fn e2m1_rounds_to_the_nearest_even(x in -7f32..7.0) {
            let rounded = E2M1[f32_to_e2m1(x) as usize];
            prop_assert_eq!(rounded.abs(), nearest(&E2M1[..8], x.abs()));
        }

        #[test]
        fn pow2_ceil_is_the_next_power_of_two(x in 1e-30f32..1e30) {
            let p = pow2_ceil(x);
            prop_assert!(p >= x && p * 0.5 < x);
            prop_assert_eq!(p.to_bits() & 0x007f_ffff, 0);
        }
    }

    #[test]
    fn ties_go_to_even() {
        assert_eq!(
            [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0].map(|x| E2M1[f32_to_e2m1(x) as usize]),
            [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
        );
        assert_eq!(e4m3_to_f32(f32_to_e4m3(17.0)), 16.0);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(19.0)), 20.0);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(1e9)), 448.0);
    }
}

//! The exponential function for weights of tokens.
//!
//! Not the standard library's: that one calls the system's mathematics, whose last bit differs between systems, and
//! a seed must give the same tokens everywhere. It is also called once for each token of a vocabulary, so it is
//! written without branches, for the compiler to vectorise.

/// Below this the result is 0: close to where `f64` ends, and far below anything that is ever drawn.
const LOWEST: f64 = -708.0;

/// e^x for x ≤ 0, within 2 units in the last place.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; e^r by its Taylor series up to r^13, whose rest is below 2^-57.
#[inline]
pub fn exp(x: f64) -> f64 {
    /// Adding it rounds to an integer, which is then in the lowest bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// ln 2 as a number with 20 zero bits at its end, so that its product with n is exact, and the rest of it.
    const LN_2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const INVERSE_FACTORIALS: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let clamped = if x > LOWEST { x } else { LOWEST };
    let shifted = clamped * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let series = INVERSE_FACTORIALS.iter().fold(0.0, |sum, coefficient| sum * r + coefficient);
    let power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
    if x > LOWEST { series * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_the_exponential_function(x in -708.0f64..=0.0) {
            prop_assert!((exp(x) / x.exp() - 1.0).abs() < 5e-16, "{} {}", exp(x), x.exp());
        }
    }

    #[test]
    fn has_the_right_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e300), 0.0);
    }
}

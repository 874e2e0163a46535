//! Element types: their codes, sizes, conversion rules and encodings.

use half::{bf16, f16};

use crate::codes;
use crate::failure::{Outcome, fail};

/// An element type, with the number that `aclDataType` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs, reason = "the names say it")]
pub enum DType {
    F32 = 0,
    F16 = 1,
    I8 = 2,
    I32 = 3,
    U8 = 4,
    I16 = 6,
    U16 = 7,
    U32 = 8,
    I64 = 9,
    U64 = 10,
    F64 = 11,
    Bool = 12,
    Bf16 = 27,
    I4 = 29,
    F8E5M2 = 35,
    F8E4M3 = 36,
    F8E8M0 = 37,
    F4E2M1 = 40,
}

use DType::*;

/// The types that most float ops take.
pub const FLOATS: &[DType] = &[F32, F16, Bf16];
/// The types that arithmetic takes. DOUBLE and complex types are documented, but not simulated.
pub const NUMBERS: &[DType] = &[F32, F16, Bf16, I8, U8, I16, I32, I64, Bool];
/// The types that an index may have.
pub const INDICES: &[DType] = &[I32, I64];

impl DType {
    /// The type of an `aclDataType`; none when it is not simulated.
    pub fn of(code: i32) -> Option<Self> {
        const ALL: [DType; 18] = [
            F32, F16, I8, I32, U8, I16, U16, U32, I64, U64, F64, Bool, Bf16, I4, F8E5M2, F8E4M3, F8E8M0,
            F4E2M1,
        ];
        ALL.into_iter().find(|dtype| *dtype as i32 == code)
    }

    /// The type of an `aclDataType` argument of an op.
    pub fn argument(code: i32) -> Outcome<Self> {
        match Self::of(code) {
            Some(dtype) => Ok(dtype),
            None => fail(codes::NN_PARAM_INVALID, format!("data type {code}")),
        }
    }

    /// Bits of an element.
    pub fn bits(self) -> usize {
        match self {
            I4 | F4E2M1 => 4,
            I8 | U8 | Bool | F8E5M2 | F8E4M3 | F8E8M0 => 8,
            F16 | Bf16 | I16 | U16 => 16,
            F32 | I32 | U32 => 32,
            I64 | U64 | F64 => 64,
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, F32 | F16 | F64 | Bf16 | F8E5M2 | F8E4M3 | F8E8M0 | F4E2M1)
    }

    /// Whether only the 950 generation has it.
    pub fn needs_950(self) -> bool {
        matches!(self, F8E5M2 | F8E4M3 | F8E8M0 | F4E2M1)
    }

    /// Whether a result of this type may be stored as `to`. As PyTorch's `can_cast`: floats don't become
    /// integers, and only BOOL becomes BOOL.
    pub fn castable(self, to: Self) -> bool {
        !(self.is_float() && !to.is_float() || to == Bool && self != Bool)
    }

    /// The type that two operands are computed in, as PyTorch promotes.
    pub fn promote(self, other: Self) -> Outcome<Self> {
        let (a, b) = (self, other);
        if a == b {
            return Ok(a);
        }
        let refused = || fail(codes::NN_PARAM_INVALID, format!("{a:?} and {b:?} have no common type"));
        if [a, b]
            .iter()
            .any(|dtype| matches!(dtype, U16 | U32 | U64 | I4 | F64) || dtype.bits() < 16 && dtype.is_float())
        {
            return refused();
        }
        Ok(match (a.is_float(), b.is_float()) {
            // F16 with BF16, or either with F32
            (true, true) => F32,
            (true, false) => a,
            (false, true) => b,
            (false, false) => match (a, b) {
                (Bool, x) | (x, Bool) => x,
                (U8, I8) | (I8, U8) => I16,
                _ if a.bits() >= b.bits() => {
                    if a == U8 {
                        b
                    } else {
                        a
                    }
                }
                _ => b,
            },
        })
    }

    /// Rounds to what the type can hold.
    pub fn round(self, value: f32) -> f32 {
        match self {
            F16 => f16::from_f32(value).to_f32(),
            Bf16 => bf16::from_f32(value).to_f32(),
            _ => value,
        }
    }

    /// Decodes a float from its bits.
    pub fn decode_float(self, bits: u64) -> f32 {
        match self {
            F32 => f32::from_bits(bits as u32),
            F16 => f16::from_bits(bits as u16).to_f32(),
            Bf16 => bf16::from_bits(bits as u16).to_f32(),
            F64 => f64::from_bits(bits) as f32,
            // E5M2 is the upper byte of an f16
            F8E5M2 => f16::from_bits((bits as u16) << 8).to_f32(),
            F8E4M3 => small_float(bits, 4, 3, 7),
            F8E8M0 if bits == 0xFF => f32::NAN,
            F8E8M0 => (bits as f32 - 127.0).exp2(),
            F4E2M1 => small_float(bits, 2, 1, 1),
            _ => self.decode_int(bits) as f32,
        }
    }

    /// Decodes an integer from its bits; a float is truncated, a NaN becomes 0 as documented for Cast.
    pub fn decode_int(self, bits: u64) -> i64 {
        match self {
            I8 => bits as i8 as i64,
            I16 => bits as i16 as i64,
            I32 => bits as i32 as i64,
            I64 => bits as i64,
            I4 => ((bits as i8) << 4 >> 4) as i64,
            U8 | U16 | U32 | U64 => bits as i64,
            Bool => i64::from(bits & 0xFF != 0),
            _ => self.decode_float(bits) as i64,
        }
    }

    /// Encodes a float. Types narrower than 16 bits are not simulated as results.
    pub fn encode_float(self, value: f32) -> u64 {
        match self {
            F32 => value.to_bits().into(),
            F16 => f16::from_f32(value).to_bits().into(),
            Bf16 => bf16::from_f32(value).to_bits().into(),
            F64 => f64::from(value).to_bits(),
            Bool => u64::from(value != 0.0),
            _ => self.encode_int(value as i64),
        }
    }

    /// Encodes an integer; what does not fit wraps, which the documentation leaves open.
    pub fn encode_int(self, value: i64) -> u64 {
        match self {
            _ if self.is_float() => self.encode_float(value as f32),
            Bool => u64::from(value != 0),
            _ if self.bits() == 64 => value as u64,
            _ => value as u64 & ((1 << self.bits()) - 1),
        }
    }
}

// the finite-only formats: the top exponent is an ordinary one, E4M3's all-ones pattern is NaN
fn small_float(bits: u64, exponent_bits: u32, mantissa_bits: u32, bias: i32) -> f32 {
    let mantissa = bits & ((1 << mantissa_bits) - 1);
    let exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    let sign = if bits >> (mantissa_bits + exponent_bits) & 1 == 1 { -1.0 } else { 1.0 };
    if exponent_bits == 4 && bits & 0x7F == 0x7F {
        return f32::NAN;
    }
    let fraction = mantissa as f32 / (1 << mantissa_bits) as f32;
    let magnitude = match exponent {
        0 => fraction * ((1 - bias) as f32).exp2(),
        _ => (1.0 + fraction) * ((exponent as i32 - bias) as f32).exp2(),
    };
    sign * magnitude
}

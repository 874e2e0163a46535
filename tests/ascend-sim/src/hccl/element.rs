//! Element types of collectives, and reductions of them.

use half::{bf16, f16};

use crate::config::Chip;
use crate::failure::{Outcome, fail};
use crate::hccl::codes;

/// An element type, with the number that `HcclDataType` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Element {
    I8 = 0,
    I16 = 1,
    I32 = 2,
    F16 = 3,
    F32 = 4,
    I64 = 5,
    U64 = 6,
    U8 = 7,
    U16 = 8,
    U32 = 9,
    F64 = 10,
    Bf16 = 11,
    I128 = 12,
    Hif8 = 14,
    F8E4M3 = 15,
    F8E5M2 = 16,
    F8E8M0 = 17,
}

use Element::*;

impl Element {
    fn of(code: i32) -> Outcome<Self> {
        const ALL: [Element; 17] =
            [I8, I16, I32, F16, F32, I64, U64, U8, U16, U32, F64, Bf16, I128, Hif8, F8E4M3, F8E5M2, F8E8M0];
        match ALL.into_iter().find(|element| *element as i32 == code) {
            Some(element) => Ok(element),
            None => fail(codes::PARA, format!("data type {code}")),
        }
    }

    /// The type of an `HcclDataType` that is only moved. Documented: types of 8-bit floats on 950 only.
    pub fn moved(code: i32, chip: Chip) -> Outcome<Self> {
        let element = Self::of(code)?;
        match element {
            I128 => fail(codes::NOT_SUPPORT, "int128 can't be moved"),
            Hif8 | F8E4M3 | F8E5M2 | F8E8M0 if !chip.is_950() => {
                fail(codes::NOT_SUPPORT, format!("{element:?} needs Ascend 950"))
            }
            _ => Ok(element),
        }
    }

    /// The type of an `HcclDataType` that is reduced.
    pub fn reduced(code: i32, chip: Chip) -> Outcome<Self> {
        let element = Self::of(code)?;
        match element {
            I8 | I16 | I32 | I64 | F16 | F32 | Bf16 => Ok(element),
            U64 | F64 if chip.is_950() => Ok(element),
            _ => fail(codes::NOT_SUPPORT, format!("{element:?} can't be reduced")),
        }
    }

    /// Bytes of an element.
    pub fn size(self) -> u64 {
        match self {
            I8 | U8 | Hif8 | F8E4M3 | F8E5M2 | F8E8M0 => 1,
            I16 | U16 | F16 | Bf16 => 2,
            I32 | U32 | F32 => 4,
            I64 | U64 | F64 => 8,
            I128 => 16,
        }
    }
}

/// A reduction, with the number that `HcclReduceOp` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Reduce {
    /// The sum.
    Sum = 0,
    /// The product.
    Prod = 1,
    /// The largest.
    Max = 2,
    /// The smallest.
    Min = 3,
}

impl Reduce {
    /// The reduction of an `HcclReduceOp`. Documented: no products of INT16 and BFP16.
    pub fn of(code: i32, element: Element) -> Outcome<Self> {
        let reduce = match code {
            0 => Self::Sum,
            1 => Self::Prod,
            2 => Self::Max,
            3 => Self::Min,
            _ => return fail(codes::PARA, format!("reduction {code}")),
        };
        if reduce == Self::Prod && matches!(element, I16 | Bf16) {
            return fail(codes::NOT_SUPPORT, format!("products of {element:?}"));
        }
        Ok(reduce)
    }

    /// Reduces the elements of all ranks in the order of the ranks. Integers wrap; F16 and BFP16 are
    /// computed in f32 and rounded once; a NaN stays one.
    pub fn apply(self, element: Element, ranks: &[&[u8]]) -> Vec<u8> {
        match element {
            I8 => self.fold(
                ranks,
                |[byte]| byte as i8,
                |x, y| self.int(x, y, i8::wrapping_add, i8::wrapping_mul),
                |x| x.to_le_bytes(),
            ),
            I16 => self.fold(
                ranks,
                i16::from_le_bytes,
                |x, y| self.int(x, y, i16::wrapping_add, i16::wrapping_mul),
                i16::to_le_bytes,
            ),
            I32 => self.fold(
                ranks,
                i32::from_le_bytes,
                |x, y| self.int(x, y, i32::wrapping_add, i32::wrapping_mul),
                i32::to_le_bytes,
            ),
            I64 => self.fold(
                ranks,
                i64::from_le_bytes,
                |x, y| self.int(x, y, i64::wrapping_add, i64::wrapping_mul),
                i64::to_le_bytes,
            ),
            U64 => self.fold(
                ranks,
                u64::from_le_bytes,
                |x, y| self.int(x, y, u64::wrapping_add, u64::wrapping_mul),
                u64::to_le_bytes,
            ),
            F32 => self.fold(ranks, f32::from_le_bytes, |x, y| self.float(x, y), f32::to_le_bytes),
            F16 => self.fold(
                ranks,
                |bytes| f16::from_le_bytes(bytes).to_f32(),
                |x, y| self.float(x, y),
                |x| f16::from_f32(x).to_le_bytes(),
            ),
            Bf16 => self.fold(
                ranks,
                |bytes| bf16::from_le_bytes(bytes).to_f32(),
                |x, y| self.float(x, y),
                |x| bf16::from_f32(x).to_le_bytes(),
            ),
            F64 => self.fold(ranks, f64::from_le_bytes, |x, y| self.double(x, y), f64::to_le_bytes),
            // refused by Element::reduced
            U8 | U16 | U32 | I128 | Hif8 | F8E4M3 | F8E5M2 | F8E8M0 => Vec::new(),
        }
    }

    fn fold<T: Copy, const N: usize>(
        self,
        ranks: &[&[u8]],
        read: impl Fn([u8; N]) -> T,
        join: impl Fn(T, T) -> T,
        write: impl Fn(T) -> [u8; N],
    ) -> Vec<u8> {
        let Some((first, others)) = ranks.split_first() else { return Vec::new() };
        let mut values: Vec<T> = first.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).collect();
        for rank in others {
            for (value, bytes) in values.iter_mut().zip(rank.as_chunks::<N>().0) {
                *value = join(*value, read(*bytes));
            }
        }
        let mut bytes = Vec::with_capacity(values.len() * N);
        values.into_iter().for_each(|value| bytes.extend_from_slice(&write(value)));
        bytes
    }

    fn int<T: Ord>(self, x: T, y: T, add: impl Fn(T, T) -> T, multiply: impl Fn(T, T) -> T) -> T {
        match self {
            Self::Sum => add(x, y),
            Self::Prod => multiply(x, y),
            Self::Max => x.max(y),
            Self::Min => x.min(y),
        }
    }

    fn float(self, x: f32, y: f32) -> f32 {
        match self {
            Self::Sum => x + y,
            Self::Prod => x * y,
            _ if x.is_nan() || y.is_nan() => f32::NAN,
            Self::Max => x.max(y),
            Self::Min => x.min(y),
        }
    }

    fn double(self, x: f64, y: f64) -> f64 {
        match self {
            Self::Sum => x + y,
            Self::Prod => x * y,
            _ if x.is_nan() || y.is_nan() => f64::NAN,
            Self::Max => x.max(y),
            Self::Min => x.min(y),
        }
    }
}

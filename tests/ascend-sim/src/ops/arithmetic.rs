//! Element by element: arithmetic, powers and logarithms, bounds, selection, conversion.

use std::ffi::c_void;

use super::{aclnn, refuse, require, run, shaped};
use crate::codes;
use crate::dtype::{DType, FLOATS, NUMBERS};
use crate::executor::{Io, Op, Operand, Run};
use crate::failure::{Outcome, fail};
use crate::tensor::Scalar;
use crate::view::{broadcast, broadcast_map};

type T = *const c_void;

#[derive(Clone, Copy)]
struct Functions {
    float: fn(f32, f32) -> f32,
    int: fn(i64, i64) -> i64,
}

const ADD: Functions = Functions { float: |a, b| a + b, int: i64::wrapping_add };
const SUB: Functions = Functions { float: |a, b| a - b, int: i64::wrapping_sub };
const MUL: Functions = Functions { float: |a, b| a * b, int: i64::wrapping_mul };

/// Writes results that were computed in `dtype`.
fn put(io: &mut Io<'_>, out: &Operand, dtype: DType, values: Vec<f32>) -> Outcome {
    let rounded: Vec<f32> = values.into_iter().map(|value| dtype.round(value)).collect();
    io.put_floats(out.at, &rounded)
}

fn castable(from: DType, to: &Operand) -> Outcome {
    require(from.castable(to.dtype), || format!("a result of {from:?} can't be stored as {:?}", to.dtype))
}

/// Two tensors that broadcast; the second is scaled by `alpha` first.
fn binary(op: &mut Op, a: T, b: T, alpha: Option<Scalar>, out: T, functions: Functions) -> Outcome<Run> {
    let a = op.input(a, "self", NUMBERS)?;
    let b = op.input(b, "other", NUMBERS)?;
    let out = op.output(out, "out", NUMBERS)?;
    let dtype = a.dtype.promote(b.dtype)?;
    castable(dtype, &out)?;
    if let Some(alpha) = alpha
        && alpha.dtype.is_float()
        && !dtype.is_float()
    {
        return refuse("alpha is a float and the operands are integers");
    }
    shaped(&out, &broadcast(&a.shape, &b.shape)?, "out")?;
    let (from_a, from_b) = (broadcast_map(&a.shape, &out.shape), broadcast_map(&b.shape, &out.shape));
    let pairs = move || from_a.clone().into_iter().zip(from_b.clone());
    if dtype.is_float() {
        let alpha = alpha.map_or(1.0, |alpha| alpha.float());
        run(move |io| {
            let (x, y) = (io.floats(a.at)?, io.floats(b.at)?);
            let values = pairs().map(|(i, j)| (functions.float)(x[i], y[j] * alpha)).collect();
            put(io, &out, dtype, values)
        })
    } else {
        let alpha = alpha.map_or(1, |alpha| alpha.int());
        run(move |io| {
            let (x, y) = (io.ints(a.at)?, io.ints(b.at)?);
            let wrap = |value: i64| dtype.decode_int(dtype.encode_int(value));
            let values: Vec<i64> =
                pairs().map(|(i, j)| wrap((functions.int)(x[i], y[j].wrapping_mul(alpha)))).collect();
            io.put_ints(out.at, &values)
        })
    }
}

/// A tensor and a scalar, which does not widen the tensor's type within its category (as in PyTorch).
fn with_scalar(
    op: &mut Op,
    a: T,
    scalar: Scalar,
    alpha: Option<Scalar>,
    out: T,
    functions: Functions,
) -> Outcome<Run> {
    let a = op.input(a, "self", NUMBERS)?;
    let out = op.output(out, "out", NUMBERS)?;
    let dtype = match (a.dtype, scalar.dtype) {
        (tensor, scalar) if scalar.is_float() && !tensor.is_float() => DType::F32,
        (DType::Bool, scalar) if scalar != DType::Bool => DType::I64,
        (tensor, _) => tensor,
    };
    castable(dtype, &out)?;
    shaped(&out, &a.shape, "out")?;
    if dtype.is_float() {
        let y = scalar.float() * alpha.map_or(1.0, |alpha| alpha.float());
        run(move |io| {
            let values = io.floats(a.at)?.into_iter().map(|x| (functions.float)(x, y)).collect();
            put(io, &out, dtype, values)
        })
    } else {
        let y = scalar.int().wrapping_mul(alpha.map_or(1, |alpha| alpha.int()));
        run(move |io| {
            let values: Vec<i64> = io.ints(a.at)?.into_iter().map(|x| (functions.int)(x, y)).collect();
            io.put_ints(out.at, &values)
        })
    }
}

/// One tensor of floats to another of the same shape. Integers are documented for some of these and computed
/// in f32; they are taken when the result is a float.
pub(crate) fn unary(
    op: &mut Op,
    x: T,
    out: T,
    function: impl Fn(f32) -> f32 + Send + Sync + 'static,
) -> Outcome<Run> {
    let x = op.input(x, "self", FLOATS)?;
    let out = op.output(out, "out", FLOATS)?;
    shaped(&out, &x.shape, "out")?;
    run(move |io| {
        let values = io.floats(x.at)?.into_iter().map(&function).collect();
        put(io, &out, x.dtype, values)
    })
}

aclnn! {
    /// `self + alpha·other`, broadcast.
    aclnnAddGetWorkspaceSize, aclnnAdd(a: T, b: T, alpha: T, out: *mut c_void) |op| {
        let alpha = op.scalar(alpha)?;
        binary(&mut op, a, b, Some(alpha), out, ADD)
    }

    /// `self − alpha·other`, broadcast.
    aclnnSubGetWorkspaceSize, aclnnSub(a: T, b: T, alpha: T, out: *mut c_void) |op| {
        let alpha = op.scalar(alpha)?;
        binary(&mut op, a, b, Some(alpha), out, SUB)
    }

    /// `self · other`, broadcast.
    aclnnMulGetWorkspaceSize, aclnnMul(a: T, b: T, out: *mut c_void) |op| {
        binary(&mut op, a, b, None, out, MUL)
    }

    /// `self / other`, broadcast; integers are divided as floats, as PyTorch's true division.
    aclnnDivGetWorkspaceSize, aclnnDiv(a: T, b: T, out: *mut c_void) |op| {
        divide(&mut op, a, b, out)
    }

    /// `self + alpha·other` with a scalar.
    aclnnAddsGetWorkspaceSize, aclnnAdds(a: T, scalar: T, alpha: T, out: *mut c_void) |op| {
        let (scalar, alpha) = (op.scalar(scalar)?, op.scalar(alpha)?);
        with_scalar(&mut op, a, scalar, Some(alpha), out, ADD)
    }

    /// `self · other` with a scalar.
    aclnnMulsGetWorkspaceSize, aclnnMuls(a: T, scalar: T, out: *mut c_void) |op| {
        let scalar = op.scalar(scalar)?;
        with_scalar(&mut op, a, scalar, None, out, MUL)
    }

    /// The square root.
    aclnnSqrtGetWorkspaceSize, aclnnSqrt(x: T, out: *mut c_void) |op| {
        unary(&mut op, x, out, f32::sqrt)
    }

    /// One over the square root.
    aclnnRsqrtGetWorkspaceSize, aclnnRsqrt(x: T, out: *mut c_void) |op| {
        unary(&mut op, x, out, |x| 1.0 / x.sqrt())
    }

    /// `e^x`.
    aclnnExpGetWorkspaceSize, aclnnExp(x: T, out: *mut c_void) |op| {
        unary(&mut op, x, out, f32::exp)
    }

    /// The natural logarithm.
    aclnnLogGetWorkspaceSize, aclnnLog(x: T, out: *mut c_void) |op| {
        unary(&mut op, x, out, f32::ln)
    }

    /// Bounds from below and above; one bound may be null. A NaN stays, as in PyTorch.
    aclnnClampGetWorkspaceSize, aclnnClamp(x: T, low: T, high: T, out: *mut c_void) |op| {
        if low.is_null() && high.is_null() {
            return fail(codes::NN_PARAM_NULLPTR, "both bounds are null");
        }
        let low = if low.is_null() { None } else { Some(op.scalar(low)?) };
        let high = if high.is_null() { None } else { Some(op.scalar(high)?) };
        clamp(&mut op, x, low, high, out)
    }

    /// Converts the type.
    aclnnCastGetWorkspaceSize, aclnnCast(x: T, dtype: i32, out: *mut c_void) |op| {
        cast(&mut op, x, dtype, out)
    }

    /// `condition ? self : other`, broadcast.
    aclnnSWhereGetWorkspaceSize, aclnnSWhere(condition: T, a: T, b: T, out: *mut c_void) |op| {
        select(&mut op, condition, a, b, out)
    }
}

fn divide(op: &mut Op, a: T, b: T, out: T) -> Outcome<Run> {
    let a = op.input(a, "self", NUMBERS)?;
    let b = op.input(b, "other", NUMBERS)?;
    let out = op.output(out, "out", NUMBERS)?;
    let promoted = a.dtype.promote(b.dtype)?;
    let dtype = if promoted.is_float() { promoted } else { DType::F32 };
    castable(dtype, &out)?;
    shaped(&out, &broadcast(&a.shape, &b.shape)?, "out")?;
    let (from_a, from_b) = (broadcast_map(&a.shape, &out.shape), broadcast_map(&b.shape, &out.shape));
    run(move |io| {
        let (x, y) = (io.floats(a.at)?, io.floats(b.at)?);
        let values = from_a.iter().zip(&from_b).map(|(i, j)| x[*i] / y[*j]).collect();
        put(io, &out, dtype, values)
    })
}

fn clamp(op: &mut Op, x: T, low: Option<Scalar>, high: Option<Scalar>, out: T) -> Outcome<Run> {
    let x = op.input(x, "self", NUMBERS)?;
    let out = op.output(out, "out", NUMBERS)?;
    castable(x.dtype, &out)?;
    shaped(&out, &x.shape, "out")?;
    if x.dtype.is_float() {
        let (low, high) = (low.map(|low| low.float()), high.map(|high| high.float()));
        return run(move |io| {
            let bound = |mut value: f32| {
                if let Some(low) = low
                    && value < low
                {
                    value = low;
                }
                if let Some(high) = high
                    && value > high
                {
                    value = high;
                }
                value
            };
            let values = io.floats(x.at)?.into_iter().map(bound).collect();
            put(io, &out, x.dtype, values)
        });
    }
    let (low, high) = (low.map_or(i64::MIN, |low| low.int()), high.map_or(i64::MAX, |high| high.int()));
    run(move |io| {
        let values: Vec<i64> = io.ints(x.at)?.into_iter().map(|value| value.max(low).min(high)).collect();
        io.put_ints(out.at, &values)
    })
}

fn cast(op: &mut Op, x: T, dtype: i32, out: T) -> Outcome<Run> {
    use DType::*;
    const FROM: &[DType] =
        &[F32, F16, Bf16, F64, I8, U8, I16, U16, I32, U32, I64, U64, Bool, F8E4M3, F8E5M2, F8E8M0, F4E2M1];
    // rounding to 8 bits and less is documented for 950, but not simulated
    const TO: &[DType] = &[F32, F16, Bf16, F64, I8, U8, I16, U16, I32, U32, I64, U64, Bool];
    let x = op.input(x, "self", FROM)?;
    let out = op.output(out, "out", TO)?;
    require(DType::argument(dtype)? == out.dtype, || {
        format!("dtype {dtype} and an output of {:?}", out.dtype)
    })?;
    shaped(&out, &x.shape, "out")?;
    require(x.dtype.bits() > 4 && x.dtype != Bool || x.is_dense(), || "this type must be dense".into())?;
    run(move |io| {
        if x.dtype.is_float() {
            let values = io.floats(x.at)?;
            io.put_floats(out.at, &values)
        } else {
            let values = io.ints(x.at)?;
            io.put_ints(out.at, &values)
        }
    })
}

fn select(op: &mut Op, condition: T, a: T, b: T, out: T) -> Outcome<Run> {
    let condition = op.input(condition, "condition", &[DType::Bool, DType::U8])?;
    let a = op.input(a, "self", NUMBERS)?;
    let b = op.input(b, "other", NUMBERS)?;
    let out = op.output(out, "out", NUMBERS)?;
    let dtype = a.dtype.promote(b.dtype)?;
    castable(dtype, &out)?;
    let shape = broadcast(&condition.shape, &broadcast(&a.shape, &b.shape)?)?;
    shaped(&out, &shape, "out")?;
    let maps = [&condition, &a, &b].map(|operand| broadcast_map(&operand.shape, &shape));
    run(move |io| {
        let choice = io.ints(condition.at)?;
        if dtype.is_float() {
            let (x, y) = (io.floats(a.at)?, io.floats(b.at)?);
            let pick = |i: usize| if choice[maps[0][i]] != 0 { x[maps[1][i]] } else { y[maps[2][i]] };
            let values = (0..maps[0].len()).map(pick).collect();
            put(io, &out, dtype, values)
        } else {
            let (x, y) = (io.ints(a.at)?, io.ints(b.at)?);
            let pick = |i: usize| if choice[maps[0][i]] != 0 { x[maps[1][i]] } else { y[maps[2][i]] };
            let values: Vec<i64> = (0..maps[0].len()).map(pick).collect();
            io.put_ints(out.at, &values)
        }
    })
}

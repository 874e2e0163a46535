//! Constants and ranges.

use std::ffi::c_void;

use super::{aclnn, require, run, shaped};
use crate::dtype::{DType, NUMBERS};
use crate::executor::{Op, Run};
use crate::failure::Outcome;
use crate::tensor::Scalar;

type T = *const c_void;

fn fill(op: &mut Op, target: T, value: Option<Scalar>) -> Outcome<Run> {
    let target = op.output(target, "selfRef", NUMBERS)?;
    if let Some(value) = value {
        require(target.dtype.is_float() || !value.dtype.is_float(), || "a float into integers".into())?;
    }
    let bits = match value {
        None => 0,
        Some(value) if target.dtype.is_float() => target.dtype.encode_float(value.float()),
        Some(value) => target.dtype.encode_int(value.int()),
    };
    run(move |io| io.put_bits(target.at, &vec![bits; target.count()]))
}

fn range(op: &mut Op, start: Scalar, end: Scalar, step: Scalar, out: T) -> Outcome<Run> {
    const ALLOWED: &[DType] = &[DType::F32, DType::F16, DType::Bf16, DType::I32, DType::I64];
    let out = op.output(out, "out", ALLOWED)?;
    let floats = [start, end, step].iter().any(|scalar| scalar.dtype.is_float());
    require(!floats || out.dtype.is_float(), || "a range of floats into integers".into())?;
    let (first, last, by) = (f64::from(start.float()), f64::from(end.float()), f64::from(step.float()));
    require(by != 0.0 && (last - first) * by >= 0.0, || format!("from {first} to {last} by {by}"))?;
    shaped(&out, &[((last - first) / by).ceil() as usize], "out")?;
    run(move |io| {
        if out.dtype.is_float() {
            let values: Vec<f32> = (0..out.count()).map(|i| (first + i as f64 * by) as f32).collect();
            io.put_floats(out.at, &values)
        } else {
            let values: Vec<i64> = (0..out.count() as i64).map(|i| start.int() + i * step.int()).collect();
            io.put_ints(out.at, &values)
        }
    })
}

aclnn! {
    /// Zeros.
    aclnnInplaceZeroGetWorkspaceSize, aclnnInplaceZero(target: *mut c_void) |op| {
        fill(&mut op, target, None)
    }

    /// A scalar everywhere.
    aclnnInplaceFillScalarGetWorkspaceSize, aclnnInplaceFillScalar(target: *mut c_void, value: T) |op| {
        let value = op.scalar(value)?;
        fill(&mut op, target, Some(value))
    }

    /// `start, start + step, …` below `end`.
    aclnnArangeGetWorkspaceSize, aclnnArange(start: T, end: T, step: T, out: *mut c_void) |op| {
        let (start, end, step) = (op.scalar(start)?, op.scalar(end)?, op.scalar(step)?);
        range(&mut op, start, end, step, out)
    }
}

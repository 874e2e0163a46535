//! RMS norms.

use std::ffi::c_void;

use super::{aclnn, require, run, same_type, shaped};
use crate::dtype::{DType, FLOATS};
use crate::executor::{Op, Operand, Run};
use crate::failure::Outcome;
use crate::view::count;

type T = *const c_void;

/// Checks the operands that both norms share; answers the length of a row.
fn check(x: &Operand, gamma: &Operand, y: &Operand, rstd: &Operand) -> Outcome<usize> {
    // documented pairs: gamma of x's type, or in f32
    require(gamma.dtype == x.dtype || gamma.dtype == DType::F32, || {
        format!("x {:?}, gamma {:?}", x.dtype, gamma.dtype)
    })?;
    same_type(x, y, "x and y")?;
    shaped(y, &x.shape, "y")?;
    let fits = gamma.rank() > 0 && gamma.count() > 0 && x.shape.ends_with(&gamma.shape);
    require(fits, || format!("x {:?}, gamma {:?}", x.shape, gamma.shape))?;
    let mut shape = x.shape.clone();
    let kept = x.rank() - gamma.rank();
    shape[kept..].fill(1);
    shaped(rstd, &shape, "rstd")?;
    Ok(count(&gamma.shape))
}

/// Normalises rows; answers the results and one over the root mean square of each row.
fn normalise(values: &[f32], gamma: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let mut factors = Vec::new();
    let mut results = Vec::with_capacity(values.len());
    for row in values.chunks_exact(gamma.len()) {
        let mean = row.iter().map(|value| value * value).sum::<f32>() / row.len() as f32;
        let factor = 1.0 / (mean + eps).sqrt();
        results.extend(row.iter().zip(gamma).map(|(value, gamma)| value * factor * gamma));
        factors.push(factor);
    }
    (results, factors)
}

fn rms_norm(op: &mut Op, x: T, gamma: T, eps: f64, y: T, rstd: T) -> Outcome<Run> {
    let x = op.input(x, "x", FLOATS)?;
    let gamma = op.input(gamma, "gamma", FLOATS)?;
    let y = op.output(y, "yOut", FLOATS)?;
    let rstd = op.output(rstd, "rstdOut", &[DType::F32])?;
    let row = check(&x, &gamma, &y, &rstd)?;
    op.needs(row * 4);
    run(move |io| {
        let (results, factors) = normalise(&io.floats(x.at)?, &io.floats(gamma.at)?, eps as f32);
        io.put_floats(y.at, &results)?;
        io.put_floats(rstd.at, &factors)
    })
}

#[allow(clippy::too_many_arguments, reason = "the op has that many")]
fn add_rms_norm(op: &mut Op, a: T, b: T, gamma: T, eps: f64, y: T, rstd: T, sum: T) -> Outcome<Run> {
    let a = op.input(a, "x1", FLOATS)?;
    let b = op.input(b, "x2", FLOATS)?;
    let gamma = op.input(gamma, "gamma", FLOATS)?;
    let y = op.output(y, "yOut", FLOATS)?;
    let rstd = op.output(rstd, "rstdOut", &[DType::F32])?;
    let sum = op.output(sum, "xOut", FLOATS)?;
    same_type(&a, &b, "x1 and x2")?;
    same_type(&a, &sum, "x1 and xOut")?;
    shaped(&b, &a.shape, "x2")?;
    shaped(&sum, &a.shape, "xOut")?;
    let row = check(&a, &gamma, &y, &rstd)?;
    op.needs(row * 4);
    run(move |io| {
        let (x1, x2) = (io.floats(a.at)?, io.floats(b.at)?);
        // the norm is of the sum before it is rounded: the documentation does not say, the fused op has it
        let sums: Vec<f32> = x1.iter().zip(&x2).map(|(x1, x2)| x1 + x2).collect();
        let (results, factors) = normalise(&sums, &io.floats(gamma.at)?, eps as f32);
        io.put_floats(y.at, &results)?;
        io.put_floats(rstd.at, &factors)?;
        io.put_floats(sum.at, &sums)
    })
}

aclnn! {
    /// `x / rms(x) · gamma`, and one over the rms in f32.
    aclnnRmsNormGetWorkspaceSize, aclnnRmsNorm(
        x: T, gamma: T, eps: f64, y: *mut c_void, rstd: *mut c_void,
    ) |op| {
        rms_norm(&mut op, x, gamma, eps, y, rstd)
    }

    /// The norm of `x1 + x2`, and the sum.
    aclnnAddRmsNormGetWorkspaceSize, aclnnAddRmsNorm(
        a: T, b: T, gamma: T, eps: f64, y: *mut c_void, rstd: *mut c_void, sum: *mut c_void,
    ) |op| {
        add_rms_norm(&mut op, a, b, gamma, eps, y, rstd, sum)
    }
}

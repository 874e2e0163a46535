//! Quantisation to INT8.

use std::ffi::c_void;

use super::{aclnn, require, run, same_type, shaped};
use crate::dtype::DType;
use crate::executor::{Op, Run};
use crate::failure::Outcome;

type T = *const c_void;

/// Quantises a row: `round(x / scale)` with `scale = max|x| / 127`, ties to even (the documentation says
/// "round"). A row of zeros has scale 0 and values 0.
pub(crate) fn quantise(row: &[f32]) -> (Vec<i64>, f32) {
    let scale = row.iter().fold(0.0f32, |top, value| top.max(value.abs())) / 127.0;
    let value = |value: &f32| if scale == 0.0 { 0 } else { (value / scale).round_ties_even() as i64 };
    (row.iter().map(value).collect(), scale)
}

fn dynamic_quant(op: &mut Op, x: T, smooth: T, y: T, scale: T) -> Outcome<Run> {
    const FROM: &[DType] = &[DType::F16, DType::Bf16];
    let x = op.input(x, "x", FROM)?;
    let smooth = op.optional(smooth, "smoothScales", FROM)?;
    // INT4, packed INT32 and FP8 are documented, but not simulated
    let y = op.output(y, "yOut", &[DType::I8])?;
    let scale = op.output(scale, "scaleOut", &[DType::F32])?;
    require((2..=8).contains(&x.rank()), || format!("x {:?}", x.shape))?;
    shaped(&y, &x.shape, "yOut")?;
    let (rows, width) = x.shape.split_at(x.rank() - 1);
    shaped(&scale, rows, "scaleOut")?;
    let width = width[0];
    if let Some(smooth) = &smooth {
        same_type(&x, smooth, "x and smoothScales")?;
        shaped(smooth, &[width], "smoothScales")?;
    }
    run(move |io| {
        let mut values = io.floats(x.at)?;
        if let Some(smooth) = &smooth {
            let factors = io.floats(smooth.at)?;
            values.iter_mut().enumerate().for_each(|(i, value)| *value *= factors[i % width]);
        }
        let rows = values.chunks_exact(width.max(1)).map(quantise);
        let (quantised, scales): (Vec<_>, Vec<_>) = rows.unzip();
        io.put_ints(y.at, &quantised.concat())?;
        io.put_floats(scale.at, &scales)
    })
}

aclnn! {
    /// Each row of `x` as INT8 with its own scale.
    aclnnDynamicQuantGetWorkspaceSize, aclnnDynamicQuant(
        x: T, smooth: T, y: *mut c_void, scale: *mut c_void,
    ) |op| {
        dynamic_quant(&mut op, x, smooth, y, scale)
    }
}

//! Moving elements: concatenate, slice, permute, copy.

use std::ffi::c_void;

use super::{aclnn, require, run, same_type, shaped, split_at};
use crate::codes;
use crate::dtype::{DType, NUMBERS};
use crate::executor::{Op, Run};
use crate::failure::{Outcome, fail};
use crate::tensor::INT_ARRAYS;
use crate::view::{broadcast, broadcast_map, count, dense_strides};

type T = *const c_void;

/// The types of ops that only move elements.
pub(crate) const MOVED: &[DType] = NUMBERS;

fn concatenate(op: &mut Op, list: T, dim: i64, out: T) -> Outcome<Run> {
    let parts = op.inputs(list, "tensors", MOVED)?;
    let out = op.output(out, "out", MOVED)?;
    let Some(first) = parts.first() else { return fail(codes::NN_PARAM_INVALID, "no tensors") };
    let axis = first.axis(dim)?;
    let mut dtype = first.dtype;
    let mut shape = first.shape.clone();
    require(!shape.is_empty(), || "a 0-d tensor can't be concatenated".into())?;
    shape[axis] = 0;
    for part in &parts {
        dtype = dtype.promote(part.dtype)?;
        let fits = part.rank() == first.rank()
            && (0..part.rank()).all(|other| other == axis || part.shape[other] == first.shape[other]);
        require(fits, || format!("{:?} beside {:?} along {axis}", part.shape, first.shape))?;
        shape[axis] += part.shape[axis];
    }
    require(dtype.castable(out.dtype), || format!("{dtype:?} as {:?}", out.dtype))?;
    shaped(&out, &shape, "out")?;
    let (before, _, after) = split_at(&shape, axis);
    run(move |io| {
        let lengths: Vec<usize> = parts.iter().map(|part| part.shape[axis] * after).collect();
        let order = |i: usize| {
            lengths.iter().enumerate().flat_map(move |(p, n)| (i * n..(i + 1) * n).map(move |e| (p, e)))
        };
        if out.dtype.is_float() {
            let values = parts.iter().map(|part| io.floats(part.at)).collect::<Result<Vec<_>, _>>()?;
            let joined: Vec<f32> = (0..before).flat_map(order).map(|(p, e)| values[p][e]).collect();
            io.put_floats(out.at, &joined)
        } else {
            let values = parts.iter().map(|part| io.ints(part.at)).collect::<Result<Vec<_>, _>>()?;
            let joined: Vec<i64> = (0..before).flat_map(order).map(|(p, e)| values[p][e]).collect();
            io.put_ints(out.at, &joined)
        }
    })
}

/// Brings a bound into range as documented: counts from the end when negative.
fn bound(value: i64, size: i64) -> i64 {
    if value < -size {
        0
    } else if value >= size {
        size
    } else {
        (value + size) % size
    }
}

#[allow(clippy::too_many_arguments, reason = "the op has that many")]
fn slice(op: &mut Op, x: T, dim: i64, start: i64, end: i64, step: i64, out: T) -> Outcome<Run> {
    let x = op.input(x, "self", MOVED)?;
    let out = op.output(out, "out", MOVED)?;
    same_type(&x, &out, "self and out")?;
    require(x.rank() > 0 && step > 0, || format!("{} axes, step {step}", x.rank()))?;
    let axis = x.axis(dim)?;
    let size = x.shape[axis] as i64;
    // an empty axis has nothing to take the remainder by
    let start = if size == 0 { 0 } else { bound(start, size) };
    let end = match end {
        _ if size == 0 || end < -size => start,
        end if end >= size => size,
        end => start.max((end + size) % size),
    };
    let mut shape = x.shape.clone();
    shape[axis] = ((end - start + step - 1) / step) as usize;
    shaped(&out, &shape, "out")?;
    let (before, size, after) = split_at(&x.shape, axis);
    let taken: Vec<usize> = (start..end).step_by(step as usize).map(|i| i as usize).collect();
    run(move |io| {
        let bits = io.bits(x.at)?;
        let mut kept = Vec::with_capacity(out.count());
        for i in 0..before {
            for k in &taken {
                let at = (i * size + k) * after;
                kept.extend_from_slice(&bits[at..at + after]);
            }
        }
        io.put_bits(out.at, &kept)
    })
}

fn permute(op: &mut Op, x: T, axes: T, out: T) -> Outcome<Run> {
    let x = op.input(x, "self", MOVED)?;
    let out = op.output(out, "out", MOVED)?;
    same_type(&x, &out, "self and out")?;
    let axes = INT_ARRAYS.get(axes)?;
    require(axes.len() == x.rank(), || format!("{} axes for {:?}", axes.len(), x.shape))?;
    let axes = axes.iter().map(|axis| x.axis(*axis)).collect::<Result<Vec<_>, _>>()?;
    let mut seen = axes.clone();
    seen.sort_unstable();
    require(seen.iter().copied().eq(0..x.rank()), || format!("{axes:?} is no permutation"))?;
    let shape: Vec<usize> = axes.iter().map(|axis| x.shape[*axis]).collect();
    shaped(&out, &shape, "out")?;
    let strides = dense_strides(&x.shape);
    let mut from = vec![0usize];
    for (size, axis) in shape.iter().zip(&axes) {
        let stride = strides[*axis] as usize;
        from = from.iter().flat_map(|base| (0..*size).map(move |i| base + i * stride)).collect();
    }
    run(move |io| {
        let bits = io.bits(x.at)?;
        let moved: Vec<u64> = from.iter().map(|at| bits[*at]).collect();
        io.put_bits(out.at, &moved)
    })
}

fn copy(op: &mut Op, target: T, source: T) -> Outcome<Run> {
    let source = op.input(source, "src", MOVED)?;
    let target = op.output(target, "selfRef", MOVED)?;
    require(broadcast(&source.shape, &target.shape)? == target.shape, || {
        format!("{:?} does not broadcast to {:?}", source.shape, target.shape)
    })?;
    let map = broadcast_map(&source.shape, &target.shape);
    debug_assert_eq!(map.len(), count(&target.shape));
    // unlike results of arithmetic, a copy converts any type to any, as PyTorch's copy_
    run(move |io| {
        if source.dtype == target.dtype {
            let bits = io.bits(source.at)?;
            let moved: Vec<u64> = map.iter().map(|at| bits[*at]).collect();
            io.put_bits(target.at, &moved)
        } else if source.dtype.is_float() {
            let values = io.floats(source.at)?;
            let moved: Vec<f32> = map.iter().map(|at| values[*at]).collect();
            io.put_floats(target.at, &moved)
        } else {
            let values = io.ints(source.at)?;
            let moved: Vec<i64> = map.iter().map(|at| values[*at]).collect();
            io.put_ints(target.at, &moved)
        }
    })
}

aclnn! {
    /// Joins tensors along an axis.
    aclnnCatGetWorkspaceSize, aclnnCat(list: T, dim: i64, out: *mut c_void) |op| {
        concatenate(&mut op, list, dim, out)
    }

    /// Takes a range of an axis.
    aclnnSliceGetWorkspaceSize, aclnnSlice(
        x: T, dim: i64, start: i64, end: i64, step: i64, out: *mut c_void,
    ) |op| {
        slice(&mut op, x, dim, start, end, step, out)
    }

    /// Reorders the axes.
    aclnnPermuteGetWorkspaceSize, aclnnPermute(x: T, axes: T, out: *mut c_void) |op| {
        permute(&mut op, x, axes, out)
    }

    /// Copies `src`, broadcast and converted, into `selfRef`.
    aclnnInplaceCopyGetWorkspaceSize, aclnnInplaceCopy(target: *mut c_void, source: T) |op| {
        copy(&mut op, target, source)
    }
}

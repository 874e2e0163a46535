//! Along axes: sums, means, maxima, the k largest, softmax.

use std::cmp::Ordering;
use std::ffi::c_void;

use super::{aclnn, require, run, same_type, shaped, split_at};
use crate::dtype::{DType, FLOATS, NUMBERS};
use crate::executor::{Op, Operand, Run};
use crate::failure::Outcome;
use crate::tensor::INT_ARRAYS;

type T = *const c_void;

/// For each element the number of the result that it goes into, and the shape of the results.
struct Groups {
    of: Vec<usize>,
    count: usize,
}

/// Sorts elements into the results of a reduction over `dims`; no dims mean all axes (as PyTorch).
fn groups(x: &Operand, dims: T, keep: bool, out: &Operand) -> Outcome<Groups> {
    let mut reduced = vec![false; x.rank()];
    let dims = INT_ARRAYS.get(dims)?;
    for dim in dims.iter() {
        let axis = x.axis(*dim)?;
        if let Some(slot) = reduced.get_mut(axis) {
            require(!*slot, || format!("axis {dim} appears twice"))?;
            *slot = true;
        }
    }
    if dims.is_empty() {
        reduced.fill(true);
    }
    let shape: Vec<usize> = (0..x.rank())
        .filter(|axis| keep || !reduced[*axis])
        .map(|axis| if reduced[axis] { 1 } else { x.shape[axis] })
        .collect();
    shaped(out, &shape, "out")?;
    let mut of = vec![0];
    for axis in 0..x.rank() {
        let (size, kept) = (x.shape[axis], !reduced[axis]);
        of = of
            .iter()
            .flat_map(|base| (0..size).map(move |i| if kept { base * size + i } else { *base }))
            .collect();
    }
    Ok(Groups { of, count: shape.iter().product() })
}

fn sum(op: &mut Op, x: T, dims: T, keep: bool, dtype: i32, out: T, mean: bool) -> Outcome<Run> {
    let allowed = if mean { FLOATS } else { NUMBERS };
    let x = op.input(x, "self", allowed)?;
    let out = op.output(out, "out", allowed)?;
    require(DType::argument(dtype)? == out.dtype, || {
        format!("dtype {dtype} and an output of {:?}", out.dtype)
    })?;
    require(x.dtype.castable(out.dtype), || format!("{:?} as {:?}", x.dtype, out.dtype))?;
    let groups = groups(&x, dims, keep, &out)?;
    let size = groups.of.len() / groups.count.max(1);
    op.needs(groups.count * 4);
    run(move |io| {
        if out.dtype.is_float() {
            let mut sums = vec![0.0f32; groups.count];
            for (value, group) in io.floats(x.at)?.into_iter().zip(&groups.of) {
                sums[*group] += value;
            }
            if mean {
                sums.iter_mut().for_each(|sum| *sum /= size as f32);
            }
            io.put_floats(out.at, &sums)
        } else {
            let mut sums = vec![0i64; groups.count];
            for (value, group) in io.ints(x.at)?.into_iter().zip(&groups.of) {
                sums[*group] = sums[*group].wrapping_add(value);
            }
            io.put_ints(out.at, &sums)
        }
    })
}

fn amax(op: &mut Op, x: T, dims: T, keep: bool, out: T) -> Outcome<Run> {
    let x = op.input(x, "self", NUMBERS)?;
    let out = op.output(out, "out", NUMBERS)?;
    same_type(&x, &out, "self and out")?;
    let groups = groups(&x, dims, keep, &out)?;
    require(x.count() > 0, || "an empty tensor has no maximum".into())?;
    run(move |io| {
        if x.dtype.is_float() {
            let mut best = vec![f32::NEG_INFINITY; groups.count];
            for (value, group) in io.floats(x.at)?.into_iter().zip(&groups.of) {
                // a NaN wins, as in PyTorch
                if value > best[*group] || value.is_nan() {
                    best[*group] = value;
                }
            }
            io.put_floats(out.at, &best)
        } else {
            let mut best = vec![i64::MIN; groups.count];
            for (value, group) in io.ints(x.at)?.into_iter().zip(&groups.of) {
                best[*group] = best[*group].max(value);
            }
            io.put_ints(out.at, &best)
        }
    })
}

/// The order of values from the largest; a NaN counts as larger than all, as in PyTorch.
pub(crate) fn descending(a: f32, b: f32) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
    }
}

/// The values of one lane in an order of their own.
fn lane_order(values: &[f32], largest: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    // equal values keep the order of their indices: the documentation promises none
    order.sort_by(|i, j| {
        if largest { descending(values[*i], values[*j]) } else { descending(values[*j], values[*i]) }
    });
    order
}

fn arg_max(op: &mut Op, x: T, dim: i64, keep: bool, out: T) -> Outcome<Run> {
    let x = op.input(x, "self", NUMBERS)?;
    let out = op.output(out, "out", &[DType::I32, DType::I64])?;
    let axis = x.axis(dim)?;
    let mut shape = x.shape.clone();
    if axis < shape.len() {
        if keep {
            shape[axis] = 1;
        } else {
            shape.remove(axis);
        }
    }
    shaped(&out, &shape, "out")?;
    let (before, size, after) = split_at(&x.shape, axis);
    require(size > 0, || "an empty axis has no maximum".into())?;
    run(move |io| {
        let values = io.floats(x.at)?;
        let mut best = Vec::with_capacity(before * after);
        for i in 0..before {
            for j in 0..after {
                let lane: Vec<f32> = (0..size).map(|k| values[(i * size + k) * after + j]).collect();
                best.push(lane_order(&lane, true)[0] as i64);
            }
        }
        io.put_ints(out.at, &best)
    })
}

#[allow(clippy::too_many_arguments, reason = "the op has that many")]
fn top_k(
    op: &mut Op,
    x: T,
    k: i64,
    dim: i64,
    largest: bool,
    sorted: bool,
    values: T,
    indices: T,
) -> Outcome<Run> {
    let x = op.input(x, "self", NUMBERS)?;
    let values = op.output(values, "values", NUMBERS)?;
    let indices = op.output(indices, "indices", &[DType::I64])?;
    same_type(&x, &values, "self and values")?;
    let axis = x.axis(dim)?;
    let (before, size, after) = split_at(&x.shape, axis);
    require(k >= 0 && k as usize <= size, || format!("k {k} of {size}"))?;
    let k = k as usize;
    let mut shape = x.shape.clone();
    if let Some(slot) = shape.get_mut(axis) {
        *slot = k;
    }
    shaped(&values, &shape, "values")?;
    shaped(&indices, &shape, "indices")?;
    op.needs(x.count() * 8);
    run(move |io| {
        let (floats, bits) = (io.floats(x.at)?, io.bits(x.at)?);
        let (mut top, mut places) = (vec![0u64; before * k * after], vec![0i64; before * k * after]);
        for i in 0..before {
            for j in 0..after {
                let place = |n: usize| (i * size + n) * after + j;
                let lane: Vec<f32> = (0..size).map(|n| floats[place(n)]).collect();
                for (rank, n) in lane_order(&lane, largest).into_iter().take(k).enumerate() {
                    let rank = if sorted { rank } else { k - 1 - rank };
                    let slot = (i * k + rank) * after + j;
                    top[slot] = bits[place(n)];
                    places[slot] = n as i64;
                }
            }
        }
        io.put_bits(values.at, &top)?;
        io.put_ints(indices.at, &places)
    })
}

fn softmax(op: &mut Op, x: T, dim: i64, out: T) -> Outcome<Run> {
    let x = op.input(x, "self", FLOATS)?;
    let out = op.output(out, "out", FLOATS)?;
    shaped(&out, &x.shape, "out")?;
    let (before, size, after) = split_at(&x.shape, x.axis(dim)?);
    op.needs(before * after * 4);
    run(move |io| {
        let mut values = io.floats(x.at)?;
        for i in 0..before {
            for j in 0..after {
                let place = |n: usize| (i * size + n) * after + j;
                let top = (0..size).fold(f32::NEG_INFINITY, |top, n| top.max(values[place(n)]));
                let mut total = 0.0;
                for n in 0..size {
                    values[place(n)] = (values[place(n)] - top).exp();
                    total += values[place(n)];
                }
                for n in 0..size {
                    values[place(n)] /= total;
                }
            }
        }
        io.put_floats(out.at, &values)
    })
}

aclnn! {
    /// The sum over axes.
    aclnnReduceSumGetWorkspaceSize, aclnnReduceSum(
        x: T, dims: T, keep: bool, dtype: i32, out: *mut c_void,
    ) |op| {
        sum(&mut op, x, dims, keep, dtype, out, false)
    }

    /// The mean over axes.
    aclnnMeanGetWorkspaceSize, aclnnMean(x: T, dims: T, keep: bool, dtype: i32, out: *mut c_void) |op| {
        sum(&mut op, x, dims, keep, dtype, out, true)
    }

    /// The maximum over axes.
    aclnnAmaxGetWorkspaceSize, aclnnAmax(x: T, dims: T, keep: bool, out: *mut c_void) |op| {
        amax(&mut op, x, dims, keep, out)
    }

    /// The index of the maximum along an axis; the first of equals.
    aclnnArgMaxGetWorkspaceSize, aclnnArgMax(x: T, dim: i64, keep: bool, out: *mut c_void) |op| {
        arg_max(&mut op, x, dim, keep, out)
    }

    /// The k largest or smallest along an axis and where they are. Not asked to sort, it gives them in the
    /// reverse order, so that nobody relies on one.
    aclnnTopkGetWorkspaceSize, aclnnTopk(
        x: T, k: i64, dim: i64, largest: bool, sorted: bool, values: *mut c_void, indices: *mut c_void,
    ) |op| {
        top_k(&mut op, x, k, dim, largest, sorted, values, indices)
    }

    /// The softmax along an axis.
    aclnnSoftmaxGetWorkspaceSize, aclnnSoftmax(x: T, dim: i64, out: *mut c_void) |op| {
        softmax(&mut op, x, dim, out)
    }
}

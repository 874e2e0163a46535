//! Gathers and scatters.

use std::ffi::c_void;

use super::layout::MOVED;
use super::{aclnn, require, run, same_type, shaped, split_at};
use crate::codes;
use crate::dtype::INDICES;
use crate::executor::{Op, Run};
use crate::failure::{Outcome, fail};
use crate::view::dense_strides;

type T = *const c_void;

/// Takes whole slices of `x` along an axis; the index's shape takes the axis' place.
fn take(op: &mut Op, x: T, dim: i64, index: T, out: T, one_axis: bool) -> Outcome<Run> {
    let x = op.input(x, "self", MOVED)?;
    let index = op.input(index, "index", INDICES)?;
    let out = op.output(out, "out", MOVED)?;
    same_type(&x, &out, "self and out")?;
    require(x.rank() > 0, || "self is 0-d".into())?;
    require(!one_axis || index.rank() <= 1, || format!("index {:?} has more than one axis", index.shape))?;
    let axis = x.axis(dim)?;
    let mut shape = x.shape[..axis].to_vec();
    // a 0-d index of IndexSelect counts as one of length 1, as in PyTorch
    if one_axis && index.rank() == 0 {
        shape.push(1)
    } else {
        shape.extend(&index.shape)
    }
    shape.extend(&x.shape[axis + 1..]);
    shaped(&out, &shape, "out")?;
    let (before, size, after) = split_at(&x.shape, axis);
    run(move |io| {
        let (bits, indices) = (io.bits(x.at)?, io.indices(index.at, size)?);
        let mut taken = Vec::with_capacity(out.count());
        for i in 0..before {
            for k in &indices {
                let at = (i * size + k) * after;
                taken.extend_from_slice(&bits[at..at + after]);
            }
        }
        io.put_bits(out.at, &taken)
    })
}

/// For each element of `shape` in row-major order its row-major place in `within`, the axis left out.
fn places(shape: &[usize], within: &[usize], axis: usize) -> Vec<usize> {
    let mut places = vec![0];
    for (other, (size, stride)) in shape.iter().zip(dense_strides(within)).enumerate() {
        let stride = if other == axis { 0 } else { stride as usize };
        places = places.iter().flat_map(|base| (0..*size).map(move |i| base + i * stride)).collect();
    }
    places
}

fn gather(op: &mut Op, x: T, dim: i64, index: T, out: T) -> Outcome<Run> {
    let x = op.input(x, "self", MOVED)?;
    let index = op.input(index, "index", INDICES)?;
    let out = op.output(out, "out", MOVED)?;
    same_type(&x, &out, "self and out")?;
    let axis = x.axis(dim)?;
    require(x.rank() == index.rank() && x.rank() > 0, || {
        format!("self {:?}, index {:?}", x.shape, index.shape)
    })?;
    let fits = (0..x.rank()).all(|other| other == axis || index.shape[other] <= x.shape[other]);
    require(fits, || format!("self {:?}, index {:?}", x.shape, index.shape))?;
    shaped(&out, &index.shape, "out")?;
    let from = places(&index.shape, &x.shape, axis);
    let (size, stride) = (x.shape[axis], dense_strides(&x.shape)[axis] as usize);
    run(move |io| {
        let (bits, indices) = (io.bits(x.at)?, io.indices(index.at, size)?);
        let taken: Vec<u64> = from.iter().zip(indices).map(|(base, k)| bits[base + k * stride]).collect();
        io.put_bits(out.at, &taken)
    })
}

#[allow(clippy::too_many_arguments, reason = "the op has that many")]
fn scatter(op: &mut Op, x: T, dim: i64, index: T, source: T, reduce: i64, out: T) -> Outcome<Run> {
    let x = op.input(x, "self", MOVED)?;
    let index = op.input(index, "index", INDICES)?;
    let source = op.input(source, "src", MOVED)?;
    let out = op.output(out, "out", MOVED)?;
    same_type(&x, &source, "self and src")?;
    same_type(&x, &out, "self and out")?;
    shaped(&out, &x.shape, "out")?;
    require((0..=2).contains(&reduce), || format!("reduce {reduce}"))?;
    let axis = x.axis(dim)?;
    let rank = x.rank();
    let fits = rank > 0
        && index.rank() == rank
        && source.rank() == rank
        && (0..rank).all(|other| {
            index.shape[other] <= source.shape[other]
                && (other == axis || index.shape[other] <= x.shape[other])
        });
    require(fits, || format!("self {:?}, index {:?}, src {:?}", x.shape, index.shape, source.shape))?;
    let to = places(&index.shape, &x.shape, axis);
    let from = places(&index.shape, &source.shape, rank);
    let (size, stride) = (x.shape[axis], dense_strides(&x.shape)[axis] as usize);
    run(move |io| {
        let indices = io.indices(index.at, size)?;
        let targets = to.iter().zip(indices).map(|(base, k)| base + k * stride).zip(&from);
        if x.dtype.is_float() {
            let (mut values, new) = (io.floats(x.at)?, io.floats(source.at)?);
            for (to, from) in targets {
                values[to] = match reduce {
                    0 => new[*from],
                    1 => x.dtype.round(values[to] + new[*from]),
                    _ => x.dtype.round(values[to] * new[*from]),
                };
            }
            io.put_floats(out.at, &values)
        } else {
            let (mut values, new) = (io.ints(x.at)?, io.ints(source.at)?);
            for (to, from) in targets {
                values[to] = match reduce {
                    0 => new[*from],
                    1 => values[to].wrapping_add(new[*from]),
                    _ => values[to].wrapping_mul(new[*from]),
                };
            }
            io.put_ints(out.at, &values)
        }
    })
}

/// Writes `updates[i]` into `data[i]` from place `indices[i]` of the axis on. With indices of two columns they
/// are the place on axis 0 and the place on the axis: the documentation gives the shape but no formula for it.
fn scatter_update(op: &mut Op, data: T, indices: T, updates: T, axis: i64) -> Outcome<Run> {
    let indices = op.input(indices, "indices", INDICES)?;
    let updates = op.input(updates, "updates", MOVED)?;
    let data = op.output(data, "data", MOVED)?;
    same_type(&data, &updates, "data and updates")?;
    let rank = data.rank();
    require((2..=8).contains(&rank) && updates.rank() == rank, || {
        format!("data {:?}, updates {:?}", data.shape, updates.shape)
    })?;
    let empty = data.count() == 0 || updates.count() == 0 || indices.count() == 0;
    require(!empty, || "an operand is empty".into())?;
    let axis = data.axis(axis)?;
    require(axis != 0, || "axis 0 is not allowed".into())?;
    let rows = updates.shape[0];
    let fits = match indices.shape[..] {
        [] => rows == 1,
        [n] => n == rows,
        [n, 2] => n == rows,
        _ => false,
    };
    require(fits && rows <= data.shape[0], || {
        format!("indices {:?}, updates {:?}", indices.shape, updates.shape)
    })?;
    let fits = (1..rank).all(|other| other == axis || data.shape[other] == updates.shape[other]);
    require(fits, || format!("data {:?}, updates {:?}", data.shape, updates.shape))?;
    let pairs = indices.rank() == 2;
    let to = places(&updates.shape[1..], &data.shape[1..], rank);
    let (row, stride) = (to.len(), dense_strides(&data.shape)[axis] as usize);
    let data_row = dense_strides(&data.shape)[0] as usize;
    let last = data.shape[axis] - updates.shape[axis].min(data.shape[axis]);
    run(move |io| {
        let at = io.ints(indices.at)?;
        let new = io.bits(updates.at)?;
        let mut values = io.output_bits(data.at)?;
        for i in 0..rows {
            let (on_first, place) = if pairs { (at[2 * i], at[2 * i + 1]) } else { (i as i64, at[i]) };
            if !(0..data.shape[0] as i64).contains(&on_first) || !(0..=last as i64).contains(&place) {
                return fail(
                    codes::RT_AICORE_EXCEPTION,
                    format!("index ({on_first}, {place}) of {:?}", data.shape),
                );
            }
            let base = on_first as usize * data_row + place as usize * stride;
            for (offset, value) in to.iter().zip(&new[i * row..(i + 1) * row]) {
                values[base + offset] = *value;
            }
        }
        io.put_bits(data.at, &values)
    })
}

aclnn! {
    /// Rows of a table by number.
    aclnnEmbeddingGetWorkspaceSize, aclnnEmbedding(weight: T, index: T, out: *mut c_void) |op| {
        take(&mut op, weight, 0, index, out, false)
    }

    /// Slices along an axis by number; the index has one axis.
    aclnnIndexSelectGetWorkspaceSize, aclnnIndexSelect(x: T, dim: i64, index: T, out: *mut c_void) |op| {
        take(&mut op, x, dim, index, out, true)
    }

    /// Slices along an axis by number; the index's axes replace the axis.
    aclnnGatherV2GetWorkspaceSize, aclnnGatherV2(x: T, dim: i64, index: T, out: *mut c_void) |op| {
        take(&mut op, x, dim, index, out, false)
    }

    /// Elements along an axis by number.
    aclnnGatherGetWorkspaceSize, aclnnGather(x: T, dim: i64, index: T, out: *mut c_void) |op| {
        gather(&mut op, x, dim, index, out)
    }

    /// `self` with elements of `src` put (0), added (1) or multiplied (2) in along an axis.
    aclnnScatterGetWorkspaceSize, aclnnScatter(
        x: T, dim: i64, index: T, source: T, reduce: i64, out: *mut c_void,
    ) |op| {
        scatter(&mut op, x, dim, index, source, reduce, out)
    }

    /// Writes each batch's update at its own place of an axis, which is not the first.
    aclnnInplaceScatterUpdateGetWorkspaceSize, aclnnInplaceScatterUpdate(
        data: *mut c_void, indices: T, updates: T, axis: i64,
    ) |op| {
        scatter_update(&mut op, data, indices, updates, axis)
    }
}

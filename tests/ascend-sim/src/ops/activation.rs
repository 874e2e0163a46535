//! Activations and rotary positions.

use std::ffi::c_void;

use super::arithmetic::unary;
use super::{aclnn, only, require, run, same_type, shaped, split_at};
use crate::codes;
use crate::dtype::{DType, FLOATS};
use crate::executor::{Op, Run};
use crate::failure::{Outcome, fail};
use crate::view::broadcast_map;

type T = *const c_void;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The gate and what it lets through: places of the two halves of each lane along an axis.
#[derive(Clone, Copy)]
struct Halves {
    size: usize,
    after: usize,
    interleaved: bool,
}

impl Halves {
    fn of(op_shape: &[usize], axis: usize) -> Outcome<(Self, Vec<usize>)> {
        let (_, size, after) = split_at(op_shape, axis);
        require(!op_shape.is_empty() && size.is_multiple_of(2), || {
            format!("axis {axis} of {op_shape:?} is not even")
        })?;
        let mut shape = op_shape.to_vec();
        shape[axis] /= 2;
        Ok((Self { size, after, interleaved: false }, shape))
    }

    /// The places of the gate and of the other half for the result at `index`.
    fn places(self, index: usize) -> (usize, usize) {
        let half = self.size / 2;
        let (i, n, j) = (index / (half * self.after), index / self.after % half, index % self.after);
        let place = |n: usize| (i * self.size + n) * self.after + j;
        if self.interleaved { (place(2 * n), place(2 * n + 1)) } else { (place(n), place(n + half)) }
    }
}

fn swi_glu(op: &mut Op, x: T, dim: i64, out: T) -> Outcome<Run> {
    let x = op.input(x, "x", FLOATS)?;
    let out = op.output(out, "out", FLOATS)?;
    same_type(&x, &out, "x and out")?;
    let (halves, shape) = Halves::of(&x.shape, x.axis(dim)?)?;
    shaped(&out, &shape, "out")?;
    run(move |io| {
        let values = io.floats(x.at)?;
        let result = |index| {
            let (gate, up) = halves.places(index);
            values[gate] * sigmoid(values[gate]) * values[up]
        };
        let results: Vec<f32> = (0..out.count()).map(result).collect();
        io.put_floats(out.at, &results)
    })
}

struct Clipped {
    dim: i64,
    alpha: f32,
    limit: f32,
    bias: f32,
    interleaved: bool,
}

fn clipped_swiglu(op: &mut Op, x: T, groups: T, args: Clipped, out: T) -> Outcome<Run> {
    let x = op.input(x, "x", FLOATS)?;
    let groups = op.optional(groups, "groupIndex", &[DType::I64])?;
    let out = op.output(out, "out", FLOATS)?;
    same_type(&x, &out, "x and out")?;
    require(x.is_dense() && out.is_dense(), || "x and out must be dense".into())?;
    let axis = x.axis(args.dim)?;
    let (mut halves, shape) = Halves::of(&x.shape, axis)?;
    halves.interleaved = args.interleaved;
    shaped(&out, &shape, "out")?;
    if let Some(groups) = &groups {
        require(groups.rank() == 1 && groups.count() <= 8192, || format!("groupIndex {:?}", groups.shape))?;
    }
    let (rows, _, _) = split_at(&x.shape, axis);
    run(move |io| {
        // only the rows of the groups are done
        let done = match &groups {
            None => rows,
            Some(groups) => {
                let counts = io.ints(groups.at)?;
                let total: i64 = counts.iter().sum();
                if counts.iter().any(|count| *count < 0) || total > rows as i64 {
                    return fail(
                        codes::RT_AICORE_EXCEPTION,
                        format!("groups of {total} rows, there are {rows}"),
                    );
                }
                total as usize
            }
        };
        let values = io.floats(x.at)?;
        let mut results = io.output_floats(out.at)?;
        let per_row = results.len() / rows.max(1);
        for (index, result) in results.iter_mut().take(done * per_row).enumerate() {
            let (gate, up) = halves.places(index);
            let gate = values[gate].min(args.limit);
            let up = values[up].clamp(-args.limit, args.limit);
            *result = gate * sigmoid(args.alpha * gate) * (up + args.bias);
        }
        io.put_floats(out.at, &results)
    })
}

fn rotate(op: &mut Op, x: T, cos: T, sin: T, mode: i64, out: T) -> Outcome<Run> {
    let x = op.input(x, "x", FLOATS)?;
    let cos = op.input(cos, "cos", FLOATS)?;
    let sin = op.input(sin, "sin", FLOATS)?;
    let out = op.output(out, "out", FLOATS)?;
    for (other, what) in [(&cos, "cos"), (&sin, "sin"), (&out, "out")] {
        same_type(&x, other, what)?;
    }
    // what tiling refuses is the documented internal error
    let tiling = |holds: bool, text: String| if holds { Ok(()) } else { fail(codes::NN_INNER_TILING, text) };
    tiling(x.rank() == 4 && cos.rank() == 4, format!("x {:?}, cos {:?}", x.shape, cos.shape))?;
    tiling(cos.shape == sin.shape, format!("cos {:?}, sin {:?}", cos.shape, sin.shape))?;
    tiling(out.shape == x.shape, format!("x {:?}, out {:?}", x.shape, out.shape))?;
    tiling((0..=3).contains(&mode), format!("mode {mode}"))?;
    let d = x.shape[3];
    let even = if mode == 2 { 4 } else { 2 };
    let most = if op.chip.is_950() { 1024 } else { 895 };
    tiling(d.is_multiple_of(even) && d <= most && cos.shape[3] == d, format!("D {d}"))?;
    let fits = (0..3).all(|axis| cos.shape[axis] == 1 || cos.shape[axis] == x.shape[axis]);
    tiling(fits, format!("x {:?}, cos {:?}", x.shape, cos.shape))?;
    if mode == 1 && !op.chip.is_950() {
        // documented for A2 and A3: cos and sin differ along one axis only, the positions, and the other two
        // axes of x have fewer than 1000 places together
        let positions = |axis: usize| {
            let others = (0..3).filter(|other| *other != axis);
            cos.shape[axis] == x.shape[axis]
                && others.clone().all(|other| cos.shape[other] == 1)
                && others.map(|other| x.shape[other]).product::<usize>() < 1000
        };
        tiling((0..3).any(positions), format!("interleave: x {:?}, cos {:?}", x.shape, cos.shape))?;
    }
    let map = broadcast_map(&cos.shape, &x.shape);
    op.needs(d * 8);
    run(move |io| {
        let (values, cos, sin) = (io.floats(x.at)?, io.floats(cos.at)?, io.floats(sin.at)?);
        let mut results = Vec::with_capacity(values.len());
        for (row, places) in values.chunks_exact(d).zip(map.chunks_exact(d)) {
            for (i, place) in places.iter().enumerate() {
                let (kept, turned) = pair(row, i, mode);
                results.push(kept * cos[*place] + turned * sin[*place]);
            }
        }
        io.put_floats(out.at, &results)
    })
}

/// What is multiplied by the cosine and by the sine at place `i` of a row.
fn pair(row: &[f32], i: usize, mode: i64) -> (f32, f32) {
    let d = row.len();
    // turns by a quarter inside blocks: the second half of a block, negated, before the first
    let turn = |block: usize| {
        let (start, half) = (i / block * block, block / 2);
        if i - start < half { -row[i + half] } else { row[i - half] }
    };
    match mode {
        0 => (row[i], turn(d)),
        1 => (row[i], turn(2)),
        2 => (row[i], turn(d / 2)),
        // even places first, then the odd ones; then as mode 0
        _ if i < d / 2 => (row[2 * i], -row[2 * i + 1]),
        _ => (row[2 * (i - d / 2) + 1], row[2 * (i - d / 2)]),
    }
}

aclnn! {
    /// `x · σ(x)`.
    aclnnSiluGetWorkspaceSize, aclnnSilu(x: T, out: *mut c_void) |op| {
        unary(&mut op, x, out, |x| x * sigmoid(x))
    }

    /// `σ(x)`.
    aclnnSigmoidGetWorkspaceSize, aclnnSigmoid(x: T, out: *mut c_void) |op| {
        unary(&mut op, x, out, sigmoid)
    }

    /// `ln(1 + e^(beta·x)) / beta`, and x above the threshold. Not on 950.
    aclnnSoftplusGetWorkspaceSize, aclnnSoftplus(x: T, beta: T, threshold: T, out: *mut c_void) |op| {
        only(&op, !op.chip.is_950(), "aclnnSoftplus")?;
        let (beta, threshold) = (op.scalar(beta)?.float(), op.scalar(threshold)?.float());
        unary(&mut op, x, out, move |x| if beta * x > threshold { x } else { (beta * x).exp().ln_1p() / beta })
    }

    /// `silu(first half) · second half` along an axis.
    aclnnSwiGluGetWorkspaceSize, aclnnSwiGlu(x: T, dim: i64, out: *mut c_void) |op| {
        swi_glu(&mut op, x, dim, out)
    }

    /// With gate A bounded from above and up B on both sides: `A · σ(alpha·A) · (B + bias)`.
    aclnnClippedSwigluGetWorkspaceSize, aclnnClippedSwiglu(
        x: T, groups: T, dim: i64, alpha: f64, limit: f64, bias: f64, interleaved: bool, out: *mut c_void,
    ) |op| {
        require(limit >= 0.0, || format!("limit {limit}"))?;
        let (alpha, limit, bias) = (alpha as f32, limit as f32, bias as f32);
        clipped_swiglu(&mut op, x, groups, Clipped { dim, alpha, limit, bias, interleaved }, out)
    }

    /// `x·cos + turn(x)·sin`; modes 0 half, 1 interleave, 2 quarter, 3 interleave-half.
    aclnnRotaryPositionEmbeddingGetWorkspaceSize, aclnnRotaryPositionEmbedding(
        x: T, cos: T, sin: T, mode: i64, out: *mut c_void,
    ) |op| {
        rotate(&mut op, x, cos, sin, mode, out)
    }
}

//! Matrix products.

use std::ffi::c_void;
use std::ops::{AddAssign, Mul};

use super::{aclnn, require, run, shaped};
use crate::codes;
use crate::dtype::{DType, FLOATS};
use crate::executor::{Op, Operand, Run};
use crate::failure::{Outcome, fail};
use crate::view::{broadcast, broadcast_map, count};

type T = *const c_void;

/// Rows and columns that are summed up together, so that the sums stay in registers.
const ROWS: usize = 4;
const COLUMNS: usize = 8;

/// `out[m,n] += a[m,k]·b[k,n]`, summed over k in order in the type given.
pub(crate) fn multiply<N: Copy + Default + AddAssign + Mul<Output = N>>(
    a: &[N],
    b: &[N],
    out: &mut [N],
    k: usize,
    n: usize,
) {
    if k == 0 || n == 0 {
        return;
    }
    for (rows, sums) in a.chunks(ROWS * k).zip(out.chunks_mut(ROWS * n)) {
        if rows.len() == ROWS * k {
            block::<N, ROWS>(rows, b, sums, k, n);
        } else {
            for (row, sums) in rows.chunks_exact(k).zip(sums.chunks_exact_mut(n)) {
                block::<N, 1>(row, b, sums, k, n);
            }
        }
    }
}

/// The product of `M` rows with all columns.
fn block<N: Copy + Default + AddAssign + Mul<Output = N>, const M: usize>(
    a: &[N],
    b: &[N],
    out: &mut [N],
    k: usize,
    n: usize,
) {
    let whole = n - n % COLUMNS;
    for column in (0..whole).step_by(COLUMNS) {
        let mut sums = [[N::default(); COLUMNS]; M];
        for (row, sums) in sums.iter_mut().enumerate() {
            sums.copy_from_slice(&out[row * n + column..][..COLUMNS]);
        }
        for (l, values) in b.chunks_exact(n).enumerate() {
            let values = &values[column..column + COLUMNS];
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = a[row * k + l];
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * *value);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            out[row * n + column..][..COLUMNS].copy_from_slice(sums);
        }
    }
    for row in 0..M {
        for column in whole..n {
            for l in 0..k {
                out[row * n + column] += a[row * k + l] * b[l * n + column];
            }
        }
    }
}

/// How the cube unit sees a value of f32: whole, with the 10 bits of mantissa of HF32, or as f16.
#[derive(Clone, Copy)]
enum Precision {
    Whole,
    Hf32,
    F16,
}

impl Precision {
    fn see(self, value: f32) -> f32 {
        match self {
            Self::Whole => value,
            Self::F16 => DType::F16.round(value),
            // HF32 keeps the exponent and, as TF32, 10 bits of mantissa; rounded half up in magnitude
            Self::Hf32 if value.is_finite() => f32::from_bits((value.to_bits() + 0x1000) & !0x1FFF),
            Self::Hf32 => value,
        }
    }
}

fn precision(cube_math_type: i8, dtype: DType) -> Outcome<Precision> {
    let f32s = dtype == DType::F32;
    match cube_math_type {
        0 | 4 => Ok(Precision::Whole),
        1 => Ok(if f32s { Precision::Hf32 } else { Precision::Whole }),
        2 if dtype != DType::Bf16 => Ok(Precision::F16),
        3 if f32s => Ok(Precision::Hf32),
        other => fail(codes::NN_PARAM_INVALID, format!("cubeMathType {other} for {dtype:?}")),
    }
}

/// The operands of a product and the type that it is computed in.
fn operands(op: &mut Op, a: T, b: T, out: T) -> Outcome<(Operand, Operand, Operand, DType)> {
    let a = op.input(a, "self", FLOATS)?;
    let b = op.input(b, "mat2", FLOATS)?;
    let out = op.output(out, "out", FLOATS)?;
    let dtype = match (a.dtype, b.dtype) {
        // documented for A2 and A3: BF16 goes with nothing but BF16
        (x, y) if x != y && (x == DType::Bf16 || y == DType::Bf16) && !op.chip.is_950() => {
            return fail(codes::NN_PARAM_INVALID, format!("{x:?} times {y:?}"));
        }
        (x, y) => x.promote(y)?,
    };
    Ok((a, b, out, dtype))
}

fn matmul(op: &mut Op, a: T, b: T, out: T, cube_math_type: i8) -> Outcome<Run> {
    let (a, b, out, dtype) = operands(op, a, b, out)?;
    let precision = precision(cube_math_type, dtype)?;
    let (ranks, most) = ((a.rank(), b.rank()), 6);
    require(ranks.0 >= 1 && ranks.1 >= 1 && ranks.0 <= most && ranks.1 <= most, || {
        format!("{:?} times {:?}", a.shape, b.shape)
    })?;
    // a vector on the left is a row, on the right a column; the axis that it lacks goes from the result
    let left = if a.rank() == 1 { vec![1, a.shape[0]] } else { a.shape.clone() };
    let right = if b.rank() == 1 { vec![b.shape[0], 1] } else { b.shape.clone() };
    let ((left_batch, left), (right_batch, right)) =
        (left.split_at(left.len() - 2), right.split_at(right.len() - 2));
    let (m, k, n) = (left[0], left[1], right[1]);
    require(k == right[0], || format!("{:?} times {:?}", a.shape, b.shape))?;
    let batch = broadcast(left_batch, right_batch)?;
    let mut shape = batch.clone();
    if a.rank() > 1 {
        shape.push(m);
    }
    if b.rank() > 1 {
        shape.push(n);
    }
    shaped(&out, &shape, "out")?;
    let (from_a, from_b) = (broadcast_map(left_batch, &batch), broadcast_map(right_batch, &batch));
    op.needs(count(&out.shape) * 4);
    run(move |io| {
        let see =
            |values: Vec<f32>| -> Vec<f32> { values.into_iter().map(|value| precision.see(value)).collect() };
        let (x, y) = (see(io.floats(a.at)?), see(io.floats(b.at)?));
        let mut product = vec![0.0; from_a.len() * m * n];
        for (i, (p, q)) in from_a.iter().zip(&from_b).enumerate() {
            let into = &mut product[i * m * n..(i + 1) * m * n];
            multiply(&x[p * m * k..(p + 1) * m * k], &y[q * k * n..(q + 1) * k * n], into, k, n);
        }
        io.put_floats(out.at, &product)
    })
}

fn of_rank(op: &mut Op, a: T, b: T, out: T, cube_math_type: i8, rank: usize) -> Outcome<Run> {
    for tensor in [a, b, out] {
        let shape = crate::tensor::TENSORS.get(tensor)?.view().shape;
        require(shape.len() == rank, || format!("{shape:?} has not {rank} axes"))?;
    }
    matmul(op, a, b, out, cube_math_type)
}

aclnn! {
    /// The matrix product of 1 to 6 axes, batches broadcast. A transposed operand is a strided view.
    aclnnMatmulGetWorkspaceSize, aclnnMatmul(a: T, b: T, out: *mut c_void, cube_math_type: i8) |op| {
        matmul(&mut op, a, b, out, cube_math_type)
    }

    /// The product of two matrices.
    aclnnMmGetWorkspaceSize, aclnnMm(a: T, b: T, out: *mut c_void, cube_math_type: i8) |op| {
        of_rank(&mut op, a, b, out, cube_math_type, 2)
    }

    /// The products of two batches of matrices.
    aclnnBatchMatMulGetWorkspaceSize, aclnnBatchMatMul(a: T, b: T, out: *mut c_void, cube_math_type: i8) |op| {
        of_rank(&mut op, a, b, out, cube_math_type, 3)
    }
}

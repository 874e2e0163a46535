//! Matrix products, dense and grouped.

use std::ffi::c_void;
use std::ops::{AddAssign, Mul};

use super::{aclnn, require, run, shaped};
use crate::codes;
use crate::dtype::{DType, FLOATS};
use crate::executor::{Op, Operand, Run};
use crate::failure::{Outcome, fail};
use crate::tensor::INT_ARRAYS;
use crate::view::{broadcast, broadcast_map, count};

type T = *const c_void;

/// `out[m,n] += a[m,k]·b[k,n]`, summed over k in order in the type given.
fn multiply<N: Copy + AddAssign + Mul<Output = N>>(a: &[N], b: &[N], out: &mut [N], k: usize, n: usize) {
    for (row, sums) in a.chunks_exact(k.max(1)).zip(out.chunks_exact_mut(n.max(1))) {
        for (factor, other) in row.iter().zip(b.chunks_exact(n.max(1))) {
            for (sum, value) in sums.iter_mut().zip(other) {
                *sum += *factor * *value;
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

    /// One product per group of rows: single x [m,k], single weight [e,k,n], single out [m,n], groupType 0.
    /// Simulated: BF16, FP16 and FP32 without scales, INT8 by INT8 with scale and per-token scale.
    aclnnGroupedMatmulV5GetWorkspaceSize, aclnnGroupedMatmulV5(
        x: T, weight: T, bias: T, scale: T, offset: T, antiquant_scale: T, antiquant_offset: T,
        token_scale: T, group_list: T, act_input: T, act_scale: T, act_offset: T, split_item: i64,
        group_type: i64, group_list_type: i64, act_type: i64, tuning: *mut c_void, out: *mut c_void,
        act_out: *mut c_void, scale_out: *mut c_void,
    ) |op| {
        let null = [offset, antiquant_scale, antiquant_offset, act_input, act_scale, act_offset, act_out, scale_out];
        require(null.iter().all(|list| list.is_null()), || "an argument that is not simulated is not null".into())?;
        require(split_item == 2 || split_item == 3, || format!("splitItem {split_item}, single out is simulated"))?;
        require(group_type == 0, || format!("groupType {group_type}, 0 is simulated"))?;
        if !tuning.is_null() {
            let tuning = INT_ARRAYS.get(tuning)?;
            require(tuning.len() <= 3 && tuning.iter().all(|value| *value >= 0), || "tuningConfig".into())?;
        }
        grouped(&mut op, Grouped { x, weight, bias, scale, token_scale, group_list, group_list_type, act_type, out })
    }
}

struct Grouped {
    x: T,
    weight: T,
    bias: T,
    scale: T,
    token_scale: T,
    group_list: T,
    group_list_type: i64,
    act_type: i64,
    out: T,
}

/// The rows of each group as (first, last + 1, expert).
fn group_rows(list: &[i64], kind: i64, experts: usize, rows: usize) -> Outcome<Vec<(usize, usize, usize)>> {
    let mut groups = Vec::new();
    let mut first = 0i64;
    let pairs: Vec<(i64, i64)> = match kind {
        // key and count; a count of 0 ends the list
        2 => list.chunks_exact(2).map(|pair| (pair[0], pair[1])).take_while(|pair| pair.1 > 0).collect(),
        _ => list.iter().enumerate().map(|(expert, value)| (expert as i64, *value)).collect(),
    };
    for (expert, value) in pairs {
        let last = if kind == 0 { value } else { first + value };
        if last < first || last > rows as i64 || !(0..experts as i64).contains(&expert) {
            return fail(codes::RT_AICORE_EXCEPTION, format!("group list {list:?} for {rows} rows"));
        }
        groups.push((first as usize, last as usize, expert as usize));
        first = last;
    }
    Ok(groups)
}

fn grouped(op: &mut Op, args: Grouped) -> Outcome<Run> {
    use DType::*;
    let single =
        |op: &mut Op, list: T, what: &str, dtypes: &[DType]| match op.optional_single(list, what, dtypes)? {
            Some(operand) => Ok(operand),
            None => fail(codes::NN_PARAM_NULLPTR, format!("{what} is null")),
        };
    let x = single(op, args.x, "x", &[F32, F16, Bf16, I8])?;
    let weight = single(op, args.weight, "weight", &[F32, F16, Bf16, I8])?;
    let bias = op.optional_single(args.bias, "bias", &[F32, F16, I32, Bf16])?;
    let scale = op.optional_single(args.scale, "scale", &[F32, Bf16])?;
    let token_scale = op.optional_single(args.token_scale, "perTokenScale", &[F32])?;
    let list = op.input(args.group_list, "groupList", &[I64])?;
    let out = op.single_output(args.out, "out", &[F32, F16, Bf16, I32])?;
    let quantised = x.dtype == I8;
    require(x.dtype == weight.dtype, || format!("x {:?}, weight {:?}", x.dtype, weight.dtype))?;
    require(x.rank() == 2 && weight.rank() == 3, || format!("x {:?}, weight {:?}", x.shape, weight.shape))?;
    let ((m, k), (e, n)) = ((x.shape[0], x.shape[1]), (weight.shape[0], weight.shape[2]));
    require(weight.shape[1] == k, || format!("x {:?}, weight {:?}", x.shape, weight.shape))?;
    require(e <= 1024, || format!("{e} groups"))?;
    shaped(&out, &[m, n], "out")?;
    let fits = if quantised { matches!(out.dtype, F16 | Bf16) } else { out.dtype == x.dtype };
    require(fits, || format!("x {:?}, out {:?}", x.dtype, out.dtype))?;
    require(quantised == scale.is_some() && (quantised || token_scale.is_none()), || {
        "scales and types".into()
    })?;
    if let Some(scale) = &scale {
        shaped(scale, &[e, n], "scale")?;
    }
    if let Some(token_scale) = &token_scale {
        shaped(token_scale, &[m], "perTokenScale")?;
    }
    if let Some(bias) = &bias {
        shaped(bias, &[e, n], "bias")?;
        require(bias.dtype != Bf16 || op.chip.is_950(), || "a BF16 bias needs Ascend 950".into())?;
    }
    let list_shape = if args.group_list_type == 2 { vec![e, 2] } else { vec![e] };
    require((0..=2).contains(&args.group_list_type), || format!("groupListType {}", args.group_list_type))?;
    shaped(&list, &list_shape, "groupList")?;
    // GELU in its three forms is documented, but not simulated
    require(matches!(args.act_type, 0 | 1 | 5), || format!("actType {}", args.act_type))?;
    // documented: an INT32 bias is added to the integer sums, another one to the scaled result
    let early_bias = bias.as_ref().is_some_and(|bias| bias.dtype == I32);
    let (kind, act) = (args.group_list_type, args.act_type);
    op.needs(m * n * 4);
    run(move |io| {
        let groups = group_rows(&io.ints(list.at)?, kind, e, m)?;
        // integer sums are exact: f32 would not hold them
        let (rows, weights) = (io.floats(x.at)?, io.floats(weight.at)?);
        let (rows_int, weights_int) =
            if quantised { (io.ints(x.at)?, io.ints(weight.at)?) } else { (vec![], vec![]) };
        let read =
            |operand: &Option<Operand>| operand.as_ref().map(|operand| io.floats(operand.at)).transpose();
        let (biases, scales, token_scales) = (read(&bias)?, read(&scale)?, read(&token_scale)?);
        // rows of no group keep what was there: the documentation promises nothing for them
        let mut results = io.output_floats(out.at)?;
        for (first, last, expert) in groups {
            let (a, b) = (first * k..last * k, expert * k * n..(expert + 1) * k * n);
            let mut product = vec![0.0; (last - first) * n];
            if quantised {
                let mut sums = vec![0; product.len()];
                multiply(&rows_int[a], &weights_int[b], &mut sums, k, n);
                product = sums.into_iter().map(|sum| sum as f32).collect();
            } else {
                multiply(&rows[a], &weights[b], &mut product, k, n);
            }
            for (i, value) in product.iter_mut().enumerate() {
                let (row, column) = (first + i / n.max(1), i % n.max(1));
                let at = expert * n + column;
                let bias = biases.as_ref().map_or(0.0, |values| values[at]);
                if early_bias {
                    *value += bias;
                }
                *value *= scales.as_ref().map_or(1.0, |values| values[at]);
                *value *= token_scales.as_ref().map_or(1.0, |values| values[row]);
                if !early_bias {
                    *value += bias;
                }
                *value = match act {
                    1 => value.max(0.0),
                    5 => *value / (1.0 + (-*value).exp()),
                    _ => *value,
                };
            }
            results[first * n..last * n].copy_from_slice(&product);
        }
        io.put_floats(out.at, &results)
    })
}

//! Grouped matrix products: one x, one weight of all experts, rows grouped by expert.

use std::ffi::c_void;
use std::num::Wrapping;

use super::matmul::multiply;
use super::{aclnn, require, run, shaped};
use crate::codes;
use crate::dtype::DType::{self, *};
use crate::executor::{Io, Op, Operand, Run};
use crate::failure::{Outcome, fail};
use crate::tensor::INT_ARRAYS;

type T = *const c_void;

/// Rows of K that share a scale in the W4A8 form.
const W4_GROUP: usize = 256;

aclnn! {
    /// One product per group of rows: single x of m·k, weight of e·k·n and out of m·n, groupType 0.
    /// Simulated: BF16, FP16 and FP32 without scales, INT8 by INT8 and by INT4 with scales.
    aclnnGroupedMatmulV5GetWorkspaceSize, aclnnGroupedMatmulV5(
        x: T, weight: T, bias: T, scale: T, offset: T, antiquant_scale: T, antiquant_offset: T,
        token_scale: T, group_list: T, act_input: T, act_scale: T, act_offset: T, split_item: i64,
        group_type: i64, group_list_type: i64, act_type: i64, tuning: *mut c_void, out: *mut c_void,
        act_out: *mut c_void, scale_out: *mut c_void,
    ) |op| {
        let null =
            [offset, antiquant_scale, antiquant_offset, act_input, act_scale, act_offset, act_out, scale_out];
        let unused = null.iter().all(|list| list.is_null());
        require(unused, || "an argument that is not simulated is not null".into())?;
        require(matches!(split_item, 2 | 3), || format!("splitItem {split_item}, single out is simulated"))?;
        require(group_type == 0, || format!("groupType {group_type}, 0 is simulated"))?;
        if !tuning.is_null() {
            require(!op.chip.is_950(), || "tuningConfig is not supported on Ascend 950".into())?;
            let tuning = INT_ARRAYS.get(tuning)?;
            require(tuning.len() <= 3 && tuning.iter().all(|value| *value >= 0), || "tuningConfig".into())?;
        }
        grouped(&mut op, Grouped {
            x, weight, bias, scale, token_scale, group_list, group_list_type, act_type, out,
        })
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

/// What is multiplied by what.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Floats without scales.
    Plain,
    /// INT8 by INT8.
    A8W8,
    /// INT8 by INT4, a scale for each 256 rows of K.
    A8W4,
}

/// The rows of each group as (first, last + 1, expert).
fn group_rows(list: &[i64], kind: i64, experts: usize, rows: usize) -> Outcome<Vec<(usize, usize, usize)>> {
    let mut groups = Vec::new();
    let mut first = 0i64;
    let pairs: Vec<(i64, i64)> = match kind {
        2 => list.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(),
        _ => (0..).zip(list.iter().copied()).collect(),
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

/// The operands of a grouped product.
#[derive(Clone)]
struct Operands {
    x: Operand,
    weight: Operand,
    bias: Option<Operand>,
    scale: Option<Operand>,
    token_scale: Option<Operand>,
    list: Operand,
    out: Operand,
}

impl Operands {
    fn gather(op: &mut Op, args: &Grouped) -> Outcome<Self> {
        let single = |op: &mut Op, list: T, what: &str, dtypes: &[DType]| match op
            .optional_single(list, what, dtypes)?
        {
            Some(operand) => Ok(operand),
            None => fail(codes::NN_PARAM_NULLPTR, format!("{what} is null")),
        };
        Ok(Self {
            x: single(op, args.x, "x", &[F32, F16, Bf16, I8])?,
            weight: single(op, args.weight, "weight", &[F32, F16, Bf16, I8, I4])?,
            bias: op.optional_single(args.bias, "bias", &[F32, F16, I32, Bf16])?,
            scale: op.optional_single(args.scale, "scale", &[F32, Bf16, U64])?,
            token_scale: op.optional_single(args.token_scale, "perTokenScale", &[F32])?,
            list: op.input(args.group_list, "groupList", &[I64])?,
            out: op.single_output(args.out, "out", &[F32, F16, Bf16, I32])?,
        })
    }

    /// The documented combinations of types; answers which they are.
    fn check_types(&self, is_950: bool) -> Outcome<Kind> {
        let bias = self.bias.as_ref().map(|bias| bias.dtype);
        let scale = self.scale.as_ref().map(|scale| scale.dtype);
        let (x, weight, out) = (self.x.dtype, self.weight.dtype, self.out.dtype);
        let tokens = self.token_scale.is_some();
        let (kind, fits) = match (x, weight) {
            (I8, I8) => {
                let scaled = match (scale, out) {
                    (None, I32) => !tokens,
                    (Some(Bf16), Bf16) | (Some(F32), F16) => true,
                    (Some(F32), Bf16) => is_950,
                    _ => false,
                };
                // another bias than INT32 goes with dynamic quantisation on 950
                (Kind::A8W8, scaled && (is_950 || matches!(bias, None | Some(I32))))
            }
            // 950 has no INT4 in its cube: this form is documented for A2 and A3
            (I8, I4) => {
                let fits = !is_950 && bias == Some(F32) && scale == Some(U64) && tokens;
                (Kind::A8W4, fits && matches!(out, Bf16 | F16))
            }
            (x, weight) => {
                let wide = if x == F16 { F16 } else { F32 };
                let biased = bias.is_none_or(|bias| bias == wide || is_950 && bias == x);
                (Kind::Plain, x != I8 && x == weight && out == x && scale.is_none() && !tokens && biased)
            }
        };
        require(fits, || {
            format!(
                "x {x:?}, weight {weight:?}, bias {bias:?}, scale {scale:?}, per-token {tokens}, out {out:?}"
            )
        })?;
        Ok(kind)
    }

    fn floats(&self, io: &Io<'_>, operand: &Option<Operand>) -> Outcome<Option<Vec<f32>>> {
        operand.as_ref().map(|operand| io.floats(operand.at)).transpose()
    }
}

fn check_shapes(all: &Operands, kind: Kind, list_type: i64) -> Outcome {
    let (x, weight) = (&all.x, &all.weight);
    require(x.rank() == 2 && weight.rank() == 3, || format!("x {:?}, weight {:?}", x.shape, weight.shape))?;
    let ((m, k), (e, n)) = ((x.shape[0], x.shape[1]), (weight.shape[0], weight.shape[2]));
    require(weight.shape[1] == k, || format!("x {:?}, weight {:?}", x.shape, weight.shape))?;
    require(e <= 1024, || format!("{e} groups"))?;
    require(k < 65536 && n < 65536, || format!("K {k}, N {n}"))?;
    require(x.strides[1] == 1 || k == 1, || "x can't be transposed".into())?;
    shaped(&all.out, &[m, n], "out")?;
    let scale_shape = if kind == Kind::A8W4 {
        require(weight.is_dense(), || "an INT4 weight can't be transposed".into())?;
        require(k.is_multiple_of(W4_GROUP) && k <= 18432 && n.is_multiple_of(8), || format!("K {k}, N {n}"))?;
        require(list_type == 1, || format!("groupListType {list_type}"))?;
        vec![e, k / W4_GROUP, n]
    } else {
        vec![e, n]
    };
    if let Some(scale) = &all.scale {
        shaped(scale, &scale_shape, "scale")?;
    }
    if let Some(token_scale) = &all.token_scale {
        shaped(token_scale, &[m], "perTokenScale")?;
    }
    if let Some(bias) = &all.bias {
        shaped(bias, &[e, n], "bias")?;
    }
    require((0..=2).contains(&list_type), || format!("groupListType {list_type}"))?;
    let list_shape = if list_type == 2 { vec![e, 2] } else { vec![e] };
    shaped(&all.list, &list_shape, "groupList")
}

fn grouped(op: &mut Op, args: Grouped) -> Outcome<Run> {
    let all = Operands::gather(op, &args)?;
    let kind = all.check_types(op.chip.is_950())?;
    check_shapes(&all, kind, args.group_list_type)?;
    // GELU in its forms is documented for INT8, but not simulated
    let acts: &[i64] = if kind == Kind::A8W8 { &[0, 1, 5] } else { &[0] };
    require(acts.contains(&args.act_type), || format!("actType {}", args.act_type))?;
    require(args.group_list_type != 2 || !op.chip.is_950() || kind == Kind::A8W8, || {
        "groupListType 2".into()
    })?;
    let m = all.x.shape[0];
    let (e, n) = (all.weight.shape[0], all.weight.shape[2]);
    op.needs(m * n * 4);
    run(move |io| {
        let groups = group_rows(&io.ints(all.list.at)?, args.group_list_type, e, m)?;
        // documented: rows of no group are not updated
        let mut results = io.output_floats(all.out.at)?;
        let product = Product::read(io, &all, kind)?;
        // an expert without rows is not read at all
        for (first, last, expert) in groups.into_iter().filter(|(first, last, _)| first < last) {
            let rows = product.rows(io, first..last, expert, args.act_type)?;
            results[first * n..last * n].copy_from_slice(&rows);
        }
        io.put_floats(all.out.at, &results)
    })
}

/// The elements of the operands but the weight, of which each expert's part is read when it has rows.
struct Product<'a> {
    kind: Kind,
    weight: &'a Operand,
    floats: Vec<f32>,
    ints: Vec<Wrapping<i32>>,
    bias: Option<Vec<f32>>,
    // an INT32 bias is added to the integer sums, another one to the scaled result
    early_bias: bool,
    scale: Option<Vec<f32>>,
    token_scale: Option<Vec<f32>>,
}

impl<'a> Product<'a> {
    fn read(io: &Io<'_>, all: &'a Operands, kind: Kind) -> Outcome<Self> {
        let plain = kind == Kind::Plain;
        let scale = match &all.scale {
            // a UINT64 scale has the bits of an f32 in its lower half
            Some(scale) if scale.dtype == U64 => {
                Some(io.bits(scale.at)?.into_iter().map(|bits| f32::from_bits(bits as u32)).collect())
            }
            scale => all.floats(io, scale)?,
        };
        Ok(Self {
            kind,
            weight: &all.weight,
            floats: if plain { io.floats(all.x.at)? } else { Vec::new() },
            ints: if plain { Vec::new() } else { io.small_ints(all.x.at)? },
            bias: all.floats(io, &all.bias)?,
            early_bias: all.bias.as_ref().is_some_and(|bias| bias.dtype == I32),
            scale,
            token_scale: all.floats(io, &all.token_scale)?,
        })
    }

    /// The results of the rows of one expert.
    fn rows(&self, io: &Io<'_>, rows: std::ops::Range<usize>, expert: usize, act: i64) -> Outcome<Vec<f32>> {
        let (k, n) = (self.weight.shape[1], self.weight.shape[2]);
        let a = rows.start * k..rows.end * k;
        let mut product = vec![0.0; rows.len() * n];
        match self.kind {
            Kind::Plain => {
                let weight = io.floats_of(self.weight.at, expert)?;
                multiply(&self.floats[a], &weight, &mut product, k, n);
            }
            Kind::A8W8 => {
                // integer sums are exact: f32 would not hold them; with K < 65536 they fit 32 bits
                let weight = io.small_ints_of(self.weight.at, expert)?;
                let mut sums = vec![Wrapping(0); product.len()];
                multiply(&self.ints[a], &weight, &mut sums, k, n);
                product = sums.into_iter().map(|sum| sum.0 as f32).collect();
            }
            Kind::A8W4 => {
                let weight = io.small_ints_of(self.weight.at, expert)?;
                self.w4_sums(&self.ints[a], &weight, &mut product, expert, k, n);
            }
        }
        for (i, value) in product.iter_mut().enumerate() {
            let (row, at) = (rows.start + i / n, expert * n + i % n);
            let bias = self.bias.as_ref().map_or(0.0, |values| values[at]);
            let token_scale = self.token_scale.as_ref().map_or(1.0, |values| values[row]);
            *value = if self.kind == Kind::A8W4 {
                (*value + bias) * token_scale
            } else {
                let scale = self.scale.as_ref().map_or(1.0, |values| values[at]);
                let early = if self.early_bias { bias } else { 0.0 };
                (*value + early) * scale * token_scale + (bias - early)
            };
            *value = match act {
                1 => value.max(0.0),
                5 => *value / (1.0 + (-*value).exp()),
                _ => *value,
            };
        }
        Ok(product)
    }

    /// Documented: 8 is taken from each x, and the bias brings back what that takes away.
    fn w4_sums(
        &self,
        x: &[Wrapping<i32>],
        weight: &[Wrapping<i32>],
        product: &mut [f32],
        expert: usize,
        k: usize,
        n: usize,
    ) {
        let groups = k / W4_GROUP;
        let mut sums = vec![Wrapping(0); n];
        for (row, product) in x.chunks_exact(k).zip(product.chunks_exact_mut(n)) {
            for group in 0..groups {
                let places = group * W4_GROUP..(group + 1) * W4_GROUP;
                let less: Vec<_> = row[places.clone()].iter().map(|value| value - Wrapping(8)).collect();
                sums.fill(Wrapping(0));
                multiply(&less, &weight[places.start * n..places.end * n], &mut sums, W4_GROUP, n);
                for (column, value) in product.iter_mut().enumerate() {
                    let at = (expert * groups + group) * n + column;
                    let scale = self.scale.as_ref().map_or(1.0, |values| values[at]);
                    *value += sums[column].0 as f32 * scale;
                }
            }
        }
    }
}

//! Routing rows to experts and back. Dropless only: the drop-and-pad forms are documented, but not simulated.

use std::ffi::c_void;

use super::quant::quantise;
use super::{aclnn, require, run, same_type, tiled, tiling};
use crate::codes;
use crate::dtype::{DType, FLOATS};
use crate::executor::{Op, Operand, Run};
use crate::failure::{Outcome, fail};
use crate::tensor::INT_ARRAYS;

type T = *const c_void;

struct Routing {
    x: T,
    experts: T,
    scale: T,
    offset: T,
    active: i64,
    expert_num: i64,
    drop_pad: i64,
    count_kind: i64,
    counted: bool,
    quant_mode: i64,
    range: T,
    row_kind: i64,
    out: T,
    rows: T,
    counts: T,
    scales: T,
}

/// What of the outputs is asked for, and how.
#[derive(Clone, Copy)]
struct Form {
    first: i64,
    last: i64,
    count_kind: i64,
    counted: bool,
    row_kind: i64,
    k: usize,
    h: usize,
    kept: usize,
}

impl Form {
    /// The flat places of `ids` in the order of their experts, those outside the range left out.
    fn order(&self, ids: &[i64]) -> Vec<usize> {
        let mut order: Vec<usize> =
            (0..ids.len()).filter(|i| (self.first..self.last).contains(&ids[*i])).collect();
        order.sort_by_key(|i| ids[*i]);
        order
    }

    fn counts(&self, ids: &[i64], order: &[usize], len: usize) -> Vec<i64> {
        let mut counts = vec![0i64; (self.last - self.first) as usize];
        for i in order {
            counts[(ids[*i] - self.first) as usize] += 1;
        }
        match self.count_kind {
            0 => {
                let mut total = 0;
                counts.iter_mut().for_each(|count| {
                    total += *count;
                    *count = total;
                });
                counts
            }
            1 => counts,
            // pairs of expert and count for the experts that have rows; a count of 0 ends the list
            _ => {
                let numbered = (self.first..).zip(counts).filter(|(_, count)| *count > 0);
                let mut pairs: Vec<i64> = numbered.flat_map(|(expert, count)| [expert, count]).collect();
                pairs.resize(len, 0);
                pairs
            }
        }
    }
}

fn init_routing(op: &mut Op, args: Routing) -> Outcome<Run> {
    let quantised = args.quant_mode == 1;
    let x = op.input(args.x, "x", &[DType::F32, DType::F16, DType::Bf16, DType::I8])?;
    let experts = op.input(args.experts, "expertIdx", &[DType::I32])?;
    let scale = op.optional(args.scale, "scale", &[DType::F32])?;
    require(args.offset.is_null(), || "offset goes with static quantisation, which is not simulated".into())?;
    let out = op.output(args.out, "expandedXOut", &[DType::F32, DType::F16, DType::Bf16, DType::I8])?;
    let rows = op.output(args.rows, "expandedRowIdxOut", &[DType::I32])?;
    let counts = op.output(args.counts, "expertTokensCountOrCumsumOut", &[DType::I64])?;
    let wants_scales = quantised || scale.is_some();
    let scales =
        if wants_scales { Some(op.output(args.scales, "expandedScaleOut", &[DType::F32])?) } else { None };
    // static INT8, MXFP8 and HIF8 are documented for some chips, but not simulated
    tiling(matches!(args.quant_mode, -1 | 1), || format!("quantMode {}", args.quant_mode))?;
    tiling(args.drop_pad == 0, || format!("dropPadMode {}, 0 is simulated", args.drop_pad))?;
    require(!quantised || x.dtype != DType::I8 && out.dtype == DType::I8, || {
        "types of dynamic quantisation".into()
    })?;
    if !quantised {
        same_type(&x, &out, "x and expandedXOut")?;
    }
    tiling(x.rank() == 2 && experts.rank() == 2 && x.shape[0] == experts.shape[0], || {
        format!("x {:?}, expertIdx {:?}", x.shape, experts.shape)
    })?;
    let (n, h, k) = (x.shape[0], x.shape[1], experts.shape[1]);
    let most = if args.count_kind == 2 { 5120 } else { 10240 };
    tiling((0..=most).contains(&args.expert_num), || format!("expertNum {}", args.expert_num))?;
    tiling((0..=2).contains(&args.count_kind), || format!("expertTokensNumType {}", args.count_kind))?;
    tiling(matches!(args.row_kind, 0 | 1), || format!("rowIdxType {}", args.row_kind))?;
    let whole = (n * k) as i64;
    tiling(args.active >= 0 && (!op.chip.is_950() || args.active == whole), || {
        format!("activeNum {}", args.active)
    })?;
    tiling(args.counted || !op.chip.is_950(), || "expertTokensNumFlag must be set on Ascend 950".into())?;
    let range =
        if args.range.is_null() { vec![0, args.expert_num] } else { INT_ARRAYS.get(args.range)?.to_vec() };
    let [first, last] = range[..] else { return fail(codes::NN_INNER_TILING, format!("range {range:?}")) };
    tiling(0 <= first && first < last && last <= args.expert_num, || format!("range {range:?}"))?;
    let kept = if args.active == 0 { n * k } else { (n * k).min(args.active as usize) };
    tiled(&out, &[kept, h], "expandedXOut")?;
    tiled(&rows, &[n * k], "expandedRowIdxOut")?;
    let owned = (last - first) as usize;
    if args.counted {
        let shape = if args.count_kind == 2 { vec![args.expert_num as usize, 2] } else { vec![owned] };
        tiled(&counts, &shape, "expertTokensCountOrCumsumOut")?;
    }
    if let Some(scales) = &scales {
        tiling(scales.count() == kept, || format!("expandedScaleOut {:?} for {kept} rows", scales.shape))?;
    }
    if let Some(scale) = &scale {
        tiled(scale, if quantised { vec![owned, h] } else { vec![n] }.as_slice(), "scale")?;
    }
    let (count_kind, counted, row_kind) = (args.count_kind, args.counted, args.row_kind);
    let form = Form { first, last, count_kind, counted, row_kind, k, h, kept };
    let expert_num = args.expert_num as usize;
    op.needs(n * k * 16);
    run(move |io| {
        io.indices(experts.at, expert_num)?;
        let ids = io.ints(experts.at)?;
        let order = form.order(&ids);
        let mut places = if form.row_kind == 0 { vec![-1; ids.len()] } else { io.output_ints(rows.at)? };
        for (i, flat) in order.iter().enumerate() {
            if form.row_kind == 0 {
                places[*flat] = i as i64;
            } else {
                places[i] = *flat as i64;
            }
        }
        io.put_ints(rows.at, &places)?;
        if form.counted {
            io.put_ints(counts.at, &form.counts(&ids, &order, counts.count()))?;
        }
        let factors = scale.as_ref().map(|scale| io.floats(scale.at)).transpose()?;
        let taken = order.iter().take(form.kept).enumerate();
        if !quantised {
            let (bits, mut moved) = (io.bits(x.at)?, io.output_bits(out.at)?);
            for (i, flat) in taken.clone() {
                let row = flat / form.k;
                moved[i * form.h..(i + 1) * form.h].copy_from_slice(&bits[row * form.h..(row + 1) * form.h]);
            }
            io.put_bits(out.at, &moved)?;
            if let (Some(factors), Some(scales)) = (&factors, &scales) {
                let mut moved = io.output_floats(scales.at)?;
                taken.for_each(|(i, flat)| moved[i] = factors[flat / form.k]);
                io.put_floats(scales.at, &moved)?;
            }
            return Ok(());
        }
        let Some(scales) = &scales else { return Ok(()) };
        let (values, mut moved) = (io.floats(x.at)?, io.output_ints(out.at)?);
        let mut row_scales = io.output_floats(scales.at)?;
        for (i, flat) in taken {
            let row = flat / form.k;
            let mut lane = values[row * form.h..(row + 1) * form.h].to_vec();
            // the documentation divides the row without its smooth factors; with them it is DynamicQuant's formula
            if let Some(factors) = &factors {
                let expert = (ids[*flat] - form.first) as usize;
                lane.iter_mut().zip(&factors[expert * form.h..]).for_each(|(value, factor)| *value *= factor);
            }
            let (quantised, scale) = quantise(&lane);
            moved[i * form.h..(i + 1) * form.h].copy_from_slice(&quantised);
            row_scales[i] = scale;
        }
        io.put_ints(out.at, &moved)?;
        io.put_floats(scales.at, &row_scales)
    })
}

struct Finalizing {
    x: T,
    rows: T,
    shared: [T; 2],
    bias: T,
    scales: T,
    experts: T,
    mode: i64,
    out: T,
}

fn finalize_routing(op: &mut Op, args: Finalizing) -> Outcome<Run> {
    let x = op.input(args.x, "expandedX", FLOATS)?;
    let rows = op.input(args.rows, "expandedRowIdx", &[DType::I32])?;
    let [x1, x2] = args.shared;
    let x1 = op.optional(x1, "x1", &[x.dtype])?;
    let x2 = op.optional(x2, "x2", &[x.dtype])?;
    let bias = op.optional(args.bias, "bias", &[x.dtype])?;
    let scales = op.optional(args.scales, "scales", FLOATS)?;
    let experts = op.optional(args.experts, "expertIdx", &[DType::I32])?;
    let out = op.output(args.out, "out", &[x.dtype])?;
    tiling(matches!(args.mode, 0 | 2), || format!("dropPadMode {}, 0 and 2 are simulated", args.mode))?;
    tiling(x2.is_none() || x1.is_some(), || "x2 without x1".into())?;
    tiling(bias.is_none() || experts.is_some(), || "bias without expertIdx".into())?;
    if let Some(scales) = &scales {
        // documented: another type than expandedX's only for F32 scales of BF16 rows, and on 950
        let mixed = x.dtype == DType::Bf16 && scales.dtype == DType::F32;
        let fits = scales.dtype == x.dtype || mixed || op.chip.is_950();
        require(fits, || format!("scales {:?}, expandedX {:?}", scales.dtype, x.dtype))?;
    }
    tiling(x.rank() == 2 && out.rank() == 2 && out.is_dense(), || format!("expandedX {:?}", x.shape))?;
    let (n, h) = (out.shape[0], out.shape[1]);
    let k = match &scales {
        Some(scales) if scales.rank() == 2 => scales.shape[1],
        Some(scales) => return fail(codes::NN_INNER_TILING, format!("scales {:?}", scales.shape)),
        None => 1,
    };
    tiled(&x, &[n * k, h], "expandedX")?;
    tiled(&rows, &[n * k], "expandedRowIdx")?;
    let rows_of = [
        (&x1, [n, h], "x1"),
        (&x2, [n, h], "x2"),
        (&scales, [n, k], "scales"),
        (&experts, [n, k], "expertIdx"),
    ];
    for (operand, shape, what) in rows_of {
        if let Some(operand) = operand {
            tiled(operand, &shape, what)?;
        }
    }
    let experts_known = match &bias {
        Some(bias) => {
            tiling(bias.rank() == 2 && bias.shape[1] == h, || format!("bias {:?}", bias.shape))?;
            bias.shape[0]
        }
        None => usize::MAX,
    };
    let by_column = args.mode == 0;
    op.needs(n * h * 4);
    run(move |io| {
        let (values, places) = (io.floats(x.at)?, io.indices(rows.at, n * k)?);
        let read =
            |operand: &Option<Operand>| operand.as_ref().map(|operand| io.floats(operand.at)).transpose();
        let (x1, x2, bias, scales) = (read(&x1)?, read(&x2)?, read(&bias)?, read(&scales)?);
        let experts = experts.as_ref().map(|experts| io.indices(experts.at, experts_known)).transpose()?;
        let mut results = vec![0.0; n * h];
        for (at, result) in results.iter_mut().enumerate() {
            let (i, j) = (at / h, at % h);
            let shared = |values: &Option<Vec<f32>>| values.as_ref().map_or(0.0, |values| values[at]);
            *result = shared(&x1) + shared(&x2);
            for slot in 0..k {
                let place = places[if by_column { i + slot * n } else { i * k + slot }];
                let mut value = values[place * h + j];
                if let (Some(bias), Some(experts)) = (&bias, &experts) {
                    value += bias[experts[i * k + slot] * h + j];
                }
                *result += scales.as_ref().map_or(1.0, |scales| scales[i * k + slot]) * value;
            }
        }
        io.put_floats(out.at, &results)
    })
}

aclnn! {
    /// Sorts rows by expert: row copies, where each came from or went to, and how many each expert has.
    aclnnMoeInitRoutingV3GetWorkspaceSize, aclnnMoeInitRoutingV3(
        x: T, experts: T, scale: T, offset: T, active: i64, capacity: i64, expert_num: i64, drop_pad: i64,
        count_kind: i64, counted: bool, quant_mode: i64, range: T, row_kind: i64, out: T, rows: T, counts: T,
        scales: T,
    ) |op| {
        // without dropping, the capacity is not looked at
        let _ = capacity;
        init_routing(&mut op, Routing {
            x, experts, scale, offset, active, expert_num, drop_pad, count_kind, counted, quant_mode, range,
            row_kind, out, rows, counts, scales,
        })
    }

    /// Adds up each token's rows with their scales, and the shared experts' rows.
    aclnnMoeFinalizeRoutingV2GetWorkspaceSize, aclnnMoeFinalizeRoutingV2(
        x: T, rows: T, x1: T, x2: T, bias: T, scales: T, experts: T, mode: i64, out: T,
    ) |op| {
        finalize_routing(&mut op, Finalizing { x, rows, shared: [x1, x2], bias, scales, experts, mode, out })
    }
}

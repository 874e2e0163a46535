//! `MoeDistributeDispatchV2`: each row, as it is or as INT8, to the ranks of its experts.

use std::ops::Range;
use std::sync::Arc;

use super::distribute::{Attributes, Group, Sizes, active};
use super::{require, same_type, tiled, tiling};
use crate::codes;
use crate::config::Chip;
use crate::dtype::DType;
use crate::executor::{Io, Op, Operand, Unlocked, Work};
use crate::failure::{Outcome, fail};
use crate::hccl::exchange::Op as CallOp;
use crate::stream::Running;

type T = *const std::ffi::c_void;

/// Numbers of `assistInfoForCombine` for each row: where it came from is in the first three.
pub(crate) const ASSIST: usize = 128;
// documented: bytes that go with a row, for the size of the buffer
const HEADER: usize = 64;
// what goes before a row: local expert, row, slot, scale, weight
const RECORD: usize = 20;
// a NaN as F16 and BF16, and no small number as INT8
const POISON: u64 = 0x7FC0;

/// The arguments of the op but those of the group.
pub(crate) struct Dispatching {
    pub x: T,
    pub ids: T,
    pub scales: T,
    pub mask: T,
    pub expert_scales: T,
    pub quant_mode: i64,
    pub count_kind: i64,
    pub out: T,
    pub out_scales: T,
    pub assist: T,
    pub counts: T,
    pub ep_counts: T,
    pub tp_counts: T,
    pub out_weights: T,
}

struct Plan {
    group: Group,
    sizes: Sizes,
    a2: bool,
    quantised: bool,
    sums: bool,
    x: Operand,
    ids: Operand,
    scales: Option<Operand>,
    mask: Option<Operand>,
    weights: Option<Operand>,
    out: Operand,
    out_scales: Operand,
    assist: Operand,
    counts: Operand,
    ep_counts: Operand,
    out_weights: Operand,
}

/// Checks a dispatch and plans it.
pub(crate) fn dispatch(op: &mut Op, attributes: &Attributes, args: Dispatching) -> Outcome<Work> {
    // 8- and 4-bit floats are documented for 950DT, not simulated
    const ROWS: &[DType] = &[DType::F16, DType::Bf16];
    let x = op.input(args.x, "x", ROWS)?;
    let ids = op.input(args.ids, "expertIds", &[DType::I32])?;
    let scales = op.optional(args.scales, "scales", &[DType::F32])?;
    let mask = op.optional(args.mask, "xActiveMask", &[DType::Bool])?;
    let weights = op.optional(args.expert_scales, "expertScales", &[DType::F32])?;
    // what is documented as an output and not as optional must be there, written or not
    let out = op.output(args.out, "expandXOut", &[DType::F16, DType::Bf16, DType::I8])?;
    let out_scales = op.output(args.out_scales, "dynamicScalesOut", &[DType::F32])?;
    let assist = op.output(args.assist, "assistInfoForCombineOut", &[DType::I32])?;
    let counts = op.output(args.counts, "expertTokenNumsOut", &[DType::I64])?;
    let ep_counts = op.output(args.ep_counts, "epRecvCountsOut", &[DType::I32])?;
    op.output(args.tp_counts, "tpRecvCountsOut", &[DType::I32])?;
    let out_weights = op.output(args.out_weights, "expandScalesOut", &[DType::F32])?;
    tiling(x.rank() == 2 && ids.rank() == 2 && x.shape[0] == ids.shape[0], || {
        format!("x {:?}, expertIds {:?}", x.shape, ids.shape)
    })?;
    tiling(x.is_dense(), || "x must be dense".into())?;
    let sizes = Sizes { bs: x.shape[0], k: ids.shape[1], h: x.shape[1] };
    // static, per-tile and MX quantisation are documented for 950DT, not simulated
    tiling(matches!(args.quant_mode, 0 | 2), || format!("quantMode {}", args.quant_mode))?;
    tiling(matches!(args.count_kind, 0 | 1), || format!("expertTokenNumsType {}", args.count_kind))?;
    let quantised = args.quant_mode == 2;
    if quantised {
        require(out.dtype == DType::I8, || format!("expandXOut {:?} with quantMode 2", out.dtype))?;
    } else {
        same_type(&x, &out, "x and expandXOut")?;
        tiling(scales.is_none(), || "scales without quantisation".into())?;
    }
    let group = Group::of(op, attributes, sizes)?;
    group.check(op, sizes, HEADER)?;
    group.check_mask(op, &mask, sizes)?;
    group.check_counts(op, &ep_counts, sizes.k)?;
    let a2 = op.chip == Chip::A2;
    tiling(!a2 || weights.is_some(), || "expertScales is needed on A2".into())?;
    if let Some(weights) = &weights {
        tiled(weights, &[sizes.bs, sizes.k], "expertScales")?;
    }
    if let Some(scales) = &scales {
        tiled(scales, &[group.experts, sizes.h], "scales")?;
    }
    let room = out.shape.first().copied().unwrap_or(0);
    tiling(out.shape == [room, sizes.h] && room >= group.room(sizes.k), || {
        format!("expandXOut {:?}, {} rows may come", out.shape, group.room(sizes.k))
    })?;
    tiled(&assist, &[room * ASSIST], "assistInfoForCombineOut")?;
    tiled(&counts, &[group.local], "expertTokenNumsOut")?;
    if quantised {
        tiled(&out_scales, &[room], "dynamicScalesOut")?;
    }
    if a2 {
        tiled(&out_weights, &[room], "expandScalesOut")?;
    }
    op.needs(room * sizes.h);
    let sums = args.count_kind == 0;
    let plan = Plan {
        group,
        sizes,
        a2,
        quantised,
        sums,
        x,
        ids,
        scales,
        mask,
        weights,
        out,
        out_scales,
        assist,
        counts,
        ep_counts,
        out_weights,
    };
    let plan = Arc::new(plan);
    let runs = plan.clone();
    plan.group.work(Arc::new(move |running, memory| runs.run(running, memory)))
}

/// A row that came.
struct Arrived {
    local: usize,
    from: usize,
    row: i64,
    slot: i64,
    scale: f32,
    weight: f32,
    bits: Vec<u64>,
}

impl Plan {
    /// Bytes of an element on the way.
    fn width(&self) -> usize {
        self.out.dtype.bits() / 8
    }

    fn run(&self, running: &Running<'_>, memory: &Unlocked<'_>) -> Outcome {
        let comm = &self.group.comm;
        comm.during(running, || {
            let (data, gives) = memory.with(|io| self.pack(io))?;
            let mode = if self.quantised { 2 } else { 0 };
            let call = self.group.call(CallOp::Dispatch, self.sizes, self.x.dtype as i32, mode);
            let legs = self.group.legs(&gives, |_| None);
            let mut came = comm.exchange(running, call, &data, &legs)?;
            came.insert(comm.rank, data[gives[comm.rank].clone()].to_vec());
            let mut arrived = Vec::new();
            for (from, bytes) in came.iter().enumerate() {
                self.unpack(from, bytes, &mut arrived);
            }
            // by expert; within an expert by rank, and in a rank by row
            arrived.sort_by_key(|row| row.local);
            Ok(memory.with(|io| self.store(io, &arrived))?)
        })
    }

    /// The rows for each rank, behind each other.
    fn pack(&self, io: &Io<'_>) -> Outcome<(Vec<u8>, Vec<Range<usize>>)> {
        let Sizes { k, h, .. } = self.sizes;
        let ids = io.ints(self.ids.at)?;
        let mask = self.mask.as_ref().map(|mask| io.ints(mask.at)).transpose()?;
        let active = active(mask, self.sizes)?;
        let read =
            |operand: &Option<Operand>| operand.as_ref().map(|operand| io.floats(operand.at)).transpose();
        let (factors, weights) = (read(&self.scales)?, read(&self.weights)?);
        let bits = if self.quantised { Vec::new() } else { io.bits(self.x.at)? };
        let floats = if self.quantised { io.floats(self.x.at)? } else { Vec::new() };
        let ranks = self.group.comm.size();
        let mut parts = vec![Vec::new(); ranks];
        for (at, id) in ids.iter().enumerate().filter(|(at, _)| active[*at]) {
            let (row, slot) = (at / k, at % k);
            let Some(expert) = usize::try_from(*id).ok().filter(|id| *id < self.group.experts) else {
                return fail(codes::RT_AICORE_EXCEPTION, format!("expert {id} of {}", self.group.experts));
            };
            let part = &mut parts[expert / self.group.local];
            let places = row * h..(row + 1) * h;
            let (scale, elements) = if self.quantised {
                let smooth = factors.as_ref().map(|factors| &factors[expert * h..(expert + 1) * h]);
                quantise(&floats[places], smooth)
            } else {
                (0.0, bits[places].to_vec())
            };
            let weight = weights.as_ref().map_or(0.0, |weights| weights[at]);
            for number in [expert % self.group.local, row, slot] {
                part.extend_from_slice(&(number as u32).to_le_bytes());
            }
            part.extend_from_slice(&scale.to_le_bytes());
            part.extend_from_slice(&weight.to_le_bytes());
            for element in elements {
                part.extend_from_slice(&element.to_le_bytes()[..self.width()]);
            }
        }
        let mut data = Vec::new();
        let mut gives = Vec::new();
        for part in parts {
            gives.push(data.len()..data.len() + part.len());
            data.extend(part);
        }
        Ok((data, gives))
    }

    fn unpack(&self, from: usize, bytes: &[u8], into: &mut Vec<Arrived>) {
        for record in bytes.chunks_exact(RECORD + self.sizes.h * self.width()) {
            let (head, row) = record.split_at(RECORD);
            let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let element =
                |bytes: &[u8]| bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
            into.push(Arrived {
                local: word(0) as usize,
                from,
                row: word(4).into(),
                slot: word(8).into(),
                scale: f32::from_bits(word(12)),
                weight: f32::from_bits(word(16)),
                bits: row.chunks_exact(self.width()).map(element).collect(),
            });
        }
    }

    fn store(&self, io: &mut Io<'_>, arrived: &[Arrived]) -> Outcome {
        let room = self.out.shape[0];
        if arrived.len() > room {
            return fail(codes::RT_AICORE_EXCEPTION, format!("{} rows for room of {room}", arrived.len()));
        }
        let mut rows: Vec<u64> = arrived.iter().flat_map(|row| row.bits.iter().copied()).collect();
        // nothing is said of the rows beyond
        rows.resize(room * self.sizes.h, POISON & ((1 << self.out.dtype.bits()) - 1));
        io.put_bits(self.out.at, &rows)?;
        let mut assist = vec![-1; room * ASSIST];
        for (row, places) in arrived.iter().zip(assist.chunks_exact_mut(ASSIST)) {
            places[..3].copy_from_slice(&[row.from as i64, row.row, row.slot]);
        }
        io.put_ints(self.assist.at, &assist)?;
        let beyond = |values: Vec<f32>| {
            let mut values = values;
            values.resize(room, f32::NAN);
            values
        };
        if self.quantised {
            let scales = beyond(arrived.iter().map(|row| row.scale).collect());
            io.put_floats(self.out_scales.at, &scales)?;
        }
        if self.a2 {
            let weights = beyond(arrived.iter().map(|row| row.weight).collect());
            io.put_floats(self.out_weights.at, &weights)?;
        }
        let ranks = self.group.comm.size();
        let mut counts = vec![0i64; self.group.local];
        let mut by_rank = vec![0i64; self.group.local * ranks];
        for row in arrived {
            counts[row.local] += 1;
            by_rank[row.local * ranks + row.from] += 1;
        }
        if self.sums {
            running_sums(&mut counts);
        }
        io.put_ints(self.counts.at, &counts)?;
        running_sums(&mut by_rank);
        let mut all = vec![-1; self.ep_counts.count()];
        all[..by_rank.len()].copy_from_slice(&by_rank);
        io.put_ints(self.ep_counts.at, &all)
    }
}

fn running_sums(values: &mut [i64]) {
    let mut sum = 0;
    for value in values {
        sum += *value;
        *value = sum;
    }
}

/// As documented: `round(x · 127 / max|x|)`, and `max|x| / 127` as the scale that is given out; a row of
/// zeros stays one, with scale 0.
fn quantise(row: &[f32], smooth: Option<&[f32]>) -> (f32, Vec<u64>) {
    let row: Vec<f32> = match smooth {
        Some(factors) => row.iter().zip(factors).map(|(value, factor)| value * factor).collect(),
        None => row.to_vec(),
    };
    let top = row.iter().fold(0.0f32, |top, value| top.max(value.abs()));
    let factor = if top == 0.0 { 0.0 } else { 127.0 / top };
    let scale = if top == 0.0 { 0.0 } else { 1.0 / factor };
    let element = |value: &f32| DType::I8.encode_int((value * factor).round_ties_even() as i64);
    (scale, row.iter().map(element).collect())
}

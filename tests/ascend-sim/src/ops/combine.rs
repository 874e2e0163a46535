//! `MoeDistributeCombineV2`: the experts' rows back the way that they came, weighted and added up.

use std::ops::Range;
use std::sync::Arc;

use super::dispatch::ASSIST;
use super::distribute::{Attributes, Group, Sizes, active};
use super::{same_type, tiled, tiling};
use crate::codes;
use crate::config::Chip;
use crate::dtype::DType;
use crate::executor::{Io, Op, Operand, Unlocked, Work};
use crate::failure::{Outcome, fail};
use crate::hccl::exchange::Op as CallOp;
use crate::stream::Running;

type T = *const std::ffi::c_void;

// documented: bytes that go with a row, for the size of the buffer
const HEADER: usize = 44;
// what goes before a row: row and slot
const RECORD: usize = 8;

/// The arguments of the op but those of the group.
pub(crate) struct Combining {
    pub expand: T,
    pub ids: T,
    pub assist: T,
    pub ep_counts: T,
    pub expert_scales: T,
    pub tp_counts: T,
    pub mask: T,
    pub expand_scales: T,
    pub shared_x: T,
    pub out: T,
}

struct Plan {
    group: Group,
    sizes: Sizes,
    expand: Operand,
    ids: Operand,
    assist: Operand,
    ep_counts: Operand,
    weights: Operand,
    mask: Option<Operand>,
    shared: Option<Operand>,
    out: Operand,
}

/// Checks a combine and plans it.
pub(crate) fn combine(op: &mut Op, attributes: &Attributes, args: Combining) -> Outcome<Work> {
    const ROWS: &[DType] = &[DType::F16, DType::Bf16];
    let expand = op.input(args.expand, "expandX", ROWS)?;
    let ids = op.input(args.ids, "expertIds", &[DType::I32])?;
    let assist = op.input(args.assist, "assistInfoForCombine", &[DType::I32])?;
    let ep_counts = op.input(args.ep_counts, "epSendCounts", &[DType::I32])?;
    let weights = op.input(args.expert_scales, "expertScales", &[DType::F32])?;
    op.optional(args.tp_counts, "tpSendCounts", &[DType::I32])?;
    let mask = op.optional(args.mask, "xActiveMask", &[DType::Bool])?;
    let expand_scales = op.optional(args.expand_scales, "expandScales", &[DType::F32])?;
    let shared = op.optional(args.shared_x, "sharedExpertX", ROWS)?;
    let out = op.output(args.out, "xOut", ROWS)?;
    same_type(&expand, &out, "expandX and xOut")?;
    tiling(out.rank() == 2 && ids.rank() == 2 && out.shape[0] == ids.shape[0], || {
        format!("xOut {:?}, expertIds {:?}", out.shape, ids.shape)
    })?;
    let sizes = Sizes { bs: out.shape[0], k: ids.shape[1], h: out.shape[1] };
    let group = Group::of(op, attributes, sizes)?;
    group.check(op, sizes, HEADER)?;
    group.check_mask(op, &mask, sizes)?;
    group.check_counts(op, &ep_counts, sizes.k)?;
    tiled(&weights, &[sizes.bs, sizes.k], "expertScales")?;
    let room = expand.shape.first().copied().unwrap_or(0);
    tiling(expand.shape == [room, sizes.h] && room >= group.room(sizes.k), || {
        format!("expandX {:?}, {} rows may be there", expand.shape, group.room(sizes.k))
    })?;
    tiled(&assist, &[room * ASSIST], "assistInfoForCombine")?;
    let a2 = op.chip == Chip::A2;
    match &expand_scales {
        Some(scales) if a2 => tiled(scales, &[room], "expandScales")?,
        Some(_) => return fail(codes::NN_INNER_TILING, "expandScales is supported on A2 only"),
        // documented as optional, and as required to have its shape: a null pointer is taken as the former
        None => {}
    }
    if let Some(shared) = &shared {
        tiling(!a2, || "sharedExpertX is not supported on A2".into())?;
        same_type(&expand, shared, "expandX and sharedExpertX")?;
        tiling(
            shared.shape.last() == Some(&sizes.h)
                && matches!(shared.rank(), 2 | 3)
                && shared.count() == sizes.bs * sizes.h,
            || format!("sharedExpertX {:?}", shared.shape),
        )?;
    }
    op.needs(room * sizes.h);
    let plan = Arc::new(Plan { group, sizes, expand, ids, assist, ep_counts, weights, mask, shared, out });
    let runs = plan.clone();
    plan.group.work(Arc::new(move |running, memory| runs.run(running, memory)))
}

impl Plan {
    fn run(&self, running: &Running<'_>, memory: &Unlocked<'_>) -> Outcome {
        let comm = &self.group.comm;
        comm.during(running, || {
            let (data, gives) = memory.with(|io| self.pack(io))?;
            let call = self.group.call(CallOp::Combine, self.sizes, self.expand.dtype as i32, 0);
            let expected = memory.with(|io| self.expected(io))?;
            let record = (RECORD + self.sizes.h * 2) as u64;
            let legs = self.group.legs(&gives, |peer| Some(expected[peer] * record));
            let mut came = comm.exchange(running, call, &data, &legs)?;
            came.insert(comm.rank, data[gives[comm.rank].clone()].to_vec());
            Ok(memory.with(|io| self.add_up(io, &came))?)
        })
    }

    fn active(&self, io: &Io<'_>) -> Outcome<Vec<bool>> {
        active(self.mask.as_ref().map(|mask| io.ints(mask.at)).transpose()?, self.sizes)
    }

    /// The rows that were given to each rank, and that are to come back.
    fn expected(&self, io: &Io<'_>) -> Outcome<Vec<u64>> {
        let mut rows = vec![0; self.group.comm.size()];
        let active = self.active(io)?;
        for (expert, _) in
            io.indices(self.ids.at, self.group.experts)?.into_iter().zip(active).filter(|(_, on)| *on)
        {
            rows[expert / self.group.local] += 1;
        }
        Ok(rows)
    }

    /// The rows for each rank, behind each other.
    fn pack(&self, io: &Io<'_>) -> Outcome<(Vec<u8>, Vec<Range<usize>>)> {
        let ranks = self.group.comm.size();
        let counts = io.ints(self.ep_counts.at)?;
        // the last of the running sums
        let total = counts[self.group.local * ranks - 1];
        let room = self.expand.shape[0];
        let Some(total) = usize::try_from(total).ok().filter(|total| *total <= room) else {
            return fail(codes::RT_AICORE_EXCEPTION, format!("{total} rows of {room} in epSendCounts"));
        };
        let (assist, bits) = (io.ints(self.assist.at)?, io.bits(self.expand.at)?);
        let mut parts = vec![Vec::new(); ranks];
        for (places, row) in assist.chunks_exact(ASSIST).zip(bits.chunks_exact(self.sizes.h)).take(total) {
            let Some(part) = usize::try_from(places[0]).ok().and_then(|rank| parts.get_mut(rank)) else {
                return fail(codes::RT_AICORE_EXCEPTION, "assistInfoForCombine is not as dispatch left it");
            };
            part.extend_from_slice(&(places[1] as u32).to_le_bytes());
            part.extend_from_slice(&(places[2] as u32).to_le_bytes());
            row.iter().for_each(|bits| part.extend_from_slice(&(*bits as u16).to_le_bytes()));
        }
        let mut data: Vec<u8> = Vec::new();
        let mut gives = Vec::new();
        for part in parts {
            gives.push(data.len()..data.len() + part.len());
            data.extend(part);
        }
        Ok((data, gives))
    }

    /// Adds up in the order of the slots, in f32, then the shared expert's row; rounded once.
    fn add_up(&self, io: &mut Io<'_>, came: &[Vec<u8>]) -> Outcome {
        let Sizes { bs, k, h } = self.sizes;
        let mut rows: Vec<Option<&[u8]>> = vec![None; bs * k];
        for record in came.iter().flat_map(|bytes| bytes.chunks_exact(RECORD + h * 2)) {
            let (head, row) = record.split_at(RECORD);
            let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let at = (word(0) as usize).saturating_mul(k).saturating_add(word(4) as usize);
            match rows.get_mut(at) {
                Some(place @ None) => *place = Some(row),
                _ => return fail(codes::RT_AICORE_EXCEPTION, "a row came back twice or from nowhere"),
            }
        }
        let (weights, active) = (io.floats(self.weights.at)?, self.active(io)?);
        let shared = self.shared.as_ref().map(|shared| io.floats(shared.at)).transpose()?;
        // documented: a row without active slots takes no part; what it held stays
        let mut out = io.output_floats(self.out.at)?;
        for (row, out) in out.chunks_exact_mut(h).enumerate() {
            let slots = row * k..(row + 1) * k;
            if !active[slots.clone()].contains(&true) {
                continue;
            }
            out.fill(0.0);
            for at in slots {
                let Some(bytes) = rows[at] else { continue };
                for (sum, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    let value = self.expand.dtype.decode_float(u16::from_le_bytes(*bytes).into());
                    *sum += weights[at] * value;
                }
            }
            if let Some(shared) = &shared {
                out.iter_mut().zip(&shared[row * h..]).for_each(|(sum, value)| *sum += value);
            }
        }
        io.put_floats(self.out.at, &out)
    }
}

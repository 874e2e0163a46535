//! Rows to the ranks of their experts and back: what both ops check of the group that they run in.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use super::combine::{Combining, combine};
use super::dispatch::{Dispatching, dispatch};
use super::{aclnn, only, tiling};
use crate::codes;
use crate::config::Chip;
use crate::executor::{Op, Operand, Work};
use crate::failure::{Failure, Outcome, fail};
use crate::hccl::comm::{COMMS, Comm, Purpose};
use crate::hccl::exchange::{COLLECTIVE, Call, Leg, Op as CallOp};
use crate::out::text;

type T = *const c_void;

/// The attributes that both ops have.
pub(crate) struct Attributes {
    group: Option<String>,
    world: i64,
    rank: i64,
    experts: i64,
    tp_group: Option<String>,
    tp: [i64; 2],
    shard_type: i64,
    shared: [i64; 2],
    global_bs: i64,
    algorithm: Option<String>,
}

/// Which of the documented ways on A2 the rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// Each rank to each other.
    Fullmesh,
    /// Over servers first; simulated as the other, within its own limits.
    Hierarchy,
}

/// The group that an op runs in.
pub(crate) struct Group {
    /// Its communicator.
    pub comm: Arc<Comm>,
    /// The way on A2.
    pub algorithm: Algorithm,
    /// Experts of all ranks.
    pub experts: usize,
    /// Experts of this rank.
    pub local: usize,
    /// Rows of all ranks, if each has as many as the one with the most.
    pub global_bs: usize,
    /// Whether the ranks may have different numbers of rows.
    pub uneven: bool,
}

/// The sizes of an op.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Rows of this rank.
    pub bs: usize,
    /// Experts of a row.
    pub k: usize,
    /// Elements of a row.
    pub h: usize,
}

impl Group {
    /// Checks the attributes and finds the communicator.
    pub(crate) fn of(op: &Op, attributes: &Attributes, sizes: Sizes) -> Outcome<Self> {
        let Attributes { world, rank, experts, global_bs, .. } = *attributes;
        let a2 = op.chip == Chip::A2;
        let algorithm = match (a2, attributes.algorithm.as_deref()) {
            (_, None | Some("")) | (true, Some("fullmesh")) => Algorithm::Fullmesh,
            (true, Some("hierarchy")) => Algorithm::Hierarchy,
            (_, Some(other)) => return fail(codes::NN_INNER_TILING, format!("commAlg {other:?}")),
        };
        let name = match attributes.group.as_deref() {
            Some(name) if (1..128).contains(&name.len()) => name,
            other => return fail(codes::NN_INNER_TILING, format!("groupEp {other:?}")),
        };
        tiling(attributes.tp_group.as_deref().is_none_or(|tp| tp != name), || "groupTp is groupEp".into())?;
        // a second group for tensor parallelism and ranks for shared experts are documented, not simulated
        let tp = attributes.tp;
        tiling(matches!(tp, [0 | 1, 0]), || format!("tpWorldSize and tpRankId {tp:?}"))?;
        let shared = attributes.shared;
        let most_shared = if a2 { 0 } else { 1 };
        tiling((0..=most_shared).contains(&shared[0]) && shared[1] == 0, || {
            format!("sharedExpertNum and sharedExpertRankNum {shared:?}")
        })?;
        tiling(attributes.shard_type == 0, || format!("expertShardType {}", attributes.shard_type))?;
        let worlds = match (a2, algorithm) {
            (true, Algorithm::Hierarchy) => matches!(world, 16 | 32 | 64),
            (true, Algorithm::Fullmesh) => {
                matches!(world, 2..=8 | 16 | 32 | 64 | 128 | 192 | 256 | 384)
            }
            (false, _) => (2..=768).contains(&world),
        };
        tiling(worlds, || format!("epWorldSize {world}"))?;
        let most = if algorithm == Algorithm::Hierarchy { 512 } else { 1024 };
        tiling((1..=most).contains(&experts) && experts % world == 0, || format!("moeExpertNum {experts}"))?;
        tiling(a2 || experts <= 2048, || format!("{experts} experts on all ranks"))?;
        let device = crate::context::current()?.device.id;
        let Some(comm) = COMMS.named(name, device) else {
            return fail(codes::NN_INNER_TILING, format!("there is no communicator {name:?} on this device"));
        };
        tiling(comm.size() as i64 == world && comm.rank as i64 == rank, || {
            format!(
                "rank {rank} of {world} in a communicator of which it is {} of {}",
                comm.rank,
                comm.size()
            )
        })?;
        let own = sizes.bs as i64 * world;
        tiling(global_bs == 0 || global_bs >= own && global_bs % world == 0, || {
            format!("globalBS {global_bs} for {} rows here and {world} ranks", sizes.bs)
        })?;
        let claimed = comm.claim(Purpose::Experts);
        claimed.map_err(|failure| Failure { code: codes::NN_INNER_TILING, ..failure })?;
        Ok(Self {
            comm,
            algorithm,
            experts: experts as usize,
            local: (experts / world) as usize,
            global_bs: if global_bs == 0 { own } else { global_bs } as usize,
            uneven: global_bs > own,
        })
    }

    /// Checks sizes against the limits of the chip.
    pub(crate) fn check(&self, op: &Op, sizes: Sizes, header: usize) -> Outcome {
        let Sizes { bs, k, h } = sizes;
        let a2 = op.chip == Chip::A2;
        let rows = if a2 && self.algorithm == Algorithm::Fullmesh { 256 } else { 512 };
        tiling((1..=rows).contains(&bs), || format!("{bs} rows"))?;
        tiling((1..=16).contains(&k) && k <= self.experts, || format!("{k} experts for each row"))?;
        let width = if a2 { h > 0 && h <= 10240 && h % 32 == 0 } else { (1024..=8192).contains(&h) };
        tiling(width, || format!("rows of {h} elements"))?;
        let (needed, there) = (self.buffer(op, sizes, header), self.comm.settings.buffer_bytes());
        tiling(there >= needed, || {
            format!("the communicator's buffer has {there} bytes, {needed} are needed: see HCCL_BUFFSIZE")
        })
    }

    /// The bytes of buffer that are documented to be needed; `header` is what goes with a row.
    fn buffer(&self, op: &Op, sizes: Sizes, header: usize) -> u64 {
        let Sizes { bs, k, h } = sizes;
        let world = self.comm.size();
        let most = self.global_bs / world;
        let bytes = match (op.chip, self.algorithm) {
            (Chip::A2, Algorithm::Fullmesh) => 2 * (bs * world * self.local.min(k) * h * 2 + (2 << 20)),
            (Chip::A2, Algorithm::Hierarchy) => {
                let row = (most * (h * 2 + 16 * k.next_multiple_of(8))).next_multiple_of(512);
                (self.experts + world / 4) * row + (8 << 20)
            }
            _ => {
                let row = ((2 * h).next_multiple_of(32) + header).next_multiple_of(512);
                // a shared expert without ranks of its own takes no place
                let back = k * most * (2 * h).next_multiple_of(512);
                (2 << 20).max(2 * (self.local * most * world * row + back))
            }
        };
        bytes as u64
    }

    /// The rows that the rank must have room for.
    pub(crate) fn room(&self, k: usize) -> usize {
        self.global_bs * self.local.min(k)
    }

    /// Whether `epRecvCounts` has a documented shape.
    pub(crate) fn check_counts(&self, op: &Op, counts: &Operand, k: usize) -> Outcome {
        let plain = self.comm.size() * self.local;
        let servers = if self.comm.size() <= 8 { 1 } else { self.comm.size() / 8 };
        let long = self.experts + 2 * self.global_bs * k * servers;
        // the example of the documentation has the short form on A2 too, unless the way is hierarchical
        let short = op.chip != Chip::A2 || self.algorithm == Algorithm::Fullmesh;
        let fits = |len: usize| short && len == plain || op.chip == Chip::A2 && len == long;
        tiling(counts.rank() == 1 && fits(counts.shape[0]), || {
            format!("the counts of the ranks are {:?}", counts.shape)
        })
    }

    /// The mask of the (row, slot) pairs that take part.
    pub(crate) fn check_mask(&self, op: &Op, mask: &Option<Operand>, sizes: Sizes) -> Outcome {
        let Some(mask) = mask else { return Ok(()) };
        let flat = mask.shape == [sizes.bs];
        let fits = match (op.chip, self.algorithm) {
            (Chip::A2, Algorithm::Fullmesh) => flat,
            (Chip::A2, Algorithm::Hierarchy) => false,
            _ => flat || mask.shape == [sizes.bs, sizes.k],
        };
        tiling(fits, || format!("xActiveMask {:?}", mask.shape))?;
        tiling(!self.uneven, || "xActiveMask with different numbers of rows".into())
    }

    /// The call that the ranks have to agree on.
    pub(crate) fn call(&self, op: CallOp, sizes: Sizes, dtype: i32, mode: i64) -> Call {
        Call {
            op,
            element: dtype,
            reduce: mode as i32,
            root: (self.experts as u32) << 8 | sizes.k as u32,
            count: (self.global_bs as u64) << 32 | sizes.h as u64,
        }
    }

    /// The legs to all other ranks, given what each is given in the data, and expected to give.
    pub(crate) fn legs(
        &self,
        gives: &[std::ops::Range<usize>],
        expects: impl Fn(usize) -> Option<u64>,
    ) -> Vec<Leg> {
        let peers = (0..gives.len()).filter(|peer| *peer != self.comm.rank);
        peers
            .map(|peer| Leg { peer, channel: COLLECTIVE, gives: gives[peer].clone(), expects: expects(peer) })
            .collect()
    }

    /// The op's work, with what happens when it is dropped.
    pub(crate) fn work(&self, run: crate::executor::GroupRun) -> Outcome<Work> {
        let comm = self.comm.clone();
        Ok(Work::Group(run, Arc::new(move |failure: &Failure| comm.give_up(failure.clone(), None))))
    }
}

/// Which (row, slot) pairs take part, of a mask's elements. In a mask of rows the true ones come first.
pub(crate) fn active(mask: Option<Vec<i64>>, sizes: Sizes) -> Outcome<Vec<bool>> {
    let Sizes { bs, k, .. } = sizes;
    let Some(mask) = mask else { return Ok(vec![true; bs * k]) };
    if mask.len() == bs * k && k > 1 {
        return Ok(mask.into_iter().map(|value| value != 0).collect());
    }
    if mask.windows(2).any(|pair| pair[0] == 0 && pair[1] != 0) {
        return fail(codes::RT_AICORE_EXCEPTION, "a true row of xActiveMask is behind a false one");
    }
    Ok((0..bs * k).map(|at| mask[at / k] != 0).collect())
}

/// # Safety
/// `pointer` is null or ends with a zero byte.
unsafe fn string(pointer: *const c_char) -> Outcome<Option<String>> {
    // SAFETY: promised by the caller.
    unsafe { text(pointer) }.map_err(|failure| Failure { code: codes::NN_PARAM_INVALID, ..failure })
}

aclnn! {
    /// Gives each row to the ranks of its experts. All ranks of the group call it.
    aclnnMoeDistributeDispatchV2GetWorkspaceSize, aclnnMoeDistributeDispatchV2(
        x: T, ids: T, scales: T, mask: T, expert_scales: T, group: *const c_char, world: i64, rank: i64,
        experts: i64, tp_group: *const c_char, tp_world: i64, tp_rank: i64, shard_type: i64,
        shared: i64, shared_ranks: i64, quant_mode: i64, global_bs: i64, count_kind: i64,
        algorithm: *const c_char, out: T, out_scales: T, assist: T, counts: T, ep_counts: T, tp_counts: T,
        out_weights: T,
    ) |op| {
        only(&op, op.chip != Chip::Pr950, "MoeDistributeDispatchV2")?;
        // SAFETY: strings or null, by the contract of the function.
        let (group, tp_group, algorithm) =
            unsafe { (string(group)?, string(tp_group)?, string(algorithm)?) };
        let attributes = Attributes {
            group, world, rank, experts, tp_group, tp: [tp_world, tp_rank], shard_type,
            shared: [shared, shared_ranks], global_bs, algorithm,
        };
        dispatch(&mut op, &attributes, Dispatching {
            x, ids, scales, mask, expert_scales, quant_mode, count_kind, out, out_scales, assist, counts,
            ep_counts, tp_counts, out_weights,
        })
    }

    /// Gives the experts' rows back and adds them up. All ranks of the group call it, after the other.
    aclnnMoeDistributeCombineV2GetWorkspaceSize, aclnnMoeDistributeCombineV2(
        expand: T, ids: T, assist: T, ep_counts: T, expert_scales: T, tp_counts: T, mask: T,
        act_scale: T, weight_scale: T, group_list: T, expand_scales: T, shared_x: T,
        group: *const c_char, world: i64, rank: i64, experts: i64, tp_group: *const c_char, tp_world: i64,
        tp_rank: i64, shard_type: i64, shared: i64, shared_ranks: i64, global_bs: i64, out_dtype: i64,
        quant_mode: i64, group_list_type: i64, algorithm: *const c_char, out: T,
    ) |op| {
        only(&op, op.chip != Chip::Pr950, "MoeDistributeCombineV2")?;
        // SAFETY: strings or null, by the contract of the function.
        let (group, tp_group, algorithm) =
            unsafe { (string(group)?, string(tp_group)?, string(algorithm)?) };
        let attributes = Attributes {
            group, world, rank, experts, tp_group, tp: [tp_world, tp_rank], shard_type,
            shared: [shared, shared_ranks], global_bs, algorithm,
        };
        let unused = [act_scale, weight_scale, group_list].iter().all(|tensor| tensor.is_null());
        tiling(unused, || "an argument that is not supported is not null".into())?;
        tiling(out_dtype == 0 && quant_mode == 0 && matches!(group_list_type, 0 | 1), || {
            format!("outDtype {out_dtype}, commQuantMode {quant_mode}, groupListType {group_list_type}")
        })?;
        combine(&mut op, &attributes, Combining {
            expand, ids, assist, ep_counts, expert_scales, tp_counts, mask, expand_scales, shared_x, out,
        })
    }
}

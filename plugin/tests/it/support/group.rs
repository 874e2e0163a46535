//! Groups that answer.
use std::collections::BTreeSet;

use belay_proto::admin::{
    Coverage, ExpertCopies, ExpertLoad, GroupWorker, LayerLoad, LayerPlacement, ModelCard, PeerHealth,
    PeerStatus, Phase, Placement, RankExperts, RankStatus, ResidentExperts, WorkerStatus,
};
use kubectl_belay::answers::{Answers, GroupAnswers, PodAnswer, WorkerAnswer, WorkerPod};

pub const EXPERT_BYTES: u64 = 12 << 20;

/// Sizes of a group.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub layers: u32,
    pub experts: u32,
    pub workers: u32,
    pub ranks_per_worker: u32,
}

impl Size {
    pub const SMALL: Self = Self { layers: 3, experts: 16, workers: 2, ranks_per_worker: 2 };
    pub const LARGE: Self = Self { layers: 4, experts: 384, workers: 16, ranks_per_worker: 8 };

    pub fn ranks(self) -> u32 {
        self.workers * self.ranks_per_worker
    }
}

pub fn uid(worker: u32) -> String {
    format!("uid-{worker}")
}

/// Expert `e` of `E` on rank `⌊e·R/E⌋`; of every layer, expert `l·5 mod E` has a second copy half way round.
pub fn placement(size: Size, epoch: u64) -> Placement {
    let ranks = size.ranks();
    let copies = |layer: u32, expert: u32| {
        let first = expert * ranks / size.experts;
        let mut copies = vec![first];
        if expert == layer * 5 % size.experts {
            copies.push((first + ranks / 2) % ranks);
        }
        ExpertCopies { ranks: copies }
    };
    Placement {
        epoch,
        group: "nano-ec7356da-0".into(),
        revision: "ec7356da".into(),
        ranks_per_worker: size.ranks_per_worker,
        workers: (0..size.workers)
            .map(|index| GroupWorker {
                index,
                fabric_address: format!("10.244.1.{index}:50053"),
                uid: uid(index),
                expert_bytes_limit: 4 << 30,
            })
            .collect(),
        layers: (0..size.layers)
            .map(|layer| LayerPlacement { experts: (0..size.experts).map(|e| copies(layer, e)).collect() })
            .collect(),
        expert_bytes: EXPERT_BYTES,
    }
}

/// The (layer, expert) pairs that a placement gives to a rank.
pub fn share(placement: &Placement, rank: u32) -> BTreeSet<(u32, u32)> {
    let mut share = BTreeSet::new();
    for (layer, experts) in (0..).zip(&placement.layers) {
        for (expert, copies) in (0..).zip(&experts.experts) {
            if copies.ranks.contains(&rank) {
                share.insert((layer, expert));
            }
        }
    }
    share
}

/// As a worker tells it.
pub fn held(size: Size, rank: u32, share: &BTreeSet<(u32, u32)>) -> RankExperts {
    let mut layers = vec![vec![0u8; size.experts.div_ceil(8) as usize]; size.layers as usize];
    for (layer, expert) in share {
        layers[*layer as usize][*expert as usize / 8] |= 1 << (expert % 8);
    }
    RankExperts { rank, layers }
}

/// What `worker` says when all is well.
pub fn answer(size: Size, placement: &Placement, worker: u32) -> WorkerAnswer {
    let ranks: Vec<RankExperts> = (0..size.ranks_per_worker)
        .map(|rank| worker * size.ranks_per_worker + rank)
        .map(|rank| held(size, rank, &share(placement, rank)))
        .collect();
    // some experts have twice as much as others, those with a second copy most; each worker asks for another share
    let tokens = |layer: u32, expert: u32| {
        let hot = if expert == layer * 5 % size.experts { 30_000 } else { 0 };
        u64::from((8_000 + (37 * expert + 11 * layer) % 97 * 100 + hot) * (worker + 1))
    };
    let load = ExpertLoad {
        layers: (0..size.layers)
            .map(|layer| LayerLoad {
                millitokens: (0..size.experts).map(|expert| tokens(layer, expert)).collect(),
            })
            .collect(),
        half_life_seconds: 60.0,
    };
    let total = size.layers * size.experts;
    let status = WorkerStatus {
        group: placement.group.clone(),
        revision: placement.revision.clone(),
        worker,
        uid: uid(worker),
        phase: Phase::Ready.into(),
        card: Some(ModelCard { layers: size.layers, experts: size.experts, ..ModelCard::default() }),
        placement_epoch: placement.epoch,
        prepared_epoch: placement.epoch,
        retired_epoch: placement.epoch,
        ranks: ranks.iter().map(rank_status).collect(),
        peers: (0..size.workers)
            .filter(|other| *other != worker)
            .map(|worker| PeerStatus {
                worker,
                connected: true,
                health: PeerHealth::Live.into(),
                ..Default::default()
            })
            .collect(),
        expert_bytes_limit: 4 << 30,
        coverage: Some(Coverage {
            epoch: placement.epoch,
            experts: total,
            min_live_copies: 1,
            ..Coverage::default()
        }),
        ..WorkerStatus::default()
    };
    WorkerAnswer { status, experts: Ok(ResidentExperts { ranks }), load: Ok(load) }
}

pub fn rank_status(held: &RankExperts) -> RankStatus {
    let experts = held.layers.iter().flat_map(|bits| bits.iter()).map(|byte| byte.count_ones()).sum();
    RankStatus { rank: held.rank, experts, expert_bytes: u64::from(experts) * EXPERT_BYTES }
}

pub fn pod(worker: u32) -> WorkerPod {
    WorkerPod {
        name: format!("nano-ec7356da-0-{worker}"),
        uid: uid(worker),
        worker,
        node: format!("node-{}", (b'a' + u8::try_from(worker % 26).unwrap()) as char),
        leaving: false,
        restarts: 0,
    }
}

/// A group in which all is well.
pub fn group(size: Size) -> GroupAnswers {
    let placement = placement(size, 3);
    let pods = (0..size.workers)
        .map(|worker| PodAnswer { pod: pod(worker), worker: Ok(answer(size, &placement, worker)) })
        .collect();
    GroupAnswers {
        name: placement.group.clone(),
        revision: placement.revision.clone(),
        placement: Some(placement),
        pods,
        ..GroupAnswers::default()
    }
}

/// The worker's answer, to be changed.
pub fn of(group: &mut GroupAnswers, worker: usize) -> &mut WorkerAnswer {
    group.pods[worker].worker.as_mut().unwrap()
}

/// Lets a rank hold more.
pub fn hold(group: &mut GroupAnswers, size: Size, rank: u32, more: &[(u32, u32)]) {
    let worker = (rank / size.ranks_per_worker) as usize;
    let slot = (rank % size.ranks_per_worker) as usize;
    let answer = of(group, worker);
    let held = &mut answer.experts.as_mut().unwrap().ranks[slot];
    for (layer, expert) in more {
        let mut bits = held.layers[*layer as usize].to_vec();
        bits[*expert as usize / 8] |= 1 << (expert % 8);
        held.layers[*layer as usize] = bits;
    }
    answer.status.ranks[slot] = rank_status(held);
}

/// Of one group.
pub fn answers(group: GroupAnswers) -> Answers {
    Answers {
        deployment: "nano".into(),
        namespace: "models".into(),
        troubles: vec![],
        groups: vec![group],
        taken: "2026-11-27T10:00:24Z".parse().unwrap(),
    }
}

//! Small documents.
#![allow(dead_code, reason = "each test takes what it needs")]

use belay_epoch::{
    Kind,
    conductor::{Member, MemberStatus, Wanted},
    document::Slot,
};
use belay_proto::admin::{ExpertCopies, GroupWorker, LayerPlacement, Placement, SetPlacementRequest};

/// Two workers of one rank, one layer; `ranks[expert]` are the ranks of its copies.
pub fn wanted(ranks: &[&[u32]], uids: [&str; 2]) -> Wanted {
    let worker = |(index, uid): (u32, &str)| GroupWorker {
        index,
        fabric_address: format!("h{index}:1"),
        uid: uid.into(),
        expert_bytes_limit: 0,
    };
    let experts = ranks.iter().map(|ranks| ExpertCopies { ranks: ranks.to_vec() }).collect();
    Wanted {
        group: "g".into(),
        revision: "r".into(),
        ranks_per_worker: 1,
        workers: (0..).zip(uids).map(worker).collect(),
        layers: vec![LayerPlacement { experts }],
        expert_bytes: 10,
        kind: Kind::Recover,
        reason: "because".into(),
    }
}

pub fn placement(epoch: u64, ranks: &[&[u32]], uids: [&str; 2]) -> Placement {
    wanted(ranks, uids).placement(epoch)
}

/// Worker 1 of `wanted(&[.., ..], ["a", "b"])`.
pub fn slot() -> Slot {
    Slot {
        group: "g".into(),
        revision: "r".into(),
        worker: 1,
        workers: 2,
        uid: "b".into(),
        ranks: 1,
        layers: 1,
        experts: 2,
    }
}

pub fn request(in_force: Placement, target: Option<Placement>, retire_epoch: u64) -> SetPlacementRequest {
    SetPlacementRequest { in_force: Some(in_force), target, retire_epoch }
}

/// A living member that says `(in force, prepared, retired)`.
pub fn member(index: u32, uid: &str, (in_force, prepared, retired): (u64, u64, u64)) -> Member {
    let known = in_force.max(prepared);
    let status = MemberStatus { in_force, prepared, retired, known, ..MemberStatus::default() };
    Member { index, uid: uid.into(), lives: true, status: Some(status) }
}

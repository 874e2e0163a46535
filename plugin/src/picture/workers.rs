//! The workers of a group: who is there, who answers, and what their peers think of them.
use std::collections::BTreeSet;

use belay_proto::admin::{PeerHealth, PeerStatus, Phase, WorkerStatus};
use serde::Serialize;

use super::units::clean;
use crate::answers::{GroupAnswers, PodAnswer};

/// What stands behind a worker index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Presence {
    /// Its worker answers.
    Answers,
    /// Its worker does not answer this program, but another worker reaches it.
    Unseen,
    /// Nobody reaches its worker.
    Silent,
    /// There is no pod.
    NoPod,
}

/// One place in a group.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Worker index.
    pub worker: u32,
    /// What stands behind it.
    pub presence: Presence,
    /// Whether its pod is the one that the placement in force means.
    pub is_member: bool,
    /// Whether nobody but its peers sees it.
    pub is_unseen: bool,
    /// Whether it says that it holds copies for ranks that are lost.
    pub adopts: bool,
    /// Workers that it does not count as live.
    missed: BTreeSet<u32>,
    /// Workers that count it as lost.
    pub lost_to: Vec<u32>,
}

impl Slot {
    /// Whether this worker does not count the one of `rank` as live.
    pub fn misses(&self, slots: &Slots, rank: u32) -> bool {
        let owner = slots.of_rank(rank);
        self.missed.contains(&owner.worker) || matches!(owner.presence, Presence::Silent | Presence::NoPod)
    }
}

/// All places of a group, by worker index.
#[derive(Clone, Debug)]
pub struct Slots {
    list: Vec<Slot>,
    nobody: Slot,
    /// Ranks of one worker; at least 1.
    pub ranks_per_worker: u32,
}

/// Most workers of a group, as the API has it: what a broken document may not exceed.
const MOST_WORKERS: u32 = 256;

impl Slots {
    /// From what was answered.
    pub fn of(group: &GroupAnswers) -> Self {
        let placed = group.placement.as_ref().map_or(0, |placement| placement.workers.len());
        let placed = u32::try_from(placed).unwrap_or(u32::MAX);
        let count =
            group.pods.iter().map(|pod| pod.pod.worker.saturating_add(1)).max().unwrap_or(0).max(placed);
        let told = group.pods.iter().filter_map(|pod| pod.worker.as_ref().ok().map(|w| w.status.ranks.len()));
        let told = told.max().and_then(|ranks| u32::try_from(ranks).ok()).unwrap_or(0);
        let in_force = group.placement.as_ref().map(|placement| placement.ranks_per_worker);
        Self {
            list: (0..count.min(MOST_WORKERS)).map(|worker| slot(group, worker)).collect(),
            nobody: Slot {
                worker: u32::MAX,
                presence: Presence::NoPod,
                is_member: false,
                is_unseen: false,
                adopts: false,
                missed: BTreeSet::new(),
                lost_to: vec![],
            },
            ranks_per_worker: in_force.filter(|ranks| *ranks > 0).unwrap_or(told).max(1),
        }
    }

    /// By worker index.
    pub fn list(&self) -> &[Slot] {
        &self.list
    }

    /// The place that a rank belongs to.
    pub fn of_rank(&self, rank: u32) -> &Slot {
        self.list.get((rank / self.ranks_per_worker) as usize).unwrap_or(&self.nobody)
    }
}

/// The pod of a worker: there is one at most, since its name is made of the group's and the index.
pub fn pod(group: &GroupAnswers, worker: u32) -> Option<&PodAnswer> {
    group.pods.iter().find(|pod| pod.pod.worker == worker)
}

fn statuses(group: &GroupAnswers) -> impl Iterator<Item = (u32, &WorkerStatus)> {
    group.pods.iter().filter_map(|pod| Some((pod.pod.worker, &pod.worker.as_ref().ok()?.status)))
}

fn slot(group: &GroupAnswers, worker: u32) -> Slot {
    let pod = pod(group, worker);
    let status = pod.and_then(|pod| pod.worker.as_ref().ok()).map(|answer| &answer.status);
    let opinions: Vec<(u32, &PeerStatus)> = statuses(group)
        .filter(|(other, _)| *other != worker)
        .flat_map(|(other, status)| status.peers.iter().map(move |peer| (other, peer)))
        .filter(|(_, peer)| peer.worker == worker)
        .collect();
    let presence = match (pod, status) {
        (_, Some(_)) => Presence::Answers,
        (None, None) => Presence::NoPod,
        (Some(_), None) if opinions.iter().any(|(_, peer)| is_live(peer)) => Presence::Unseen,
        (Some(_), None) => Presence::Silent,
    };
    let uid = group.placement.as_ref().and_then(|placement| placement.workers.get(worker as usize));
    Slot {
        worker,
        presence,
        is_member: match (uid, pod) {
            (Some(in_force), Some(pod)) => in_force.uid == pod.pod.uid,
            // without a placement nobody contradicts
            (None, Some(_)) => group.placement.is_none(),
            (_, None) => false,
        },
        is_unseen: presence == Presence::Unseen,
        adopts: status.is_some_and(|status| status.coverage.as_ref().is_none_or(|seen| seen.adopted > 0)),
        missed: status
            .map(|status| status.peers.iter().filter(|peer| !is_live(peer)).map(|peer| peer.worker).collect())
            .unwrap_or_default(),
        lost_to: opinions.iter().filter(|(_, peer)| is_lost(peer)).map(|(other, _)| *other).collect(),
    }
}

fn is_live(peer: &PeerStatus) -> bool {
    match peer.health() {
        PeerHealth::Live => true,
        PeerHealth::Unspecified => peer.connected,
        PeerHealth::Suspect | PeerHealth::Lost => false,
    }
}

fn is_lost(peer: &PeerStatus) -> bool {
    match peer.health() {
        PeerHealth::Lost => true,
        PeerHealth::Unspecified => !peer.connected,
        PeerHealth::Live | PeerHealth::Suspect => false,
    }
}

/// A worker as people see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerView {
    /// Index in the group.
    pub worker: u32,
    /// Name of its pod; absent if there is none.
    pub pod: Option<String>,
    /// Node of the pod; empty while it has none.
    pub node: String,
    /// What stands behind it.
    pub presence: Presence,
    /// Its phase: `READY`, `LOADING` and so on; absent if it does not answer.
    pub phase: Option<String>,
    /// What it says about its phase, or why it does not answer.
    pub message: String,
    /// Epoch that it uses.
    pub epoch: u64,
    /// Whether its pod is the one that the placement in force means.
    pub in_placement: bool,
    /// Whether its pod is being deleted.
    pub leaving: bool,
    /// Whether it takes no new requests.
    pub draining: bool,
    /// Requests under way.
    pub requests_in_flight: u32,
    /// Bytes of experts on its ranks.
    pub expert_bytes: u64,
    /// Bytes that its ranks may hold; 0: no limit.
    pub expert_bytes_limit: u64,
    /// Workers that count it as lost.
    pub lost_to: Vec<u32>,
    /// What it does not tell, for people.
    pub notes: Vec<String>,
}

impl WorkerView {
    /// What is known of one place.
    pub fn of(group: &GroupAnswers, slot: &Slot) -> Self {
        let pod = pod(group, slot.worker);
        let answer = pod.and_then(|pod| pod.worker.as_ref().ok());
        let status = answer.map(|answer| &answer.status);
        let phase = status.map(|status| match status.phase() {
            Phase::Unspecified => "unknown",
            Phase::Starting => "STARTING",
            Phase::WaitingForPlacement => "WAITING_FOR_PLACEMENT",
            Phase::Loading => "LOADING",
            Phase::Connecting => "CONNECTING",
            Phase::Ready => "READY",
            Phase::Failed => "FAILED",
        });
        let message = match (pod, status) {
            (None, _) => String::new(),
            (Some(_), Some(status)) if status.phase() == Phase::Ready => String::new(),
            (Some(_), Some(status)) if status.reason.is_empty() => clean(&status.message),
            (Some(_), Some(status)) => clean(&format!("{}: {}", status.reason, status.message)),
            (Some(pod), None) => clean(pod.worker.as_ref().err().map_or("", String::as_str)),
        };
        let notes = answer.into_iter().flat_map(|answer| {
            let experts = answer.experts.as_ref().err().map(|why| format!("what it holds is unknown: {why}"));
            let load = answer.load.as_ref().err().map(|why| format!("its load is unknown: {why}"));
            experts.into_iter().chain(load).map(|note| clean(&note))
        });
        Self {
            worker: slot.worker,
            pod: pod.map(|pod| clean(&pod.pod.name)),
            node: pod.map(|pod| clean(&pod.pod.node)).unwrap_or_default(),
            presence: slot.presence,
            phase: phase.map(str::to_owned),
            message,
            epoch: status.map_or(0, |status| status.placement_epoch),
            in_placement: slot.is_member,
            leaving: pod.is_some_and(|pod| pod.pod.leaving),
            draining: status.is_some_and(|status| status.draining),
            requests_in_flight: status.map_or(0, |status| status.requests_in_flight),
            expert_bytes: status.map_or(0, |status| {
                status.ranks.iter().fold(0, |sum, rank| rank.expert_bytes.saturating_add(sum))
            }),
            expert_bytes_limit: status.map_or(0, |status| status.expert_bytes_limit),
            lost_to: slot.lost_to.clone(),
            notes: notes.collect(),
        }
    }
}

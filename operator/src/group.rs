//! A group as it was observed: facts only, no wishes.
use std::sync::Arc;

use belay_crds::{FaultAction, Reason};
use belay_epoch::{Intent, conductor::Member};
use belay_proto::admin::{PeerHealth, Phase, Placement, WorkerStatus};
use k8s_openapi::jiff::Timestamp;

use crate::{
    attendance::Seat,
    faults::{self, Finding},
    loads::GroupLoad,
    recovery::Rebalances,
    rollout::Health,
};

/// One copy of the model: `workers` slots, each with a pod or without.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Revision that its pods are made from.
    pub revision: String,
    /// Its number within the revision.
    pub ordinal: u32,
    /// Whether its Service exists: the first object of a group to be made, the last to be removed.
    pub recorded: bool,
    /// Since when it drains.
    pub draining_since: Option<Timestamp>,
    /// When it was ready for the first time.
    pub first_ready: Option<Timestamp>,
    /// Where its experts are meant to be, and the change under way: what the ConfigMap says.
    pub intent: Intent,
    /// What was done about load so far: also in the ConfigMap.
    pub rebalances: Rebalances,
    /// Version of the ConfigMap that both were read from; `None`: there is none.
    pub written: Option<String>,
    /// By worker index. The length is the number of workers of the group's revision.
    pub slots: Vec<Option<WorkerPod>>,
    /// By worker index: since when a slot is as it is, as far as this process has seen.
    pub seats: Vec<Seat>,
    /// Load of the experts, if it was asked for.
    pub load: Option<Arc<GroupLoad>>,
}

/// The pod in a slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerPod {
    /// Its name: the same for each life of the slot.
    pub name: String,
    /// Tells one life of the slot from the next.
    pub uid: String,
    /// Address, once it has one.
    pub ip: Option<String>,
    /// Node, once it is scheduled.
    pub node: Option<String>,
    /// Superpod or zone of that node.
    pub domain: Option<String>,
    /// Whether that node takes no new pods: it is probably being emptied.
    pub node_leaving: bool,
    /// Faults of its devices that its node reports.
    pub fault: Option<Finding>,
    /// Whether that node does not respond, or is gone.
    pub node_silent: bool,
    /// Whether it is given up: its node is silent and its worker does not answer either.
    pub node_lost: bool,
    /// Whether the kubelet finds it ready: that is what gateways go by.
    pub ready: bool,
    /// Whether the worker process runs.
    pub running: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Why it ended for good (evicted, node shut down), if it did.
    pub ended: Option<String>,
    /// Whether it is marked as draining for gateways.
    pub marked_draining: bool,
    /// Whether it has the label that lets it be evicted.
    pub may_leave: bool,
    /// How often the kubelet has restarted its worker.
    pub restarts: u32,
    /// Why it does not run.
    pub trouble: Option<Trouble>,
    /// What its worker says; `None` if nobody was asked, because it does not run.
    pub worker: Option<Result<WorkerStatus, String>>,
    /// Whether its worker answers neither this operator nor any worker of its group.
    pub unreached: bool,
}

/// Something that keeps a pod or group from working.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trouble {
    /// Which kind.
    pub reason: Reason,
    /// The cause, in the words of whoever reported it.
    pub message: String,
}

impl WorkerPod {
    /// The worker's own status, if it answered.
    pub fn status(&self) -> Option<&WorkerStatus> {
        self.worker.as_ref()?.as_ref().ok()
    }

    /// Whether it is to go once others have its experts: its node is being emptied, or a device of it is faulty.
    pub fn leaving(&self) -> bool {
        self.node_leaving || self.fault.as_ref().is_some_and(|fault| fault.action == FaultAction::Drain)
    }

    /// Whether it takes requests. The kubelet's word counts; a worker that contradicts it is believed, and so are the
    /// others of its group: the kubelet of a node that stopped has said its last word, and it was "ready".
    pub fn serves(&self) -> bool {
        let agrees = self.status().is_none_or(|status| status.phase() == Phase::Ready);
        self.ready && !self.terminating && !self.node_lost && !self.unreached && agrees
    }

    /// Whether it can hold experts: it has an address, its worker answers and has not failed, and it is not about to end.
    pub fn present(&self) -> bool {
        let stays = !self.terminating && !self.node_lost && self.ended.is_none() && self.ip.is_some();
        stays && self.status().is_some_and(|status| status.phase() != Phase::Failed)
    }

    /// Whether it holds the experts that `placement` gives it: it has prepared them, or is at work with them.
    pub fn holds_experts(&self, placement: &Placement) -> bool {
        let here = !self.node_lost && self.ended.is_none();
        here && self.status().is_some_and(|status| {
            let named =
                placement.workers.get(status.worker as usize).is_some_and(|worker| worker.uid == self.uid);
            let has = match status.phase() {
                Phase::Failed => false,
                Phase::Connecting | Phase::Ready => {
                    status.placement_epoch.max(status.prepared_epoch) >= placement.epoch
                }
                _ => status.prepared_epoch >= placement.epoch,
            };
            named && has
        })
    }

    /// Whether its worker failed, that is what is wrong with the pod, and nothing but a new pod helps. One whose engine
    /// has stopped does not count: its liveness probe has the kubelet restart it. Nor does one that has lost a device: it
    /// is made anew.
    pub fn failed_for_good(&self) -> bool {
        let passes = ["EngineStopped", faults::DEVICE_LOST];
        let has_failed = self.status().is_some_and(|status| {
            status.phase() == Phase::Failed && !passes.contains(&status.reason.as_str())
        });
        has_failed && !self.node_lost && !self.node_silent && self.trouble.is_none() && !self.terminating
    }

    /// What is wrong with it: why it does not run, or why its worker fails.
    pub fn problem(&self) -> Option<Trouble> {
        if self.node_lost {
            let node = self.node.as_deref().unwrap_or("?");
            return Some(Trouble {
                reason: Reason::NodeLost,
                message: format!("node {node} does not respond"),
            });
        }
        if self.node_silent {
            let node = self.node.as_deref().unwrap_or("?");
            let message = format!("node {node} does not respond, but the worker does: it is left alone");
            return Some(Trouble { reason: Reason::NodeLost, message });
        }
        if let Some(trouble) = &self.trouble {
            return Some(trouble.clone());
        }
        match self.worker.as_ref()? {
            Ok(status) if status.phase() == Phase::Failed => {
                let reason = Reason::of_worker(&status.reason);
                let known = reason != Reason::WorkerFailed || status.reason.is_empty();
                let message = if known {
                    status.message.clone()
                } else {
                    format!("{}: {}", status.reason, status.message)
                };
                Some(Trouble { reason, message })
            }
            // one that is being deleted stops answering a little before its pod is gone
            Err(message) if self.ready && !self.terminating => {
                Some(Trouble { reason: Reason::WorkerUnreachable, message: message.clone() })
            }
            _ => None,
        }
    }
}

impl Group {
    /// Pods of the group, in the order of their slots.
    pub fn pods(&self) -> impl Iterator<Item = (u32, &WorkerPod)> {
        (0u32..).zip(&self.slots).filter_map(|(index, slot)| slot.as_ref().map(|pod| (index, pod)))
    }

    /// Whether it is about to be removed.
    pub fn draining(&self) -> bool {
        self.draining_since.is_some()
    }

    /// Takes note of the workers that nobody reaches. One that only this operator does not reach is not among them.
    pub fn note_unreached(&mut self) {
        let lost_to_all = |index: u32| {
            let mut views = self
                .pods()
                .filter(|(other, _)| *other != index)
                .filter_map(|(_, pod)| pod.status())
                .filter_map(|status| status.peers.iter().find(|peer| peer.worker == index))
                .map(|peer| peer.health() == PeerHealth::Lost)
                .peekable();
            views.peek().is_some() && views.all(|lost| lost)
        };
        let unreached: Vec<u32> = self
            .pods()
            .filter(|(index, pod)| matches!(pod.worker, Some(Err(_))) && lost_to_all(*index))
            .map(|(index, _)| index)
            .collect();
        for (index, pod) in (0u32..).zip(&mut self.slots) {
            if let Some(pod) = pod {
                pod.unreached = unreached.contains(&index);
            }
        }
    }

    /// Whether every worker takes requests.
    pub fn ready(&self) -> bool {
        !self.slots.is_empty() && self.slots.iter().all(|slot| slot.as_ref().is_some_and(WorkerPod::serves))
    }

    /// Whether it takes requests, complete or not: a worker is ready, which says that every expert has a live copy.
    pub fn serves(&self) -> bool {
        self.pods().any(|(_, pod)| pod.serves())
    }

    /// How it does, for the rollout. A lost node is no lasting fault: its pods come back elsewhere. A group that serves
    /// without some of its workers is not broken, whatever keeps those from coming back.
    pub fn health(&self) -> Health {
        let lasting = |trouble: &Trouble| {
            trouble.reason != Reason::NodeLost && trouble.reason != Reason::WorkerUnreachable
        };
        if self.ready() {
            Health::Ready
        } else if !(self.first_ready.is_some() && self.serves())
            && self.pods().any(|(_, pod)| pod.problem().is_some_and(|trouble| lasting(&trouble)))
        {
            Health::Broken
        } else {
            Health::Starting
        }
    }

    /// Workers that take requests.
    pub fn ready_workers(&self) -> usize {
        self.pods().filter(|(_, pod)| pod.serves()).count()
    }

    /// The placement in force.
    pub fn placement(&self) -> Option<&Placement> {
        self.intent.in_force.as_ref()
    }

    /// Whether the workers of the placement hold their share, by index.
    pub fn live_workers(&self, placement: &Placement) -> Vec<bool> {
        self.slots.iter().map(|slot| slot.as_ref().is_some_and(|pod| pod.holds_experts(placement))).collect()
    }

    /// Since when a slot is as it is. What nobody has watched yet has just begun.
    pub fn seat(&self, index: u32, now: Timestamp) -> Seat {
        let present = self.pod(index).is_some_and(WorkerPod::present);
        let seen = self.seats.get(index as usize).filter(|seat| seat.present == present);
        seen.cloned().unwrap_or(Seat { present, since: now, stays_since: Timestamp::UNIX_EPOCH })
    }

    /// The pod in a slot.
    pub fn pod(&self, index: u32) -> Option<&WorkerPod> {
        self.slots.get(index as usize)?.as_ref()
    }

    /// The pods as the epoch protocol sees them. One that neither answers nor is ready for longer than `grace_seconds` is
    /// not waited for.
    pub fn members(&self, grace_seconds: i64, now: Timestamp) -> Vec<Member> {
        let member = |(index, pod): (u32, &WorkerPod)| {
            let status = pod.status().filter(|status| status.phase() != Phase::Failed);
            let seat = self.seat(index, now);
            let silent = !seat.present && now.as_second() - seat.since.as_second() >= grace_seconds;
            let ended = pod.node_lost || pod.ended.is_some();
            Member {
                index,
                uid: pod.uid.clone(),
                lives: !ended && (status.is_some() || pod.ready || !silent),
                status: status.map(Into::into),
            }
        };
        self.pods().map(member).collect()
    }

    /// Highest placement epoch that anybody knows of.
    pub fn highest_epoch(&self) -> u64 {
        let epochs = |status: &WorkerStatus| {
            [status.placement_epoch, status.prepared_epoch, status.retired_epoch, status.known_epoch]
                .into_iter()
                .max()
        };
        let told = self.pods().filter_map(|(_, pod)| pod.status()).filter_map(epochs).max();
        self.intent.highest_epoch().max(told.unwrap_or(0))
    }
}

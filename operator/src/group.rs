//! A group as it was observed: facts only, no wishes.
use belay_crds::Reason;
use belay_proto::admin::{Phase, Placement, WorkerStatus};
use k8s_openapi::jiff::Timestamp;

use crate::rollout::Health;

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
    /// Where its experts are meant to be: what the ConfigMap says.
    pub placement: Option<Placement>,
    /// By worker index. The length is the number of workers of the group's revision.
    pub slots: Vec<Option<WorkerPod>>,
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
    /// Whether that node takes no new pods: it is probably being emptied.
    pub node_leaving: bool,
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
    /// Why it does not run.
    pub trouble: Option<Trouble>,
    /// What its worker says; `None` if nobody was asked, because it does not run.
    pub worker: Option<Result<WorkerStatus, String>>,
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

    /// Whether it takes requests. The kubelet's word counts; a worker that contradicts it is believed.
    pub fn serves(&self) -> bool {
        let agrees = self.status().is_none_or(|status| status.phase() == Phase::Ready);
        self.ready && !self.terminating && !self.node_lost && agrees
    }

    /// Whether it holds the experts that `placement` gives it.
    pub fn holds_experts(&self, placement: &Placement) -> bool {
        let here = !self.node_lost && self.ended.is_none();
        here && self.status().is_some_and(|status| {
            status.placement_epoch > 0
                && matches!(status.phase(), Phase::Connecting | Phase::Ready)
                && placement.workers.get(status.worker as usize).is_some_and(|worker| worker.uid == self.uid)
        })
    }

    /// Whether its worker failed, that is what is wrong with the pod, and nothing but a new pod helps. One whose engine
    /// has stopped does not count: its liveness probe has the kubelet restart it.
    pub fn failed_for_good(&self) -> bool {
        let has_failed = self
            .status()
            .is_some_and(|status| status.phase() == Phase::Failed && status.reason != "EngineStopped");
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

    /// Whether every worker takes requests.
    pub fn ready(&self) -> bool {
        !self.slots.is_empty() && self.slots.iter().all(|slot| slot.as_ref().is_some_and(WorkerPod::serves))
    }

    /// How it does, for the rollout. A lost node is no lasting fault: its pods come back elsewhere.
    pub fn health(&self) -> Health {
        let lasting = |trouble: &Trouble| {
            trouble.reason != Reason::NodeLost && trouble.reason != Reason::WorkerUnreachable
        };
        if self.ready() {
            Health::Ready
        } else if self.pods().any(|(_, pod)| pod.problem().is_some_and(|trouble| lasting(&trouble))) {
            Health::Broken
        } else {
            Health::Starting
        }
    }

    /// Workers that take requests.
    pub fn ready_workers(&self) -> usize {
        self.pods().filter(|(_, pod)| pod.serves()).count()
    }

    /// Highest placement epoch that anybody knows of.
    pub fn highest_epoch(&self) -> u64 {
        let told = self.pods().filter_map(|(_, pod)| pod.status()).map(|status| status.placement_epoch);
        told.chain(self.placement.as_ref().map(|placement| placement.epoch)).max().unwrap_or(0)
    }
}

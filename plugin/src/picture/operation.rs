//! The change of a group's placement that is under way: how far it is, and whom it waits for.
use belay_epoch::{Kind, Operation, Phase};
use belay_proto::admin::{Placement, WorkerStatus};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    units::clean,
    workers::{self},
};
use crate::answers::GroupAnswers;

/// A change under way as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationView {
    /// Epoch that it leads to.
    pub epoch: u64,
    /// Why placements change.
    pub kind: Kind,
    /// How far it is.
    pub phase: Phase,
    /// Why, in words.
    pub reason: String,
    /// Of this phase.
    pub percent: u32,
    /// Bytes of new copies that are loaded.
    pub bytes_done: u64,
    /// Bytes of new copies.
    pub bytes_total: u64,
    /// Since it began; absent if that is not known.
    pub elapsed_seconds: Option<u64>,
    /// Until the new copies are loaded; absent while nothing tells.
    pub eta_seconds: Option<u64>,
    /// Workers that are not done with this phase, and what keeps them.
    pub waiting_for: Vec<Waiting>,
}

/// A worker that an operation waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Its index.
    pub worker: u32,
    /// What keeps it; empty while it just goes on.
    pub why: String,
}

impl OperationView {
    /// What is under way in a group, at this time.
    pub fn of(group: &GroupAnswers, now: Timestamp) -> Option<Self> {
        let operation = group.operation.as_ref()?;
        let members = members(operation, group.placement.as_ref());
        let (mut bytes_done, mut bytes_total, mut share) = (0u64, 0u64, 0.0);
        let mut waiting_for = vec![];
        for worker in &members {
            let pod = workers::pod(group, *worker);
            let Some(status) = pod.and_then(|pod| pod.worker.as_ref().ok()).map(|answer| &answer.status)
            else {
                waiting_for.push(Waiting { worker: *worker, why: "does not answer".to_owned() });
                continue;
            };
            bytes_done = bytes_done.saturating_add(status.prepare_bytes_done);
            bytes_total = bytes_total.saturating_add(status.prepare_bytes_total);
            if is_done(status, operation) {
                share += 1.0;
            } else {
                if operation.phase == Phase::Prepare && status.prepare_bytes_total > 0 {
                    share += status.prepare_bytes_done as f64 / status.prepare_bytes_total as f64;
                }
                waiting_for.push(Waiting { worker: *worker, why: clean(&status.prepare_error) });
            }
        }
        let done = if members.is_empty() { 0.0 } else { (share / members.len() as f64).clamp(0.0, 1.0) };
        let elapsed = operation
            .started
            .parse::<Timestamp>()
            .ok()
            .and_then(|started| u64::try_from(now.as_second() - started.as_second()).ok());
        let is_stuck = waiting_for.iter().any(|waiting| !waiting.why.is_empty());
        // the first hundredth of the way says nothing about the rest
        let eta = (operation.phase == Phase::Prepare && done >= 0.01 && !is_stuck)
            .then(|| elapsed.map(|elapsed| (elapsed as f64 * (1.0 - done) / done).ceil() as u64))
            .flatten();
        Some(Self {
            epoch: operation.epoch,
            kind: operation.kind,
            phase: operation.phase,
            reason: clean(&operation.reason),
            percent: (done * 100.0).floor() as u32,
            bytes_done,
            bytes_total,
            elapsed_seconds: elapsed,
            eta_seconds: eta,
            waiting_for,
        })
    }

    /// The phase in a word.
    pub fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Prepare => "prepare",
            Phase::Commit => "commit",
            Phase::Retire => "retire",
        }
    }

    /// The kind in a word.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Recover => "Recover",
            Kind::Rebalance => "Rebalance",
            Kind::Evacuate => "Evacuate",
            Kind::Respecify => "Respecify",
        }
    }
}

/// Workers of the placement that the operation is about: the target, and that in force once it is committed.
fn members(operation: &Operation, in_force: Option<&Placement>) -> Vec<u32> {
    let placement = operation.target.as_ref().or(in_force);
    let workers = placement.map_or(&[][..], |placement| &placement.workers);
    workers.iter().filter(|worker| !worker.uid.is_empty()).map(|worker| worker.index).collect()
}

fn is_done(status: &WorkerStatus, operation: &Operation) -> bool {
    let reached = match operation.phase {
        Phase::Prepare => status.prepared_epoch,
        Phase::Commit => status.placement_epoch,
        Phase::Retire => status.retired_epoch,
    };
    reached >= operation.epoch
}

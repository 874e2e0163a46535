//! One line for each group.
use belay_crds::{GroupStatus, LastRebalance, LoadingStatus, OperationStatus, RankStatus, Reason};
use belay_epoch::progress::progress;
use k8s_openapi::jiff::Timestamp;

use super::{
    Problem, View, number,
    problems::{listed, lost_workers, waits_for},
    small,
};
use crate::{
    group::Group,
    recovery::{GRACE_SECONDS, Rebalance},
};

/// Most ranks that are told one by one.
const MOST_RANKS: usize = 64;

impl View<'_> {
    /// The line of a group.
    pub(super) fn group(&self, group: &Group, problems: &[Problem]) -> GroupStatus {
        let draining = self.draining(group);
        let statuses = || group.pods().filter_map(|(_, pod)| pod.status());
        let in_flight = statuses().map(|status| i64::from(status.requests_in_flight)).sum();
        let loading = LoadingStatus {
            bytes_done: statuses().map(|status| number(status.load_bytes_done)).sum(),
            bytes_total: statuses().map(|status| number(status.load_bytes_total)).sum(),
        };
        let problem = problems
            .iter()
            .find(|problem| problem.group == group.name && problem.reason != Reason::Recovering);
        let told = problem.map(|problem| listed(std::slice::from_ref(problem)));
        let message = if draining {
            Some("finishes its requests".to_owned())
        } else {
            told.or_else(|| waits_for(group))
        };
        let intended = self.intended(group);
        let in_force = intended.map_or(group.placement(), |intended| intended.intent.in_force.as_ref());
        GroupStatus {
            name: group.name.clone(),
            revision: group.revision.clone(),
            ready_workers: if draining { 0 } else { i32::try_from(group.ready_workers()).unwrap_or(0) },
            workers: i32::try_from(group.slots.len()).unwrap_or(0),
            draining,
            requests_in_flight: draining.then_some(in_flight),
            placement_epoch: in_force.map(|placement| number(placement.epoch)),
            experts: self.group_experts(group),
            lost_workers: lost_workers(group).into_iter().map(small).collect(),
            operation: if draining { None } else { self.operation(group) },
            last_rebalance: intended
                .and_then(|intended| intended.rebalances.last.as_ref())
                .map(last_rebalance),
            ranks: ranks(group),
            loading: (!draining && !group.ready() && loading.bytes_total > 0).then_some(loading),
            message,
        }
    }

    /// The line of a group that was just created.
    pub(super) fn new_group(&self, name: &str) -> GroupStatus {
        let record = self.plan.create.iter().find(|new| new.name == name).map(|new| &new.record);
        let record = record.unwrap_or(&self.plan.target);
        GroupStatus {
            name: name.to_owned(),
            revision: record.revision.clone(),
            workers: record.data.content.group.workers,
            message: Some("is being created".to_owned()),
            ..GroupStatus::default()
        }
    }

    /// The change of placement that is under way.
    fn operation(&self, group: &Group) -> Option<OperationStatus> {
        let intent = &self.intended(group)?.intent;
        let operation = intent.operation.as_ref()?;
        let progress = progress(intent, &group.members(GRACE_SECONDS, self.now)).unwrap_or_default();
        let waiting = progress.waiting_for.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Some(OperationStatus {
            kind: format!("{:?}", operation.kind),
            phase: format!("{:?}", operation.phase),
            epoch: number(operation.epoch),
            reason: operation.reason.clone(),
            started: operation.started.clone(),
            bytes_done: number(progress.bytes_done),
            bytes_total: number(progress.bytes_total),
            eta_seconds: eta(&operation.started, progress.bytes_done, progress.bytes_total, self.now),
            waiting_for: (!waiting.is_empty()).then_some(waiting),
        })
    }
}

/// Seconds that the rest takes at the rate so far.
fn eta(started: &str, done: u64, total: u64, now: Timestamp) -> Option<i64> {
    let started: Timestamp = started.parse().ok()?;
    let elapsed = u64::try_from(now.as_second() - started.as_second()).ok()?.max(1);
    let left = total.checked_sub(done).filter(|left| *left > 0 && done > 0)?;
    let seconds = u128::from(elapsed) * u128::from(left) / u128::from(done);
    Some(i64::try_from(seconds).unwrap_or(i64::MAX))
}

fn last_rebalance(last: &Rebalance) -> LastRebalance {
    LastRebalance {
        time: last.time.clone(),
        before_percent: i64::from(last.before_percent),
        after_percent: i64::from(last.after_percent),
        measured_percent: last.measured_percent.map(i64::from),
        moved_bytes: number(last.moved_bytes),
        reason: last.asked.clone().unwrap_or_else(|| "OnImbalance".to_owned()),
    }
}

fn ranks(group: &Group) -> Vec<RankStatus> {
    let ranks: Vec<RankStatus> = group
        .pods()
        .filter_map(|(index, pod)| Some((index, pod.status()?)))
        .flat_map(|(index, status)| status.ranks.iter().map(move |rank| (index, rank)))
        .map(|(index, rank)| RankStatus {
            rank: small(rank.rank),
            worker: small(index),
            experts: i64::from(rank.experts),
            expert_bytes: number(rank.expert_bytes),
        })
        .collect();
    if ranks.len() > MOST_RANKS { vec![] } else { ranks }
}

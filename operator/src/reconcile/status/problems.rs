//! What is wrong, in the words of whoever reported it.
use belay_crds::{Reason, labels};
use belay_proto::admin;

use super::View;
use crate::{
    coverage,
    group::{Group, WorkerPod},
    recovery::{describe_copies, describe_ranks, has_experts},
    rollout::Phase,
};

/// Most problems that the message of Degraded lists.
const LISTED: usize = 5;
/// How to go on with a worker that failed for good: it stays up as it is, to say why.
const WAY_ON: &str = "; after mending it, delete the pod";

/// Something wrong, with the pod or group that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which kind.
    pub reason: Reason,
    /// Group that suffers.
    pub group: String,
    /// Pod or group.
    pub subject: String,
    /// Cause.
    pub message: String,
    /// Whether a pod must be deleted once the cause is mended.
    pub needs_new_pod: bool,
}

impl View<'_> {
    /// Everything that is wrong.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = vec![];
        for group in self.live() {
            let mut add = |reason, subject: &str, message: &str, needs_new_pod| {
                let (group, subject, message) = (group.name.clone(), subject.to_owned(), message.to_owned());
                problems.push(Problem { reason, group, subject, message, needs_new_pod });
            };
            let intended = self.intended(group);
            if let Some(trouble) = intended.and_then(|intended| intended.problem.as_ref()) {
                add(trouble.reason, &group.name, &trouble.message, false);
            }
            for (_, pod) in group.pods() {
                if let Some(trouble) = pod.problem() {
                    add(trouble.reason, &pod.name, &trouble.message, pod.failed_for_good());
                }
                // a worker that has lost a device says so itself
                let told = pod.problem().is_some_and(|trouble| trouble.reason == Reason::DeviceFault);
                if let Some(fault) = pod.fault.as_ref().filter(|_| !told) {
                    add(Reason::DeviceFault, &pod.name, &fault.message, false);
                }
                let stuck = pod.status().filter(|status| !status.prepare_error.is_empty());
                if let Some(status) = stuck.filter(|_| group.intent.operation.is_some()) {
                    add(Reason::NoRoom, &pod.name, &status.prepare_error, false);
                }
                if let Some((_, message)) =
                    self.applied.push_failures.iter().find(|(name, _)| *name == pod.name)
                {
                    add(Reason::PlacementInvalid, &pod.name, message, false);
                }
            }
            for (pod, message) in self.losses(group) {
                add(Reason::RankLost, &pod, &message, false);
            }
            let short = intended.map_or(0, |intended| intended.short);
            if short > 0 && group.first_ready.is_some() {
                let copies = if short == 1 { "copy" } else { "copies" };
                let message = format!(
                    "{short} {copies} that spec.experts asks for: there are no workers or no room for them"
                );
                add(Reason::CopiesMissing, &group.name, &message, false);
            }
            if group.first_ready.is_some()
                && !group.ready()
                && !problems.iter().any(|p| p.group == group.name)
            {
                problems.push(Problem {
                    reason: Reason::Recovering,
                    group: group.name.clone(),
                    subject: group.name.clone(),
                    message: waits_for(group).unwrap_or_default(),
                    needs_new_pod: false,
                });
            }
        }
        let stage = &self.plan.stage;
        let rollout = match (stage.phase, &stage.state.rejected) {
            (Phase::RolledBack, Some(_)) => Some(Reason::RolledBack),
            (Phase::Stuck, _) => Some(Reason::ProgressDeadlineExceeded),
            _ => None,
        };
        problems.extend(rollout.map(|reason| Problem {
            reason,
            group: String::new(),
            subject: format!("revision {}", self.plan.target.revision),
            message: stage.message.clone(),
            needs_new_pod: false,
        }));
        problems.extend(self.applied.unscheduled.iter().map(|(group, message)| Problem {
            reason: Reason::SchedulerMissing,
            group: group.clone(),
            subject: group.clone(),
            message: message.clone(),
            needs_new_pod: false,
        }));
        for (pod, message) in &self.applied.refused {
            let group = pod.rsplit_once('-').map_or(pod.as_str(), |(group, _)| group).to_owned();
            problems.push(Problem {
                reason: Reason::PodRefused,
                group,
                subject: pod.clone(),
                message: message.clone(),
                needs_new_pod: false,
            });
        }
        problems
    }

    /// Pods of lost workers, and what their loss leaves.
    fn losses(&self, group: &Group) -> Vec<(String, String)> {
        let Some(placement) = group.placement() else { return vec![] };
        let lost = lost_workers(group);
        if lost.is_empty() {
            return vec![];
        }
        let coverage = coverage::of(group).unwrap_or_default();
        let asked = self.wanted.experts.copies.min;
        let fewer = coverage.copies.iter().filter(|&&copies| copies < asked).count();
        let left = format!("{fewer} experts have fewer copies than asked, {} none", coverage.uncovered);
        let waits = waits_for(group).map(|waits| format!("; {waits}")).unwrap_or_default();
        let each = lost.into_iter().map(|index| {
            let per_worker = placement.ranks_per_worker;
            let ranks = describe_ranks(index, per_worker);
            let experts = describe_copies(&placement.layers, per_worker, index);
            let message = format!("worker {index} is lost: {ranks} ({experts}); {left}{waits}");
            (labels::pod_name(&group.name, index), message)
        });
        each.collect()
    }
}

/// Workers to which the placement in force gives experts that are not there, of a group that was complete once.
pub(super) fn lost_workers(group: &Group) -> Vec<u32> {
    let Some(placement) = group.placement().filter(|_| group.first_ready.is_some()) else { return vec![] };
    let live = group.live_workers(placement);
    let has = has_experts(placement);
    let lost = |index: &u32| has.contains(index) && live.get(*index as usize) != Some(&true);
    placement.workers.iter().map(|worker| worker.index).filter(lost).collect()
}

/// What a group waits for; `None` if it is ready.
pub(super) fn waits_for(group: &Group) -> Option<String> {
    let name = |index: usize| labels::pod_name(&group.name, u32::try_from(index).unwrap_or(u32::MAX));
    let (index, slot) =
        group.slots.iter().enumerate().find(|(_, slot)| !slot.as_ref().is_some_and(WorkerPod::serves))?;
    let Some(pod) = slot else { return Some(format!("{}: is being created", name(index))) };
    let doing = match (&pod.node, pod.status()) {
        _ if pod.terminating => "is ending".to_owned(),
        (None, _) => "waits for a node".to_owned(),
        (_, Some(status)) => match status.phase() {
            admin::Phase::Ready => "is ready, the kubelet has yet to see it".to_owned(),
            _ if !status.message.is_empty() => status.message.clone(),
            phase => phase.as_str_name().trim_start_matches("PHASE_").to_lowercase().replace('_', " "),
        },
        (_, None) if pod.running => "starts; it does not answer yet".to_owned(),
        (_, None) => "is being started by its node".to_owned(),
    };
    Some(format!("{}: {doing}", pod.name))
}

/// The causes in the words of whoever reported them, then once how to go on.
pub(super) fn listed(problems: &[Problem]) -> String {
    let named = &problems[..problems.len().min(LISTED)];
    let mut parts: Vec<String> =
        named.iter().map(|problem| format!("{}: {}", problem.subject, problem.message)).collect();
    if problems.len() > LISTED {
        parts.push(format!("and {} more", problems.len() - LISTED));
    }
    let way_on = if named.iter().any(|problem| problem.needs_new_pod) { WAY_ON } else { "" };
    parts.join("; ") + way_on
}

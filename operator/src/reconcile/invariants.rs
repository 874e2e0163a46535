//! What must hold whatever happens, checked on what was observed. A violation is a fault of Belay: it is logged and counted,
//! and changes nothing else.
use belay_crds::ModelDeploymentStatus;
use belay_epoch::invariants::{Snapshot, Violation, Worker, forward, kept, not_ahead};
use belay_proto::admin::{Phase, Placement};
use tracing::error;

use super::observe::Observed;
use crate::{group::Group, metrics::Metrics};

/// Checks every group.
pub fn check(observed: &Observed, previous: Option<&ModelDeploymentStatus>, metrics: &Metrics) {
    for group in &observed.groups {
        for violation in violations(group, previous) {
            error!(group = group.name, invariant = violation.invariant.name(), "{}", violation.text);
            metrics.observe_violation(violation.invariant.name());
        }
    }
}

/// What does not hold in a group. Which copies a worker holds is not known here; workers check that themselves.
fn violations(group: &Group, previous: Option<&ModelDeploymentStatus>) -> Vec<Violation> {
    let in_force = group.placement();
    let workers = group.pods().filter_map(|(index, pod)| {
        let status = pod.status()?;
        let document = in_force.filter(|placement| placement.epoch == status.placement_epoch);
        Some(Worker {
            index,
            uid: &pod.uid,
            // one that is not ready may have begun anew with an older placement
            counts: pod.serves() && status.phase() == Phase::Ready,
            uses: status.placement_epoch,
            document,
            serves: vec![],
            since: 0,
            retired: status.retired_epoch,
            resident: None,
        })
    });
    let now = Snapshot { in_force, workers: workers.collect() };
    let mut violations = kept(&now);
    // without the ConfigMap everybody is ahead of it: somebody removed it, and it is made anew
    if in_force.is_some() {
        violations.extend(not_ahead(&now));
        let told = previous.and_then(|status| status.groups.iter().find(|line| line.name == group.name));
        let epoch = told.and_then(|line| u64::try_from(line.placement_epoch?).ok()).unwrap_or(0);
        let before = Placement { epoch, ..Placement::default() };
        violations.extend(forward(&Snapshot { in_force: Some(&before), workers: vec![] }, &now));
    }
    violations
}

#[cfg(test)]
mod tests {
    use belay_proto::admin::WorkerStatus;

    use super::*;
    use crate::group::WorkerPod;

    fn group(in_force: u64, workers: [(u64, u64); 2]) -> Group {
        let pod = |index: usize, (uses, retired): (u64, u64)| {
            let mut status =
                WorkerStatus { placement_epoch: uses, retired_epoch: retired, ..WorkerStatus::default() };
            status.set_phase(Phase::Ready);
            Some(WorkerPod {
                uid: format!("u{index}"),
                ready: true,
                worker: Some(Ok(status)),
                ..WorkerPod::default()
            })
        };
        let mut group = Group {
            slots: workers.into_iter().enumerate().map(|(i, w)| pod(i, w)).collect(),
            ..Group::default()
        };
        group.intent.in_force = Some(Placement { epoch: in_force, ..Placement::default() });
        group
    }

    fn names(group: &Group, previous: Option<&ModelDeploymentStatus>) -> Vec<&'static str> {
        violations(group, previous).iter().map(|violation| violation.invariant.name()).collect()
    }

    #[test]
    fn what_may_be_seen_in_a_change_is_no_violation() {
        assert!(names(&group(2, [(2, 0), (1, 1)]), None).is_empty());
        assert!(names(&group(2, [(2, 2), (2, 0)]), None).is_empty());
    }

    #[test]
    fn what_must_not_be_is_found() {
        assert_eq!(
            names(&group(2, [(2, 2), (1, 1)]), None),
            ["kept"],
            "retired while somebody uses an earlier one"
        );
        assert_eq!(names(&group(2, [(3, 2), (2, 2)]), None), ["forward"], "used before it was in force");
        let mut told = ModelDeploymentStatus::default();
        told.groups.push(belay_crds::GroupStatus { placement_epoch: Some(3), ..Default::default() });
        assert_eq!(names(&group(2, [(2, 2), (2, 2)]), Some(&told)), ["forward"], "an epoch went back");
    }
}

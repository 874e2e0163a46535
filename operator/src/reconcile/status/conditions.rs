//! Conditions.
use belay_crds::{ConditionType, ModelDeploymentStatus, Reason, TrafficRole, set_condition};

use super::{Problem, View, problems::listed};
use crate::{
    coverage::{self, Coverage},
    group::Group,
    rollout::Phase,
};

impl View<'_> {
    /// Sets all of them.
    pub(super) fn conditions(&self, next: &mut ModelDeploymentStatus, problems: &[Problem]) {
        let desired = self.wanted.budget.desired;
        let ready = next.ready_replicas;
        let generation = self.wanted.generation;
        let of = |count: i32| {
            format!("{count} of {desired} groups {} requests", if count == 1 { "takes" } else { "take" })
        };
        let mut set = |kind, status: bool, reason, message: String| {
            set_condition(&mut next.conditions, kind, Some(status), reason, message, generation, self.now);
        };

        let incomplete = self.serving_incomplete();
        let (available, reason) = match (ready, desired) {
            (1.., _) => (true, Reason::GroupsReady),
            _ if !incomplete.is_empty() => (true, Reason::GroupsIncomplete),
            (_, 0) => (false, Reason::ScaledToZero),
            _ => (false, Reason::NoGroupReady),
        };
        let message = std::iter::once(of(ready)).chain(incomplete).collect::<Vec<_>>().join("; ");
        set(ConditionType::Available, available, reason, message);

        let (moving, reason, message) = self.progress();
        set(ConditionType::Progressing, moving, reason, message);

        let (covered, reason, message) = self.coverage();
        set(ConditionType::ExpertsCovered, covered, reason, message);

        match problems
            .iter()
            .map(|problem| problem.reason)
            .min_by_key(|&reason| (reason == Reason::Recovering, reason))
        {
            Some(reason) => set(ConditionType::Degraded, true, reason, listed(problems)),
            None => set(ConditionType::Degraded, false, Reason::AsExpected, String::new()),
        }
    }

    fn progress(&self) -> (bool, Reason, String) {
        let target = &self.plan.target.revision;
        let names = |groups: Vec<&Group>| {
            groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        let old: Vec<&Group> =
            self.groups.iter().copied().filter(|group| group.revision != *target).collect();
        let draining: Vec<&Group> =
            self.groups.iter().copied().filter(|group| self.draining(group)).collect();
        let unready: Vec<&Group> = self.live().filter(|group| !group.ready()).collect();
        let created = &self.applied.created_groups;
        if let Some(stays) = self.stays(&old) {
            stays
        } else if !old.is_empty() {
            let message = &self.plan.stage.message;
            let waits = if message.is_empty() { String::new() } else { format!("; {message}") };
            (true, Reason::RollingOut, format!("to revision {target}; still there: {}{waits}", names(old)))
        } else if !created.is_empty() || unready.iter().any(|group| group.first_ready.is_none()) {
            let starting =
                unready.iter().map(|group| group.name.as_str()).chain(created.iter().map(String::as_str));
            (true, Reason::GroupsStarting, starting.collect::<Vec<_>>().join(", "))
        } else if !unready.is_empty() {
            (true, Reason::Recovering, names(unready))
        } else if !draining.is_empty() {
            (true, Reason::Draining, names(draining))
        } else if let Some(message) = self.moving() {
            (true, Reason::MovingExperts, message)
        } else if self.live().count() < self.wanted.budget.desired as usize {
            (true, Reason::GroupsStarting, "groups are about to be created".to_owned())
        } else {
            (false, Reason::Settled, String::new())
        }
    }

    /// A rollout that is where it is meant to be although groups of an old revision are left, or that does not get on.
    fn stays(&self, old: &[&Group]) -> Option<(bool, Reason, String)> {
        let (target, stage) = (&self.plan.target.revision, &self.plan.stage);
        let is_at_rest =
            self.applied.created_groups.is_empty() && !old.iter().any(|group| self.draining(group));
        let updated = self.live().filter(|group| group.revision == *target).count();
        let count = format!("{updated} of {} groups have revision {target}", self.wanted.budget.desired);
        let told = |reason: Reason| {
            let share = stage.shares.iter().find(|share| share.role != TrafficRole::Stable);
            let share = share.map(|share| format!("{} percent for revision {target}", share.percent));
            let message = (!stage.message.is_empty()).then(|| stage.message.clone());
            Some((true, reason, share.into_iter().chain(message).collect::<Vec<_>>().join("; ")))
        };
        match stage.phase {
            Phase::Paused if !old.is_empty() && is_at_rest => Some((false, Reason::RolloutPaused, count)),
            Phase::Partitioned if !old.is_empty() && is_at_rest && self.live().all(Group::ready) => {
                Some((false, Reason::RolloutPartitioned, count))
            }
            Phase::Stuck => Some((false, Reason::ProgressDeadlineExceeded, stage.message.clone())),
            Phase::Holding => told(Reason::RolloutHolding),
            Phase::WaitingForPromotion => told(Reason::WaitingForPromotion),
            Phase::RolledBack if updated == 0 && is_at_rest && self.live().all(Group::ready) => {
                Some((false, Reason::RolledBack, stage.message.clone()))
            }
            _ => None,
        }
    }

    /// A group that starts has no experts yet, and takes no requests: it breaks nothing. One that was complete does.
    fn coverage(&self) -> (bool, Reason, String) {
        let mut complete = 0;
        let mut gaps = vec![];
        for group in self.live() {
            let Some(coverage) = coverage::of(group) else { continue };
            let Coverage { uncovered: missing, total, .. } = coverage;
            if missing == 0 {
                complete += 1;
            } else if group.first_ready.is_some() {
                gaps.push(format!("group {}: {missing} of {total} experts have no live copy", group.name));
            }
        }
        if !gaps.is_empty() {
            (false, Reason::ExpertsLost, gaps.join("; "))
        } else if complete > 0 {
            (
                true,
                Reason::AllExpertsLive,
                format!("in {complete} group{}", if complete == 1 { "" } else { "s" }),
            )
        } else {
            (false, Reason::NotLoaded, "no group has loaded the model".to_owned())
        }
    }

    /// Groups that take requests without being complete, since every expert has a live copy.
    fn serving_incomplete(&self) -> Vec<String> {
        let serves = |group: &&Group| {
            !group.ready()
                && group.serves()
                && coverage::of(group).is_some_and(|coverage| coverage.uncovered == 0)
        };
        let told = |group: &Group| {
            format!("{} serves with {} of {} workers", group.name, group.ready_workers(), group.slots.len())
        };
        self.live().filter(serves).map(told).collect()
    }

    /// Changes of placement that are under way.
    fn moving(&self) -> Option<String> {
        let parts: Vec<String> = self
            .live()
            .filter_map(|group| Some((group, self.intended(group)?.intent.operation.as_ref()?)))
            .map(|(group, operation)| format!("{}: {:?}, {}", group.name, operation.kind, operation.reason))
            .collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

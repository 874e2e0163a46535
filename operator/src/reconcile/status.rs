//! Status: from what was observed and applied, never from wishes.
mod conditions;
mod experts;
mod line;
mod problems;
mod rollout;

use belay_crds::{
    ConditionType, GroupStatus, ModelDeployment, ModelDeploymentStatus, Reason, labels, set_condition,
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams, TypeMeta},
};
use serde::Serialize;

pub use self::problems::Problem;
use super::{
    apply::Applied,
    observe::Observed,
    plan::{Experts, Plan},
    validate::Validated,
};
use crate::{
    cache::{self, Cache},
    group::Group,
};

/// The status after a round of reconciling, and the problems in it.
pub fn status(
    wanted: &Validated,
    observed: &Observed,
    plan: &Plan,
    applied: &Applied,
    previous: Option<&ModelDeploymentStatus>,
) -> (ModelDeploymentStatus, Vec<Problem>) {
    let groups: Vec<&Group> =
        observed.groups.iter().filter(|group| !applied.cleared_groups.contains(&group.name)).collect();
    let view = View { wanted, plan, applied, groups, previous, now: observed.now };
    let problems = view.problems();

    let mut lines: Vec<GroupStatus> = view.groups.iter().map(|group| view.group(group, &problems)).collect();
    lines.extend(applied.created_groups.iter().map(|name| view.new_group(name)));
    let count = |test: &dyn Fn(&Group) -> bool| {
        i32::try_from(view.groups.iter().filter(|group| test(group)).count()).unwrap_or(i32::MAX)
    };
    let target = &plan.target.revision;
    let of_target = |name: &&String| labels::group_ordinal(&wanted.name, target, name).is_some();
    let created = applied.created_groups.iter().filter(of_target).count();
    let created = i32::try_from(created).unwrap_or(i32::MAX);
    let updated = count(&|group| !view.draining(group) && group.revision == *target) + created;

    let mut next = ModelDeploymentStatus {
        observed_generation: wanted.generation,
        replicas: i32::try_from(lines.len()).unwrap_or(i32::MAX),
        ready_replicas: count(&|group| !view.draining(group) && group.ready()),
        updated_replicas: updated,
        selector: labels::scale_selector(&wanted.name),
        current_revision: view.current_revision(previous),
        updated_revision: Some(target.clone()),
        conditions: previous.map(|status| status.conditions.clone()).unwrap_or_default(),
        experts: view.experts(),
        traffic: view.traffic(),
        rollout: Some(view.rollout()),
        autoscaling: None,
        groups: lines,
    };
    view.conditions(&mut next, &problems);
    (next, problems)
}

/// The status when the spec cannot be worked with: what runs is left alone and reported as before.
pub fn refused(
    previous: Option<&ModelDeploymentStatus>,
    generation: Option<i64>,
    reason: Reason,
    message: &str,
    now: Timestamp,
) -> ModelDeploymentStatus {
    let mut next = previous.cloned().unwrap_or_default();
    next.observed_generation = generation;
    let mut set = |kind, status, reason, message: &str| {
        set_condition(&mut next.conditions, kind, status, reason, message.to_owned(), generation, now);
    };
    set(ConditionType::Progressing, Some(false), reason, message);
    set(ConditionType::Degraded, Some(true), reason, message);
    if previous.is_none() {
        set(ConditionType::Available, Some(false), Reason::NoGroupReady, "there is no group");
        set(ConditionType::ExpertsCovered, Some(false), Reason::NotLoaded, "there is no group");
    }
    next
}

/// Writes the status, if it says something new.
///
/// # Errors
/// When the API server does not take it.
pub async fn write(
    client: &Client,
    cache: &Cache,
    deployment: &ModelDeployment,
    status: ModelDeploymentStatus,
) -> Result<bool, kube::Error> {
    if deployment.status.as_ref() == Some(&status) {
        return Ok(false);
    }
    /// A ModelDeployment of which only the status is applied.
    #[derive(Debug, Serialize)]
    struct StatusOnly {
        #[serde(flatten)]
        types: TypeMeta,
        metadata: ObjectMeta,
        status: ModelDeploymentStatus,
    }
    let api: Api<ModelDeployment> =
        Api::namespaced(client.clone(), &deployment.namespace().unwrap_or_default());
    let name = deployment.name_any();
    let patch = StatusOnly {
        types: TypeMeta::resource::<ModelDeployment>(),
        metadata: ObjectMeta {
            name: Some(name.clone()),
            uid: deployment.meta().uid.clone(),
            ..ObjectMeta::default()
        },
        status,
    };
    let params = PatchParams::apply(labels::OPERATOR).force();
    let written = api.patch_status(&name, &params, &Patch::Apply(&patch)).await?;
    cache.wrote_status(&deployment.uid().unwrap_or_default(), cache::version(&written));
    Ok(true)
}

struct View<'a> {
    wanted: &'a Validated,
    plan: &'a Plan,
    applied: &'a Applied,
    groups: Vec<&'a Group>,
    previous: Option<&'a ModelDeploymentStatus>,
    now: Timestamp,
}

impl View<'_> {
    fn draining(&self, group: &Group) -> bool {
        group.draining() || self.applied.drained_groups.contains(&group.name)
    }

    fn live(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().copied().filter(|group| !self.draining(group))
    }

    fn previous_line(&self, group: &Group) -> Option<&GroupStatus> {
        self.previous?.groups.iter().find(|line| line.name == group.name)
    }

    /// What is intended for a group's experts.
    fn intended(&self, group: &Group) -> Option<&Experts> {
        self.plan.groups.iter().find(|plan| plan.name == group.name).map(|plan| &plan.experts)
    }

    /// The revision that everything had before the present rollout; the target once it is complete.
    fn current_revision(&self, previous: Option<&ModelDeploymentStatus>) -> Option<String> {
        let target = &self.plan.target.revision;
        let before = previous.and_then(|status| status.current_revision.clone());
        let old_left = self.groups.iter().any(|group| group.revision != *target);
        let complete =
            self.live().filter(|group| group.ready()).count() >= self.wanted.budget.desired as usize;
        if before.is_none() || (!old_left && complete) { Some(target.clone()) } else { before }
    }
}

fn small(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

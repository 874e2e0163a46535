//! Status: from what was observed and applied, never from wishes.
use belay_crds::{
    ConditionType, ExpertsStatus, GroupStatus, LoadingStatus, ModelDeployment, ModelDeploymentStatus, Reason,
    labels, set_condition,
};
use belay_proto::admin::Phase;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams, TypeMeta},
};
use serde::Serialize;

use super::{apply::Applied, observe::Observed, plan::Plan, validate::Validated};
use crate::{
    group::{Group, WorkerPod},
    placement,
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
    let view = View { wanted, plan, applied, groups };
    let problems = view.problems();

    let mut lines: Vec<GroupStatus> = view.groups.iter().map(|group| view.group(group, &problems)).collect();
    lines.extend(applied.created_groups.iter().map(|name| view.new_group(name)));
    let count = |test: &dyn Fn(&Group) -> bool| {
        i32::try_from(view.groups.iter().filter(|group| test(group)).count()).unwrap_or(i32::MAX)
    };
    let created = i32::try_from(applied.created_groups.len()).unwrap_or(i32::MAX);
    let target = &plan.target.revision;
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
        groups: lines,
    };
    view.conditions(&mut next, &problems, observed.now);
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
    api.patch_status(&name, &PatchParams::apply(labels::OPERATOR).force(), &Patch::Apply(&patch)).await?;
    Ok(true)
}

struct View<'a> {
    wanted: &'a Validated,
    plan: &'a Plan,
    applied: &'a Applied,
    groups: Vec<&'a Group>,
}

impl View<'_> {
    fn draining(&self, group: &Group) -> bool {
        group.draining() || self.applied.drained_groups.contains(&group.name)
    }

    fn live(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().copied().filter(|group| !self.draining(group))
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = vec![];
        for group in self.live() {
            let mut add = |reason, subject: &str, message: &str, needs_new_pod| {
                let (group, subject, message) = (group.name.clone(), subject.to_owned(), message.to_owned());
                problems.push(Problem { reason, group, subject, message, needs_new_pod });
            };
            let plan = self.plan.groups.iter().find(|plan| plan.name == group.name);
            if let Some(trouble) = plan.and_then(|plan| plan.problem.as_ref()) {
                add(trouble.reason, &group.name, &trouble.message, false);
            }
            for (_, pod) in group.pods() {
                if let Some(trouble) = pod.problem() {
                    add(trouble.reason, &pod.name, &trouble.message, pod.failed_for_good());
                }
                if let Some((_, message)) =
                    self.applied.push_failures.iter().find(|(name, _)| *name == pod.name)
                {
                    add(Reason::PlacementInvalid, &pod.name, message, false);
                }
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

    fn group(&self, group: &Group, problems: &[Problem]) -> GroupStatus {
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
        GroupStatus {
            name: group.name.clone(),
            revision: group.revision.clone(),
            ready_workers: if draining { 0 } else { i32::try_from(group.ready_workers()).unwrap_or(0) },
            workers: i32::try_from(group.slots.len()).unwrap_or(0),
            draining,
            requests_in_flight: draining.then_some(in_flight),
            placement_epoch: group.placement.as_ref().map(|placement| number(placement.epoch)),
            loading: (!draining && !group.ready() && loading.bytes_total > 0).then_some(loading),
            message,
        }
    }

    fn new_group(&self, name: &str) -> GroupStatus {
        GroupStatus {
            name: name.to_owned(),
            revision: self.plan.target.revision.clone(),
            workers: self.plan.target.data.content.group.workers,
            message: Some("is being created".to_owned()),
            ..GroupStatus::default()
        }
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

    fn experts(&self) -> Option<ExpertsStatus> {
        let placed: Vec<_> =
            self.live().filter_map(|group| Some((group, group.placement.as_ref()?))).collect();
        let copies = placement::live_copies(placed.iter().map(|(group, placement)| {
            let live: Vec<bool> = group
                .slots
                .iter()
                .map(|slot| slot.as_ref().is_some_and(|pod| pod.holds_experts(placement)))
                .collect();
            (*placement, live)
        }));
        let (first, rest) = copies.split_first()?;
        let all = || std::iter::once(first).chain(rest).map(|&copies| i64::from(copies));
        Some(ExpertsStatus {
            total: i64::try_from(copies.len()).unwrap_or(i64::MAX),
            copies: all().sum(),
            min_live_copies: all().min().unwrap_or(0),
        })
    }

    fn conditions(&self, next: &mut ModelDeploymentStatus, problems: &[Problem], now: Timestamp) {
        let desired = self.wanted.budget.desired;
        let ready = next.ready_replicas;
        let generation = self.wanted.generation;
        let of = |count: i32| {
            format!("{count} of {desired} groups {} requests", if count == 1 { "takes" } else { "take" })
        };
        let mut set = |kind, status: bool, reason, message: String| {
            set_condition(&mut next.conditions, kind, Some(status), reason, message, generation, now);
        };

        let available = match (ready, desired) {
            (1.., _) => (true, Reason::GroupsReady),
            (_, 0) => (false, Reason::ScaledToZero),
            _ => (false, Reason::NoGroupReady),
        };
        set(ConditionType::Available, available.0, available.1, of(ready));

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
        if !old.is_empty() {
            (true, Reason::RollingOut, format!("to revision {target}; still there: {}", names(old)))
        } else if !created.is_empty() || unready.iter().any(|group| group.first_ready.is_none()) {
            let starting =
                unready.iter().map(|group| group.name.as_str()).chain(created.iter().map(String::as_str));
            (true, Reason::GroupsStarting, starting.collect::<Vec<_>>().join(", "))
        } else if !unready.is_empty() {
            (true, Reason::Recovering, names(unready))
        } else if !draining.is_empty() {
            (true, Reason::Draining, names(draining))
        } else if self.live().count() < self.wanted.budget.desired as usize {
            (true, Reason::GroupsStarting, "groups are about to be created".to_owned())
        } else {
            (false, Reason::Settled, String::new())
        }
    }

    /// A group that starts has no experts yet, and takes no requests: it breaks nothing. One that was complete does.
    fn coverage(&self) -> (bool, Reason, String) {
        let mut complete = 0;
        let mut gaps = vec![];
        for group in self.live() {
            let Some(placement) = &group.placement else { continue };
            let live: Vec<bool> = group
                .slots
                .iter()
                .map(|slot| slot.as_ref().is_some_and(|pod| pod.holds_experts(placement)))
                .collect();
            let copies = placement::live_copies([(placement, live)]);
            let missing = copies.iter().filter(|&&copies| copies == 0).count();
            if missing == 0 {
                complete += 1;
            } else if group.first_ready.is_some() {
                let total = copies.len();
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
}

/// What a group waits for; `None` if it is ready.
fn waits_for(group: &Group) -> Option<String> {
    let name = |index: usize| labels::pod_name(&group.name, u32::try_from(index).unwrap_or(u32::MAX));
    let (index, slot) =
        group.slots.iter().enumerate().find(|(_, slot)| !slot.as_ref().is_some_and(WorkerPod::serves))?;
    let Some(pod) = slot else { return Some(format!("{}: is being created", name(index))) };
    let doing = match (&pod.node, pod.status()) {
        _ if pod.terminating => "is ending".to_owned(),
        (None, _) => "waits for a node".to_owned(),
        (_, Some(status)) => match status.phase() {
            Phase::Ready => "is ready, the kubelet has yet to see it".to_owned(),
            _ if !status.message.is_empty() => status.message.clone(),
            phase => phase.as_str_name().trim_start_matches("PHASE_").to_lowercase().replace('_', " "),
        },
        (_, None) if pod.running => "starts; it does not answer yet".to_owned(),
        (_, None) => "is being started by its node".to_owned(),
    };
    Some(format!("{}: {doing}", pod.name))
}

/// The causes in the words of whoever reported them, then once how to go on.
fn listed(problems: &[Problem]) -> String {
    let named = &problems[..problems.len().min(LISTED)];
    let mut parts: Vec<String> =
        named.iter().map(|problem| format!("{}: {}", problem.subject, problem.message)).collect();
    if problems.len() > LISTED {
        parts.push(format!("and {} more", problems.len() - LISTED));
    }
    let way_on = if named.iter().any(|problem| problem.needs_new_pod) { WAY_ON } else { "" };
    parts.join("; ") + way_on
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

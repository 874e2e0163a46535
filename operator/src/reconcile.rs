//! One reconcile: observe → validate → plan → build → apply → status.
pub mod apply;
pub mod build;
mod invariants;
pub mod notes;
pub mod observe;
pub mod plan;
mod scaling;
pub mod status;
pub mod validate;

use std::time::Duration;

use belay_crds::{ConditionType, ModelDeployment, ModelDeploymentStatus, Reason};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use thiserror::Error;

use self::{
    observe::Observed,
    plan::{Experts, Plan},
    status::Problem,
    validate::Validated,
};
use crate::{context::Context, events, events::Note, group::Group, rollout::Evidence};

/// How soon to look again while something moves. Workers have no watch: their progress is asked for.
const MOVING: Duration = Duration::from_secs(1);

/// How soon to look again while placements change: each phase is a look.
const OPERATING: Duration = Duration::from_millis(300);

/// Copies that take longer than this to load are not looked at that often.
const LONG_SECONDS: i64 = 10;

/// Seconds between two questions for load at least, and at most.
const LOAD_SECONDS: (i64, i64) = (2, 15);

/// How soon to look again when nothing moved for [`PATIENCE_SECONDS`].
const STUCK: Duration = Duration::from_secs(5);

/// How soon to look again when all is well, at the latest.
const SETTLED: Duration = Duration::from_secs(10);

/// After how long without any transition a deployment counts as stuck.
const PATIENCE_SECONDS: i64 = 120;

/// Why a reconcile came to nothing.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// What exists could not be read.
    #[error("observe")]
    Observe(#[source] kube::Error),
    /// An object cannot be made.
    #[error("build")]
    Build(#[from] build::BuildError),
    /// A change was not taken.
    #[error("apply")]
    Apply(#[from] apply::ApplyError),
    /// The status was not taken.
    #[error("write status")]
    Status(#[source] kube::Error),
    /// The number of groups could not be read or set.
    #[error("scale")]
    Scale(#[source] kube::Error),
}

/// Brings one deployment a step nearer to its spec.
///
/// # Errors
/// When the API server fails; what was done so far stays, and the next attempt goes on from there.
pub async fn reconcile(context: &Context, deployment: &ModelDeployment) -> Result<Action, ReconcileError> {
    if deployment.metadata.deletion_timestamp.is_some() {
        // everything is owned by the deployment and goes with it; making anything now would only come back to life
        return Ok(Action::await_change());
    }
    let wanted = match validate::validate(deployment) {
        Ok(wanted) => wanted,
        Err(invalid) => return refuse(context, deployment, Reason::InvalidSpec, &invalid.to_string()).await,
    };
    let interval = i64::from(wanted.experts.min_interval_seconds) / 4;
    let load_seconds = interval.clamp(LOAD_SECONDS.0, LOAD_SECONDS.1);
    let observed =
        observe::observe(context, deployment, load_seconds).await.map_err(ReconcileError::Observe)?;
    let image = context.settings.worker_image.as_deref();
    let evidence = evidence(context, &wanted, &observed, image);
    let plan =
        match plan::plan(&wanted, &observed.groups, &observed.revisions, image, &evidence, observed.now) {
            Ok(plan) => plan,
            Err(error) => {
                return refuse(context, deployment, Reason::NoWorkerImage, &error.to_string()).await;
            }
        };
    let prepared = build::build(&wanted, &observed, &plan)?;
    let applied = apply::apply(
        &context.client,
        &context.cache,
        &context.workers,
        &wanted.namespace,
        &observed,
        prepared,
    )
    .await?;

    let previous = deployment.status.as_ref();
    invariants::check(&observed, previous, &context.metrics);
    let (mut next, problems) = status::status(&wanted, &observed, &plan, &applied, previous);
    let mut notes = notes::notes(&observed, &plan, &applied, previous, &next);
    notes.splice(..0, applied.notes);
    notes.extend(new_problems(previous, &next, &problems));
    let mut pause = pause(&next, applied.changed, observed.now);
    let look = scaling::look(context, deployment, &wanted, &observed, &plan.target.revision).await?;
    if let Some(look) = &look {
        next.autoscaling = Some(look.status.clone());
        notes.extend(look.notes.iter().cloned());
        pause = if look.settled { pause } else { pause.min(STUCK) };
    }
    context.metrics.observe_status(&wanted.namespace, &wanted.name, wanted.budget.desired, &next);
    for (group, experts) in applied.intents.iter().filter_map(|name| change(&observed, &plan, name)) {
        context.metrics.observe_operation(group.intent.operation.as_ref(), experts, observed.now);
    }
    status::write(&context.client, &context.cache, deployment, next).await.map_err(ReconcileError::Status)?;
    if let Some(look) = look {
        notes.extend(scaling::act(context, deployment, look).await?);
    }
    events::publish(&context.recorder, deployment, &notes).await;
    Ok(Action::requeue(pause))
}

/// What is known about whether a new revision is good.
fn evidence(context: &Context, wanted: &Validated, observed: &Observed, image: Option<&str>) -> Evidence {
    // most deployments are not analysed: neither the hash of their spec nor the sums of the gateways are made twice for them
    if wanted.analysis.is_none() {
        return Evidence::default();
    }
    let Observed { groups, revisions, now, .. } = observed;
    // a plan that cannot be made is told by the plan
    let Ok(prospect) = plan::prospect(wanted, groups, revisions, image, *now) else {
        return Evidence::default();
    };
    let gateways = &context.gateways;
    let measure = gateways.are_known().then(|| gateways.measure(&wanted.namespace, &wanted.name));
    context.analyses.look(wanted, &prospect, groups, measure, *now)
}

/// A group whose intent was written, and what it was planned to be.
fn change<'a>(observed: &'a Observed, plan: &'a Plan, name: &str) -> Option<(&'a Group, &'a Experts)> {
    let group = observed.groups.iter().find(|group| group.name == name)?;
    let plan = plan.groups.iter().find(|plan| plan.name == name)?;
    Some((group, &plan.experts))
}

/// RFC 3339 in whole seconds: what annotations carry.
pub(crate) fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// Says why nothing can be done. Only another spec helps, so there is nothing to come back for.
async fn refuse(
    context: &Context,
    deployment: &ModelDeployment,
    reason: Reason,
    message: &str,
) -> Result<Action, ReconcileError> {
    let generation = deployment.metadata.generation;
    let next = status::refused(deployment.status.as_ref(), generation, reason, message, Timestamp::now());
    let written = status::write(&context.client, &context.cache, deployment, next)
        .await
        .map_err(ReconcileError::Status)?;
    if written {
        let note = Note::warning(reason, "Validate", "spec", message.to_owned());
        events::publish(&context.recorder, deployment, &[note]).await;
    }
    Ok(Action::await_change())
}

/// Notes on problems that the status did not tell before.
fn new_problems(
    previous: Option<&ModelDeploymentStatus>,
    next: &ModelDeploymentStatus,
    problems: &[Problem],
) -> Vec<Note> {
    let told = |status: &ModelDeploymentStatus| {
        let degraded = status.conditions.iter().find(|c| c.type_ == ConditionType::Degraded.as_str());
        degraded.map(|c| (c.reason.clone(), c.message.clone()))
    };
    if previous.and_then(told) == told(next) {
        return vec![];
    }
    problems
        .iter()
        // these are told when they happen
        .filter(|problem| {
            !matches!(
                problem.reason,
                Reason::NodeLost | Reason::Recovering | Reason::RankLost | Reason::RolledBack
            )
        })
        .map(|problem| {
            Note::warning(
                problem.reason,
                "Start",
                &problem.subject,
                format!("{}: {}", problem.subject, problem.message),
            )
        })
        .collect()
}

/// Up to a tenth sooner, so that deployments that began together do not stay together.
fn sooner(pause: Duration) -> Duration {
    let spread = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
    pause - pause / 10 * spread / 255
}

/// When to look again.
fn pause(status: &ModelDeploymentStatus, changed: bool, now: Timestamp) -> Duration {
    let is = |kind: ConditionType| {
        status.conditions.iter().any(|c| c.type_ == kind.as_str() && c.status == "True")
    };
    let operations = || status.groups.iter().filter_map(|group| group.operation.as_ref());
    if operations().any(|operation| operation.eta_seconds.is_none_or(|seconds| seconds < LONG_SECONDS)) {
        return OPERATING;
    }
    if !changed && !is(ConditionType::Progressing) && !is(ConditionType::Degraded) {
        return sooner(SETTLED);
    }
    let last = status.conditions.iter().map(|c| c.last_transition_time.0.as_second()).max().unwrap_or(0);
    let loading = status.groups.iter().any(|group| group.loading.is_some() || group.draining);
    if changed || loading || now.as_second() - last < PATIENCE_SECONDS { MOVING } else { STUCK }
}

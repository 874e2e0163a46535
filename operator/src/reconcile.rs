//! One reconcile: observe → validate → plan → build → apply → status.
pub mod apply;
pub mod build;
pub mod observe;
pub mod plan;
pub mod status;
pub mod validate;

use std::time::Duration;

use belay_crds::{ConditionType, ModelDeployment, ModelDeploymentStatus, Reason};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use thiserror::Error;

use self::status::Problem;
use crate::{context::Context, events, events::Note};

/// How soon to look again while something moves. Workers have no watch: their progress is asked for.
const MOVING: Duration = Duration::from_secs(1);

/// How soon to look again when nothing moved for [`PATIENCE_SECONDS`].
const STUCK: Duration = Duration::from_secs(5);

/// How soon to look again when all is well.
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
    let observed = observe::observe(
        &context.client,
        &context.workers,
        &context.nodes,
        context.settings.node_lost_seconds,
        deployment,
    )
    .await
    .map_err(ReconcileError::Observe)?;
    let image = context.settings.worker_image.as_deref();
    let plan = match plan::plan(&wanted, &observed.groups, &observed.revisions, image, observed.now) {
        Ok(plan) => plan,
        Err(error) => return refuse(context, deployment, Reason::NoWorkerImage, &error.to_string()).await,
    };
    let prepared = build::build(&wanted, &observed, &plan)?;
    let applied =
        apply::apply(&context.client, &context.workers, &wanted.namespace, &observed, prepared).await?;

    let previous = deployment.status.as_ref();
    let (next, problems) = status::status(&wanted, &observed, &plan, &applied, previous);
    let mut notes = applied.notes;
    notes.extend(new_problems(previous, &next, &problems));
    let pause = pause(&next, applied.changed, observed.now);
    context.metrics.observe_status(&wanted.namespace, &wanted.name, wanted.budget.desired, &next);
    status::write(&context.client, deployment, next).await.map_err(ReconcileError::Status)?;
    events::publish(&context.recorder, deployment, &notes).await;
    Ok(Action::requeue(pause))
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
    let written = status::write(&context.client, deployment, next).await.map_err(ReconcileError::Status)?;
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
        // these are told when the pod is given up or created
        .filter(|problem| !matches!(problem.reason, Reason::NodeLost | Reason::Recovering))
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

/// When to look again.
fn pause(status: &ModelDeploymentStatus, changed: bool, now: Timestamp) -> Duration {
    let is = |kind: ConditionType| {
        status.conditions.iter().any(|c| c.type_ == kind.as_str() && c.status == "True")
    };
    if !changed && !is(ConditionType::Progressing) && !is(ConditionType::Degraded) {
        return SETTLED;
    }
    let last = status.conditions.iter().map(|c| c.last_transition_time.0.as_second()).max().unwrap_or(0);
    let loading = status.groups.iter().any(|group| group.loading.is_some() || group.draining);
    if changed || loading || now.as_second() - last < PATIENCE_SECONDS { MOVING } else { STUCK }
}

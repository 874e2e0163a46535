//! Autoscaling as a part of a reconcile. The step is in the status before `spec.replicas` is set: another leader that finds
//! it there and not done has only waited for nothing; one that did not find it could do it twice.
use belay_crds::ModelDeployment;
use tracing::debug;

use super::{ReconcileError, observe::Observed, validate::Validated};
use crate::{
    autoscaler::{self, Look, Scene},
    context::Context,
    events::Note,
};

/// Looks, if the spec asks for it.
///
/// # Errors
/// When the API server does not answer.
pub async fn look(
    context: &Context,
    deployment: &ModelDeployment,
    wanted: &Validated,
    observed: &Observed,
    target: &str,
) -> Result<Option<Look>, ReconcileError> {
    let Some(terms) = &wanted.autoscaling else {
        context.autoscaler.forget(&wanted.namespace, &wanted.name);
        return Ok(None);
    };
    let mut current = wanted.budget.desired;
    if !context.autoscaler.expects(deployment, current) {
        // somebody has set it, or the watch is behind
        let live = autoscaler::replicas(&context.client, deployment).await;
        current = live.map_err(ReconcileError::Scale)?.unwrap_or(current);
        debug!(deployment = wanted.name, current, "spec.replicas is not what it was set to");
    }
    let groups = &observed.groups;
    let scene = Scene { deployment, current, groups, target, now: observed.now };
    Ok(Some(context.autoscaler.look(terms, &context.gateways, &scene)))
}

/// Does what was decided, and says what to tell people.
///
/// # Errors
/// When the API server does not take it.
pub async fn act(
    context: &Context,
    deployment: &ModelDeployment,
    look: Look,
) -> Result<Option<Note>, ReconcileError> {
    let Some(scale) = look.scale else { return Ok(None) };
    let done = autoscaler::scale(&context.client, deployment, scale, &look.status.message).await;
    if done.is_err() {
        context.autoscaler.failed(deployment);
    }
    done.map(Some).map_err(ReconcileError::Scale)
}

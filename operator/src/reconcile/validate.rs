//! The raw spec becomes a checked one. Nothing after this step sees the raw spec.
//!
//! Admission refuses nearly all of this already (schema and CEL rules). It is checked again because objects may have
//! been stored under an older definition.
use belay_crds::{ModelDeployment, RolloutStrategy};
use k8s_openapi::apimachinery::pkg::{apis::meta::v1::OwnerReference, util::intstr::IntOrString};
use kube::{Resource as _, ResourceExt as _};
use thiserror::Error;

use crate::{revision::Content, rollout::Budget};

/// A spec that makes sense.
#[derive(Clone, Debug)]
pub struct Validated {
    /// Name of the ModelDeployment.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What its children refer to.
    pub owner: OwnerReference,
    /// Which spec this is.
    pub generation: Option<i64>,
    /// How many groups, and the budget of a rollout.
    pub budget: Budget,
    /// How long requests get to finish, in seconds.
    pub drain_seconds: u32,
    /// The part of the spec that reaches pods.
    pub content: Content,
}

/// What is wrong with a spec.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// Path of the field.
    pub field: &'static str,
    /// What is wrong.
    pub message: String,
}

fn invalid<T>(field: &'static str, message: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { field, message: message.into() })
}

/// Checks a spec.
///
/// # Errors
/// The first field that makes no sense.
pub fn validate(deployment: &ModelDeployment) -> Result<Validated, Invalid> {
    let spec = &deployment.spec;
    let name = deployment.name_any();
    if name.len() > belay_crds::MAX_NAME_LENGTH || name.contains('.') {
        return invalid("metadata.name", "must be at most 45 characters without '.'");
    }
    let Some(owner) = deployment.controller_owner_ref(&()) else {
        return invalid("metadata.uid", "is missing");
    };
    // so that a foreground deletion waits until the last child is gone
    let owner = OwnerReference { block_owner_deletion: Some(true), ..owner };
    let source = &spec.model.source;
    let sources =
        [source.persistent_volume_claim.is_some(), source.host_path.is_some(), source.image.is_some()];
    if sources.into_iter().filter(|&set| set).count() != 1 {
        return invalid(
            "spec.model.source",
            "exactly one of persistentVolumeClaim, hostPath and image must be set",
        );
    }
    if spec.group.workers < 1 || spec.group.devices_per_worker < 1 {
        return invalid("spec.group", "workers and devicesPerWorker must be at least 1");
    }
    let Ok(desired) = u32::try_from(spec.replicas) else {
        return invalid("spec.replicas", "must not be negative");
    };
    let Ok(drain_seconds) = u32::try_from(spec.rollout.drain_seconds) else {
        return invalid("spec.rollout.drainSeconds", "must not be negative");
    };
    let RolloutStrategy::RollingUpdate = spec.rollout.strategy;
    let surge = groups(&spec.rollout.max_surge, desired, Rounding::Up, "spec.rollout.maxSurge")?;
    let mut unavailable =
        groups(&spec.rollout.max_unavailable, desired, Rounding::Down, "spec.rollout.maxUnavailable")?;
    if surge == 0 && unavailable == 0 {
        if is_zero(&spec.rollout.max_surge) && is_zero(&spec.rollout.max_unavailable) {
            return invalid("spec.rollout", "maxSurge and maxUnavailable must not both be 0");
        }
        unavailable = 1; // percentages of few groups: something must move
    }
    Ok(Validated {
        namespace: deployment.namespace().unwrap_or_default(),
        owner,
        generation: deployment.metadata.generation,
        budget: Budget { desired, surge, unavailable },
        drain_seconds,
        content: Content::new(&name, &spec.model, &spec.group),
        name,
    })
}

#[derive(Clone, Copy)]
enum Rounding {
    Up,
    Down,
}

/// A count of groups, or a percentage of the wanted ones.
fn groups(
    value: &IntOrString,
    desired: u32,
    rounding: Rounding,
    field: &'static str,
) -> Result<u32, Invalid> {
    match value {
        IntOrString::Int(count) => match u32::try_from(*count) {
            Ok(count) => Ok(count),
            Err(_) => invalid(field, "must not be negative"),
        },
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|number| number.parse::<u64>().ok());
            let Some(percent) = percent.filter(|percent| *percent <= 100) else {
                return invalid(field, format!("\"{text}\" is not a percentage from 0% to 100%"));
            };
            let hundredths = percent * u64::from(desired);
            let count = match rounding {
                Rounding::Up => hundredths.div_ceil(100),
                Rounding::Down => hundredths / 100,
            };
            Ok(u32::try_from(count).unwrap_or(u32::MAX))
        }
    }
}

fn is_zero(value: &IntOrString) -> bool {
    match value {
        IntOrString::Int(count) => *count == 0,
        IntOrString::String(text) => text == "0%",
    }
}

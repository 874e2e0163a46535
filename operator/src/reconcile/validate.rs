//! The raw spec becomes a checked one. Nothing after this step sees the raw spec.
//!
//! Admission refuses nearly all of this already (schema and CEL rules). It is checked again because objects may have
//! been stored under an older definition.
use belay_crds::{
    AnalysisPolicy, AnalysisSpec, AscendChip, AscendWeights, BlueGreenSpec, CacheFormat, CanarySpec, Device,
    DeviceFaultsSpec, GroupSpec, ModelDeployment, Promotion, RebalancePolicy, RolloutProgress,
    RolloutStrategy, Scheduler, labels,
};
use k8s_openapi::apimachinery::pkg::{apis::meta::v1::OwnerReference, util::intstr::IntOrString};
use kube::{Resource as _, ResourceExt as _};
use thiserror::Error;

use super::build;
use crate::{
    placement::Copies,
    revision::Content,
    rollout::{Budget, Rules, Strategy},
    scaling::{Terms, TermsError},
};

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
    /// How a changed spec reaches the groups.
    pub rules: Rules,
    /// What is looked at before a canary or preview gets more.
    pub analysis: Option<AnalysisSpec>,
    /// How long requests get to finish, in seconds.
    pub drain_seconds: u32,
    /// Copies of experts, and when they move.
    pub experts: Experts,
    /// What is done about faults of devices.
    pub device_faults: DeviceFaultsSpec,
    /// How the number of groups follows the load, if it does.
    pub autoscaling: Option<Terms>,
    /// The part of the spec that reaches pods.
    pub content: Content,
}

/// `spec.experts`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Copies that are asked for.
    pub copies: Copies,
    /// When load is spread anew.
    pub policy: RebalancePolicy,
    /// Imbalance from which a move is considered, in percent.
    pub threshold_percent: u32,
    /// Between two rebalances of a group.
    pub min_interval_seconds: u32,
    /// Value of the annotation that asks for a rebalance.
    pub asked: Option<String>,
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
    devices(&spec.group)?;
    if spec.device_faults.is_some() && spec.group.device != Device::Ascend {
        return invalid("spec.deviceFaults", "goes with spec.group.device Ascend only");
    }
    let Ok(desired) = u32::try_from(spec.replicas) else {
        return invalid("spec.replicas", "must not be negative");
    };
    let Ok(drain_seconds) = u32::try_from(spec.rollout.drain_seconds) else {
        return invalid("spec.rollout.drainSeconds", "must not be negative");
    };
    let experts = experts(deployment)?;
    let rules = rules(deployment)?;
    let autoscaling = spec.autoscaling.as_ref().map(Terms::new).transpose();
    let autoscaling = autoscaling.map_err(|TermsError { field, message }| Invalid { field, message })?;
    let surge = groups(&spec.rollout.max_surge, desired, Rounding::Up, "spec.rollout.maxSurge")?;
    let mut unavailable =
        groups(&spec.rollout.max_unavailable, desired, Rounding::Down, "spec.rollout.maxUnavailable")?;
    if surge == 0 && matches!(rules.strategy, Strategy::Canary { .. }) && desired > 0 {
        return invalid("spec.rollout.maxSurge", "must not be 0 with strategy Canary");
    }
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
        rules,
        analysis: spec.rollout.analysis.clone(),
        drain_seconds,
        experts,
        device_faults: spec.device_faults.clone().unwrap_or_default(),
        autoscaling,
        content: Content::new(&name, &spec.model, &spec.group),
        name,
    })
}

/// Whether the fields about devices go together.
fn devices(group: &GroupSpec) -> Result<(), Invalid> {
    if (group.device == Device::Ascend) != group.ascend.is_some() {
        return invalid("spec.group.ascend", "goes with device Ascend, which needs it for the chip");
    }
    if group.device_resource.is_some() && group.device != Device::Ascend {
        return invalid("spec.group.deviceResource", "goes with device Ascend only");
    }
    let Some(spec) = &group.ascend else { return Ok(()) };
    if group.device_resource.is_some() && spec.resource_claim_template_name.is_some() {
        return invalid("spec.group.deviceResource", "must not be set with ascend.resourceClaimTemplateName");
    }
    if spec.weights == Some(AscendWeights::W4A8) && spec.chip.is_950() {
        return invalid("spec.group.ascend.weights", "W4A8 goes with A2 and A3 only");
    }
    if group.cache.as_ref().is_some_and(|cache| cache.format == Some(CacheFormat::FP8)) {
        return invalid("spec.group.cache.format", "must be F32 or BF16 with device Ascend");
    }
    if spec.chip == AscendChip::A3 && group.devices_per_worker != 1 && group.devices_per_worker % 2 != 0 {
        return invalid("spec.group.devicesPerWorker", "must be 1 or even with ascend.chip A3");
    }
    let scheduling = spec.scheduling.as_ref().filter(|scheduling| scheduling.scheduler == Scheduler::Volcano);
    if scheduling.is_some() && spec.resource_claim_template_name.is_some() {
        let field = "spec.group.ascend.resourceClaimTemplateName";
        return invalid(field, "does not go with scheduler Volcano");
    }
    if scheduling.is_some_and(|scheduling| scheduling.policy.is_none()) && spec.chip.is_950() {
        return invalid("spec.group.ascend.scheduling.policy", "must be set for 950 with scheduler Volcano");
    }
    let block = spec.scheduling.as_ref().and_then(|scheduling| scheduling.super_pod_devices);
    let devices = group.workers.saturating_mul(group.devices_per_worker);
    if block.is_some_and(|block| block < 1 || devices % block != 0 || block % group.devices_per_worker != 0) {
        return invalid(
            "spec.group.ascend.scheduling.superPodDevices",
            "must be a multiple of devicesPerWorker, and divide workers * devicesPerWorker",
        );
    }
    let own = group.template.resources.as_ref();
    let lists = own.into_iter().flat_map(|own| [own.requests.as_ref(), own.limits.as_ref()]).flatten();
    if let Some(resource) = build::resource(group, spec)
        && lists.into_iter().any(|list| list.contains_key(resource))
    {
        let message = format!("must not have {resource}: it is devicesPerWorker");
        return invalid("spec.group.template.resources", message);
    }
    Ok(())
}

fn rules(deployment: &ModelDeployment) -> Result<Rules, Invalid> {
    let rollout = &deployment.spec.rollout;
    let only_with = |field, is_set: bool, strategies: &[RolloutStrategy]| {
        if is_set && !strategies.contains(&rollout.strategy) {
            return invalid(field, format!("does not go with strategy {:?}", rollout.strategy));
        }
        Ok(())
    };
    use RolloutStrategy::{BlueGreen, Canary, RollingUpdate};
    only_with("spec.rollout.canary", rollout.canary.is_some(), &[Canary])?;
    only_with("spec.rollout.blueGreen", rollout.blue_green.is_some(), &[BlueGreen])?;
    only_with("spec.rollout.analysis", rollout.analysis.is_some(), &[Canary, BlueGreen])?;
    only_with("spec.rollout.partition", rollout.partition != 0, &[RollingUpdate])?;
    let strategy = match rollout.strategy {
        RollingUpdate => match u32::try_from(rollout.partition) {
            Ok(partition) => Strategy::RollingUpdate { partition },
            Err(_) => return invalid("spec.rollout.partition", "must not be negative"),
        },
        Canary => Strategy::Canary { steps: steps(&rollout.canary.clone().unwrap_or_default())? },
        BlueGreen => {
            let BlueGreenSpec { promotion, preview_seconds, keep_old_seconds } =
                rollout.blue_green.clone().unwrap_or_default();
            Strategy::BlueGreen {
                manual: promotion == Promotion::Manual,
                preview_seconds: i64::from(preview_seconds),
                keep_seconds: i64::from(keep_old_seconds),
            }
        }
    };
    let rolls_back =
        rollout.analysis.as_ref().is_some_and(|analysis| analysis.policy == AnalysisPolicy::Rollback);
    let deadline = i64::from(rollout.progress_deadline_seconds);
    Ok(Rules {
        strategy,
        paused: rollout.progress == RolloutProgress::Paused,
        deadline_seconds: (deadline > 0).then_some(deadline),
        rolls_back,
        promote: deployment.annotations().get(labels::PROMOTE).cloned(),
    })
}

/// Percent and seconds of each step.
fn steps(canary: &CanarySpec) -> Result<Vec<(u32, i64)>, Invalid> {
    let field = "spec.rollout.canary.steps";
    let mut steps: Vec<(u32, i64)> = vec![];
    for step in &canary.steps {
        match u32::try_from(step.weight_percent) {
            Ok(percent @ 1..=100) if steps.last().is_none_or(|last| last.0 < percent) => {
                steps.push((percent, i64::from(step.hold_seconds)));
            }
            Ok(1..=100) => return invalid(field, "weightPercent must grow from step to step"),
            _ => return invalid(field, "weightPercent must be from 1 to 100"),
        }
    }
    if steps.is_empty() { invalid(field, "must not be empty") } else { Ok(steps) }
}

fn experts(deployment: &ModelDeployment) -> Result<Experts, Invalid> {
    let spec = &deployment.spec.experts;
    let rebalance = &spec.rebalance;
    let number = |field, value: i32, least: i32| match u32::try_from(value) {
        Ok(number) if value >= least => Ok(number),
        _ => invalid(field, format!("must be at least {least}")),
    };
    if spec.min_copies > deployment.spec.group.workers {
        return invalid("spec.experts.minCopies", "must be at most spec.group.workers");
    }
    Ok(Experts {
        copies: Copies {
            min: number("spec.experts.minCopies", spec.min_copies, 1)?,
            redundant: number("spec.experts.redundant", spec.redundant, 0)?,
        },
        policy: rebalance.policy,
        threshold_percent: number(
            "spec.experts.rebalance.thresholdPercent",
            rebalance.threshold_percent,
            101,
        )?,
        min_interval_seconds: number(
            "spec.experts.rebalance.minIntervalSeconds",
            rebalance.min_interval_seconds,
            1,
        )?,
        asked: deployment.annotations().get(labels::REBALANCE).cloned(),
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

//! What follows from faults for one pod: pure.
use std::collections::BTreeSet;

use belay_crds::{DeviceFaultsSpec, FaultAction, labels};
use belay_proto::admin::{Phase, WorkerStatus};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt as _;

use super::report::{Fault, Level};

/// Seconds for which requests that must be computed again are nothing but that: workers do it by themselves.
const PASSING_SECONDS: i64 = 60;

/// Reason of a worker that failed because a device did.
pub const DEVICE_LOST: &str = "DeviceLost";

/// Faults that a message names; more are counted.
const LISTED: usize = 3;

/// Annotations that say which devices a pod has; the first that is there counts.
const DEVICES: [&str; 3] = [labels::REAL_DEVICES, "huawei.com/Ascend910", "huawei.com/npu"];

/// Devices of a pod, by their numbers in the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// These.
    Known(BTreeSet<u32>),
    /// Nothing tells: the pod may have any of the node's.
    Unknown,
}

impl Devices {
    /// By the annotations that the device plugin or the scheduler have written. `resource`: the one that the deployment asks
    /// for, whose name is that of an annotation, too.
    pub fn of(pod: &Pod, resource: Option<&str>) -> Self {
        let mut keys = DEVICES.into_iter().chain(resource);
        let Some(names) = keys.find_map(|key| pod.annotations().get(key)) else { return Self::Unknown };
        let numbers: Option<BTreeSet<u32>> = names.split(',').map(number).collect();
        numbers.map_or(Self::Unknown, Self::Known)
    }

    /// Whether the pod has, or may have, the device of a fault.
    fn may_have(&self, fault: &Fault) -> bool {
        match (self, fault.device.as_deref().map(number)) {
            // a name without a number is nobody's; of the whole node, everybody's
            (_, Some(None)) => false,
            (_, None) | (Self::Unknown, _) => true,
            (Self::Known(numbers), Some(Some(number))) => numbers.contains(&number),
        }
    }
}

/// A name ends with the device's number in the node, whatever its beginning was changed to.
fn number(name: &str) -> Option<u32> {
    name.trim().rsplit_once('-')?.1.parse().ok()
}

/// Faults of a pod's devices, and what is done about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is done; [`FaultAction::Ignore`]: it is only told.
    pub action: FaultAction,
    /// Devices, codes and levels.
    pub message: String,
}

/// What a deployment wants done about a level.
pub fn action(policy: &DeviceFaultsSpec, level: &Level) -> FaultAction {
    use FaultAction::{Drain, Ignore, Replace};
    let (wish, default) = match level {
        Level::NotHandleFault => return Ignore,
        Level::SubHealthFault => (policy.sub_health_fault, Ignore),
        Level::RestartRequest => (policy.restart_request, Drain),
        Level::RestartBusiness => (policy.restart_business, Replace),
        Level::FreeRestartNpu => (policy.free_restart_npu, Drain),
        Level::RestartNpu => (policy.restart_npu, Replace),
        Level::PreSeparateNpu => (policy.pre_separate_npu, Drain),
        Level::SeparateNpu => (policy.separate_npu, Replace),
        Level::ManuallySeparateNpu => (policy.manually_separate_npu, Drain),
        // off the device as soon as that costs nobody an answer: neither a grave fault nor a harmless one is much the worse for it
        Level::Other(_) => (policy.other, Drain),
    };
    wish.unwrap_or(default)
}

/// What follows if a worker says itself that it has lost a device: it holds no experts and serves nobody any more.
pub fn lost(status: &WorkerStatus) -> Option<Finding> {
    let is_lost = status.phase() == Phase::Failed && status.reason == DEVICE_LOST;
    let message = format!("the worker has lost a device: {}: it is made anew", status.message);
    is_lost.then_some(Finding { action: FaultAction::Replace, message })
}

/// What follows for a pod that was `created` then and has these `devices`; `None`: nothing, and nothing is told.
///
/// - Where it is not known which devices the pod has, it may be another pod's: it is drained at most.
/// - A fault that is older than the pod is only told, and only of a device that the pod has: who gave it the device knew of the
///   fault, and would do so again.
pub fn judge(
    faults: &[(Fault, Timestamp)],
    policy: &DeviceFaultsSpec,
    devices: &Devices,
    created: Timestamp,
    now: Timestamp,
) -> Option<Finding> {
    let most = if *devices == Devices::Unknown { FaultAction::Drain } else { FaultAction::Replace };
    let mut found: Vec<(FaultAction, String)> = vec![];
    for (fault, since) in faults.iter().filter(|(fault, _)| devices.may_have(fault)) {
        let lasts = now.as_second() - since.as_second();
        let passes = fault.level == Level::RestartRequest && lasts < PASSING_SECONDS;
        let wish = action(policy, &fault.level).min(most);
        let is_news = *since > created;
        if wish == FaultAction::Ignore || passes || (!is_news && *devices == Devices::Unknown) {
            continue;
        }
        let device = fault.device.as_deref().unwrap_or("all devices of the node");
        let words = format!("{device}: code {}, level {}", fault.code, fault.level.as_str());
        let action = if is_news { wish } else { FaultAction::Ignore };
        let words = if is_news { words } else { format!("{words}, older than the pod") };
        found.push((action, words));
    }
    let action = found.iter().map(|(action, _)| *action).max()?;
    // what is acted on first
    found.sort_by(|one, other| other.cmp(one));
    let mut parts: Vec<String> = found.iter().take(LISTED).map(|(_, words)| words.clone()).collect();
    if found.len() > LISTED {
        parts.push(format!("and {} more", found.len() - LISTED));
    }
    let what = match action {
        FaultAction::Ignore => "nothing is done",
        FaultAction::Drain => "the worker is drained and made anew",
        FaultAction::Replace => "the worker is made anew",
    };
    Some(Finding { action, message: format!("{}: {what}", parts.join("; ")) })
}

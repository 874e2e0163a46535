//! `spec.group.ascend` and `spec.deviceFaults`.
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How worker pods get at Ascend NPUs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!has(self.weights) || self.weights != 'W4A8' || self.chip in ['A2', 'A3']")
        .message("ascend.weights W4A8 goes with A2 and A3 only: 950 has no INT4").field_path(".weights"),
    validation = Rule::new("!has(self.resourceClaimTemplateName) || !has(self.scheduling) || self.scheduling.scheduler != 'Volcano'")
        .message("ascend.resourceClaimTemplateName does not go with scheduler Volcano: its Ascend plugin counts extended resources").field_path(".resourceClaimTemplateName"),
    validation = Rule::new("!has(self.scheduling) || self.scheduling.scheduler != 'Volcano' || has(self.scheduling.policy) || self.chip in ['A2', 'A3']")
        .message("ascend.scheduling.policy must be set for 950 with scheduler Volcano: how its devices are joined differs from server to server").field_path(".scheduling.policy")
)]
pub struct AscendSpec {
    /// Generation of the NPUs. It decides the default of group.deviceResource, which labels nodes must have, and what is
    /// mounted; the worker refuses to start on another one.
    pub chip: AscendChip,

    /// What the linears of the model are multiplied in. Default: BF16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<AscendWeights>,

    /// How the driver gets into the containers. Default: Ascend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<AscendRuntime>,

    /// Name of a ResourceClaimTemplate in the namespace of the ModelDeployment that asks for devicesPerWorker devices,
    /// for clusters with a driver for dynamic resource allocation. No extended resource is asked for then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub resource_claim_template_name: Option<String>,

    /// Network of the pods. Default: Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<PodNetwork>,

    /// Size of /dev/shm, as a whole number with an optional suffix such as Gi. What is used of it counts against the
    /// memory limit of template.resources. Default: 16Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,17}(k|M|G|T|Ki|Mi|Gi|Ti)?$"))]
    pub shared_memory: Option<String>,

    /// Group id on the nodes that owns the device files: that of the user whom the driver was installed for. The worker
    /// is a member of it. Default: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2147483647))]
    pub device_group_id: Option<i64>,

    /// Who finds nodes for the pods of a group. Default: the cluster's own scheduler, pod by pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduling: Option<AscendScheduling>,
}

/// Generations of Ascend NPUs.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AscendChip {
    /// Ascend 910B: eight devices in a node.
    A2,
    /// Ascend 910C: a card is two devices, each with a rank of its own. A worker has one device, or whole cards.
    A3,
    /// Ascend 950PR.
    Ascend950PR,
    /// Ascend 950DT.
    Ascend950DT,
}

impl AscendChip {
    /// The value of the worker's `BELAY_ASCEND_CHIP`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A2 => "A2",
            Self::A3 => "A3",
            Self::Ascend950PR => "Ascend950PR",
            Self::Ascend950DT => "Ascend950DT",
        }
    }

    /// The extended resource under which Ascend's device plugin offers it.
    pub fn resource(self) -> &'static str {
        if self.is_950() { "huawei.com/npu" } else { "huawei.com/Ascend910" }
    }

    /// Whether it is of the 950 generation.
    pub fn is_950(self) -> bool {
        matches!(self, Self::Ascend950PR | Self::Ascend950DT)
    }
}

/// What linears are multiplied in. Norms, routing, the indexer, compression and the head are f32 in any case.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AscendWeights {
    /// bf16. Published FP8 and MXFP4 weights lose nothing; they take twice and four times their memory.
    BF16,
    /// INT8 weights with a scale for each output channel, activations in INT8 with a scale for each token.
    W8A8,
    /// As W8A8, but routed experts have INT4 weights. On A2 and A3.
    W4A8,
}

impl AscendWeights {
    /// The value of the worker's `BELAY_ASCEND_PRODUCTS`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BF16 => "bf16",
            Self::W8A8 => "int8",
            Self::W4A8 => "int4-experts",
        }
    }
}

/// How the driver gets into a container.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AscendRuntime {
    /// The container runtime of the nodes is Ascend's: it mounts the driver and the device files.
    #[default]
    Ascend,
    /// The device plugin hands the device files to the kubelet, and the pod mounts the driver from the node.
    Mounts,
}

/// Network of worker pods.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNetwork {
    /// Each pod has an address of its own.
    #[default]
    Pod,
    /// The node's: at most one worker on a node then, since its ports are fixed.
    Host,
}

/// Who finds nodes for the pods of a group.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("self.scheduler == 'Volcano' || (!has(self.queue) && !has(self.policy) && !has(self.superPodDevices))")
        .message("queue, policy and superPodDevices go with scheduler Volcano only").field_path(".scheduler")
)]
pub struct AscendScheduling {
    /// Gang and Volcano: all pods of a group get nodes together, or none does.
    #[serde(default)]
    pub scheduler: Scheduler,

    /// Volcano's queue. Default: default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub queue: Option<String>,

    /// How devices are picked: the annotation huawei.com/schedule_policy of the PodGroup. Default: chip8-node8 for A2,
    /// chip2-node16 for A3 (chip2-node16-sp for groups of several workers); 950 has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$"))]
    pub policy: Option<String>,

    /// Devices that must be in one superpod: the annotation sp-block of the PodGroup. Whole workers, of which the group is
    /// a multiple. Default: all devices of the group, for A3 with several workers; else none must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub super_pod_devices: Option<i32>,
}

/// Schedulers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    /// The cluster's own, for each pod by itself.
    #[default]
    Default,
    /// The cluster's own, for all pods of a group together: Kubernetes 1.37 or newer with the feature gate GenericWorkload.
    Gang,
    /// Volcano with Ascend's plugin.
    Volcano,
}

/// What is done when the device plugin of a node reports a fault of a device that a worker uses. The levels are those of the
/// report. NotHandleFault is never acted on. No part of a revision: a change moves no pod.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeviceFaultsSpec {
    /// SubHealthFault: slower than it should be. Default: Ignore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_health_fault: Option<FaultAction>,

    /// RestartRequest: requests under way must be computed again, which workers do by themselves; acted on once it lasts for
    /// a minute. Default: Drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_request: Option<FaultAction>,

    /// RestartBusiness: the process must be started again. Default: Replace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_business: Option<FaultAction>,

    /// FreeRestartNPU: the device is reset once nobody uses it. Default: Drain.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "freeRestartNPU")]
    pub free_restart_npu: Option<FaultAction>,

    /// RestartNPU: the device is reset at once. Default: Replace.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "restartNPU")]
    pub restart_npu: Option<FaultAction>,

    /// PreSeparateNPU: nothing new gets the device. Default: Drain.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "preSeparateNPU")]
    pub pre_separate_npu: Option<FaultAction>,

    /// SeparateNPU: the device is taken out. Default: Replace.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "separateNPU")]
    pub separate_npu: Option<FaultAction>,

    /// ManuallySeparateNPU: the device had too many faults, and is out until a person brings it back. Default: Drain.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "manuallySeparateNPU")]
    pub manually_separate_npu: Option<FaultAction>,

    /// Any other level, and devices that are called unhealthy without one. Default: Drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<FaultAction>,
}

/// What is done about a worker with a faulty device, the least first.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultAction {
    /// Nothing.
    Ignore,
    /// Its experts move to other workers, as from a node that is being emptied; then its pod is made anew. It never takes
    /// the last live copy of an expert.
    Drain,
    /// Its pod is made anew at once; the other workers take over its experts as after a loss.
    Replace,
}

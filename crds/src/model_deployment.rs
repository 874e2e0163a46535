//! The custom resource.
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{
    AutoscalingSpec, DeviceFaultsSpec, ExpertsSpec, GroupSpec, ModelDeploymentStatus, ModelSpec, RolloutSpec,
};

/// Most characters of a ModelDeployment's name. A pod is called
/// `<name>-<revision: 8>-<ordinal: up to 4>-<worker: up to 3>` and that is also its hostname, of at most 63.
pub const MAX_NAME_LENGTH: usize = 45;

/// Most groups of one ModelDeployment.
pub const MAX_REPLICAS: i32 = 1000;

/// What to serve, and how.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "serving.belay.dev",
    version = "v1alpha1",
    kind = "ModelDeployment",
    plural = "modeldeployments",
    singular = "modeldeployment",
    shortname = "mdep",
    category = "belay",
    namespaced,
    cel,
    derive = "PartialEq",
    doc = "A DeepSeek-V4-class model, served by groups of worker pods. Each group is one full copy of the model; its experts are spread over the ranks of its workers.",
    status = "ModelDeploymentStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "integer",
        json_path = ".status.readyReplicas",
        description = "Groups that take requests."
    ),
    printcolumn(
        name = "Desired",
        type_ = "integer",
        json_path = ".spec.replicas",
        description = "Groups that are wanted."
    ),
    printcolumn(
        name = "Updated",
        type_ = "integer",
        json_path = ".status.updatedReplicas",
        description = "Groups of the newest revision."
    ),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".status.updatedRevision",
        description = "The newest revision."
    ),
    printcolumn(
        name = "Experts",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='ExpertsCovered')].status",
        description = "Whether every expert has a live copy."
    ),
    printcolumn(
        name = "Copies",
        type_ = "integer",
        json_path = ".status.experts.minLiveCopies",
        description = "Live copies of the expert that has the fewest, over all groups."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 45 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be at most 45 characters: lower-case letters, digits and '-', starting with a letter (pods and Services are named after it)"),
    validation = Rule::new("self.spec.experts.minCopies <= self.spec.group.workers")
        .message("experts.minCopies must be at most group.workers: each copy of an expert is on another worker").field_path(".spec.experts.minCopies"),
    validation = Rule::new("!has(self.spec.deviceFaults) || self.spec.group.device == 'Ascend'")
        .message("deviceFaults goes with group.device Ascend only").field_path(".spec.deviceFaults")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentSpec {
    /// The model: its name for clients and where its checkpoint is.
    pub model: ModelSpec,

    /// How many groups serve the model. A group is one full copy of the model, never a single pod. This is
    /// what `kubectl scale` and autoscalers set. With spec.autoscaling, leave it out: it is set by the operator.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,

    /// What one group is made of.
    pub group: GroupSpec,

    /// Copies of the experts, and when they move.
    #[serde(default)]
    pub experts: ExpertsSpec,

    /// What is done about faults of devices that their nodes report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_faults: Option<DeviceFaultsSpec>,

    /// How a changed spec reaches the groups that run.
    #[serde(default)]
    pub rollout: RolloutSpec,

    /// How spec.replicas follows what clients ask for. Absent: it does not; whoever sets it (a person, a
    /// HorizontalPodAutoscaler, KEDA) is not contradicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingSpec>,
}

fn default_replicas() -> i32 {
    1
}

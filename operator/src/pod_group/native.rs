//! Kubernetes' own PodGroup, as far as the operator writes it: 1.37 and later, with the feature gate GenericWorkload.
use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// Pods that get nodes together.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "scheduling.k8s.io",
    version = "v1beta1",
    kind = "PodGroup",
    namespaced,
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct PodGroupSpec {
    /// How.
    pub scheduling_policy: SchedulingPolicy,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
}

/// How pods are scheduled.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct SchedulingPolicy {
    /// All or none.
    pub gang: Gang,
}

/// All or none.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Gang {
    /// Pods that must find nodes, or have them, before any of the others gets one.
    pub min_count: i32,
}

//! `spec.group`.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, EnvVar, LocalObjectReference, ResourceRequirements, Toleration};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{CacheSpec, FabricSpec, PullPolicy, SpeculationSpec};

/// Environment variables of the worker that the operator sets, and that a template therefore must not.
pub const RESERVED_ENV: [&str; 21] = [
    "BELAY_MODEL_DIR",
    "BELAY_MODEL_NAME",
    "BELAY_MAX_CONTEXT_TOKENS",
    "BELAY_DEVICE",
    "BELAY_DEVICES_PER_WORKER",
    "BELAY_GROUP",
    "BELAY_REVISION",
    "BELAY_WORKER_INDEX",
    "BELAY_GROUP_WORKERS",
    "BELAY_POD_UID",
    "BELAY_PLACEMENT_FILE",
    "BELAY_DRAIN_SECONDS",
    "BELAY_KV_MEMORY",
    "BELAY_KV_FORMAT",
    "BELAY_PREFIX_CACHE",
    "BELAY_DRAFT_TOKENS",
    "BELAY_CHAT_ENCODING",
    "BELAY_DEFAULT_THINKING",
    "BELAY_EXPERT_MEMORY",
    "BELAY_FABRIC_FORMAT",
    "BELAY_FABRIC_KEY_FILE",
];

/// What one group is made of: one full copy of the model.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("self.workers * self.devicesPerWorker <= 1024")
        .message("workers * devicesPerWorker is the number of ranks of a group and must be at most 1024")
)]
pub struct GroupSpec {
    /// Worker pods in a group. All of them take requests; the experts are spread over them.
    #[serde(default = "default_one")]
    #[schemars(range(min = 1, max = 256))]
    pub workers: i32,

    /// What the workers compute on.
    pub device: Device,

    /// Ranks in a worker pod. A rank owns a share of the experts: on CPU it is a set of threads.
    #[serde(default = "default_one")]
    #[schemars(range(min = 1, max = 64))]
    pub devices_per_worker: i32,

    /// Memory of requests under way and of prompts that were seen before, in each worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSpec>,

    /// Guessing of tokens that are then verified together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculation: Option<SpeculationSpec>,

    /// Bytes that the ranks of a worker hold of experts together at most, as a whole number with an optional suffix such
    /// as Gi. While copies move, old and new ones count. Default: the memory limit of template.resources, less what
    /// every worker holds besides experts; without a limit, whatever they need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,17}(k|M|G|T|Ki|Mi|Gi|Ti)?$"))]
    pub expert_memory: Option<String>,

    /// What passes between the workers of a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabric: Option<FabricSpec>,

    /// What the worker pods look like.
    #[serde(default)]
    pub template: PodTemplate,
}

/// What workers compute on.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processors of the node.
    CPU,
}

impl Device {
    /// The value of the worker's `BELAY_DEVICE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CPU => "CPU",
        }
    }
}

/// What the worker pods look like.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!has(self.env) || self.env.all(e, !(e.name in ['BELAY_MODEL_DIR', 'BELAY_MODEL_NAME', 'BELAY_MAX_CONTEXT_TOKENS', 'BELAY_DEVICE', 'BELAY_DEVICES_PER_WORKER', 'BELAY_GROUP', 'BELAY_REVISION', 'BELAY_WORKER_INDEX', 'BELAY_GROUP_WORKERS', 'BELAY_POD_UID', 'BELAY_PLACEMENT_FILE', 'BELAY_DRAIN_SECONDS', 'BELAY_KV_MEMORY', 'BELAY_KV_FORMAT', 'BELAY_PREFIX_CACHE', 'BELAY_DRAFT_TOKENS', 'BELAY_CHAT_ENCODING', 'BELAY_DEFAULT_THINKING', 'BELAY_EXPERT_MEMORY', 'BELAY_FABRIC_FORMAT', 'BELAY_FABRIC_KEY_FILE']))")
        .message("env must not set a variable that the operator sets (BELAY_MODEL_*, BELAY_MAX_CONTEXT_TOKENS, BELAY_DEVICE*, BELAY_GROUP*, BELAY_REVISION, BELAY_WORKER_INDEX, BELAY_POD_UID, BELAY_PLACEMENT_FILE, BELAY_DRAIN_SECONDS, BELAY_KV_*, BELAY_PREFIX_CACHE, BELAY_DRAFT_TOKENS, BELAY_CHAT_ENCODING, BELAY_DEFAULT_THINKING, BELAY_EXPERT_MEMORY, BELAY_FABRIC_FORMAT, BELAY_FABRIC_KEY_FILE)").field_path(".env")
)]
pub struct PodTemplate {
    /// Image of the worker. Default: the image that the operator was configured with when the revision was
    /// made; a later operator upgrade does not change it for a revision that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,

    /// When the nodes pull the worker's image. Default: Always for the tag "latest", else IfNotPresent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,

    /// Secrets with credentials to pull images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<ImagePullSecret>,

    /// Resources of the worker container. Default on CPU: a request of 100m CPU and 256Mi memory, no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,

    /// Scheduling constraints. Default: workers of a group prefer different nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,

    /// Service account of the pods. Its token is not mounted: a worker never talks to the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,

    /// More environment variables for the worker. Those that the operator sets itself are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,
}

/// Names a Secret with registry credentials in the namespace of the ModelDeployment.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ImagePullSecret {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

impl From<&ImagePullSecret> for LocalObjectReference {
    fn from(secret: &ImagePullSecret) -> Self {
        Self { name: secret.name.clone() }
    }
}

fn default_one() -> i32 {
    1
}

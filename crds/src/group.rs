//! `spec.group`.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, EnvVar, LocalObjectReference, ResourceRequirements, Toleration};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AscendSpec, CacheSpec, FabricSpec, PullPolicy, SpeculationSpec};

/// Environment variables of the worker that the operator sets, and that a template therefore must not.
pub const RESERVED_ENV: [&str; 23] = [
    "BELAY_MODEL_DIR",
    "BELAY_MODEL_NAME",
    "BELAY_MAX_CONTEXT_TOKENS",
    "BELAY_DEVICE",
    "BELAY_DEVICES_PER_WORKER",
    "BELAY_ASCEND_CHIP",
    "BELAY_ASCEND_PRODUCTS",
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
        .message("workers * devicesPerWorker is the number of ranks of a group and must be at most 1024"),
    validation = Rule::new("(self.device == 'Ascend') == has(self.ascend)")
        .message("ascend goes with device Ascend, and device Ascend needs ascend.chip").field_path(".ascend"),
    validation = Rule::new("!has(self.deviceResource) || self.device == 'Ascend'")
        .message("deviceResource goes with device Ascend only").field_path(".deviceResource"),
    validation = Rule::new("!has(self.deviceResource) || !has(self.ascend) || !has(self.ascend.resourceClaimTemplateName)")
        .message("deviceResource and ascend.resourceClaimTemplateName exclude each other: devices are asked for in one way").field_path(".deviceResource"),
    validation = Rule::new("self.device != 'Ascend' || !has(self.cache) || !has(self.cache.format) || self.cache.format != 'FP8'")
        .message("cache.format must be F32 or BF16 with device Ascend").field_path(".cache.format"),
    validation = Rule::new("!has(self.ascend) || self.ascend.chip != 'A3' || self.devicesPerWorker == 1 || self.devicesPerWorker % 2 == 0")
        .message("devicesPerWorker must be 1 or even with ascend.chip A3: a card is two devices").field_path(".devicesPerWorker"),
    validation = Rule::new("!has(self.ascend) || !has(self.ascend.scheduling) || !has(self.ascend.scheduling.superPodDevices) || (self.ascend.scheduling.superPodDevices % self.devicesPerWorker == 0 && (self.workers * self.devicesPerWorker) % self.ascend.scheduling.superPodDevices == 0)")
        .message("ascend.scheduling.superPodDevices must be a multiple of devicesPerWorker, and divide workers * devicesPerWorker").field_path(".ascend.scheduling.superPodDevices")
)]
pub struct GroupSpec {
    /// Worker pods in a group. All of them take requests; the experts are spread over them.
    #[serde(default = "default_one")]
    #[schemars(range(min = 1, max = 256))]
    pub workers: i32,

    /// What the workers compute on.
    pub device: Device,

    /// Ranks in a worker pod. A rank owns a share of the experts: on CPU it is a set of threads, on Ascend a device.
    #[serde(default = "default_one")]
    #[schemars(range(min = 1, max = 64))]
    pub devices_per_worker: i32,

    /// Extended resource that a worker asks devicesPerWorker of. Default: that of Ascend's device plugin for ascend.chip,
    /// huawei.com/Ascend910 or huawei.com/npu; then nodes must have its label accelerator, too. Resources beside it, such as
    /// memory or cores of a device, are set in template.resources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 317),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    )]
    pub device_resource: Option<String>,

    /// How worker pods get at Ascend NPUs. With device Ascend, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ascend: Option<AscendSpec>,

    /// Memory of requests under way and of prompts that were seen before, in each worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSpec>,

    /// Guessing of tokens that are then verified together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculation: Option<SpeculationSpec>,

    /// Bytes that the ranks of a worker hold of experts together at most, as a whole number with an optional suffix such
    /// as Gi. While copies move, old and new ones count. Default: the memory limit of template.resources, less what
    /// every worker holds besides experts; without a limit, whatever they need. On Ascend it is of the memory of the devices, and
    /// the default is what the worker finds there.
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
    /// Ascend NPUs.
    Ascend,
}

impl Device {
    /// The value of the worker's `BELAY_DEVICE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CPU => "CPU",
            Self::Ascend => "Ascend",
        }
    }
}

/// What the worker pods look like.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!has(self.env) || self.env.all(e, !(e.name in ['BELAY_MODEL_DIR', 'BELAY_MODEL_NAME', 'BELAY_MAX_CONTEXT_TOKENS', 'BELAY_DEVICE', 'BELAY_DEVICES_PER_WORKER', 'BELAY_ASCEND_CHIP', 'BELAY_ASCEND_PRODUCTS', 'BELAY_GROUP', 'BELAY_REVISION', 'BELAY_WORKER_INDEX', 'BELAY_GROUP_WORKERS', 'BELAY_POD_UID', 'BELAY_PLACEMENT_FILE', 'BELAY_DRAIN_SECONDS', 'BELAY_KV_MEMORY', 'BELAY_KV_FORMAT', 'BELAY_PREFIX_CACHE', 'BELAY_DRAFT_TOKENS', 'BELAY_CHAT_ENCODING', 'BELAY_DEFAULT_THINKING', 'BELAY_EXPERT_MEMORY', 'BELAY_FABRIC_FORMAT', 'BELAY_FABRIC_KEY_FILE']))")
        .message("env must not set a variable that the operator sets (BELAY_MODEL_*, BELAY_MAX_CONTEXT_TOKENS, BELAY_DEVICE*, BELAY_ASCEND_CHIP, BELAY_ASCEND_PRODUCTS, BELAY_GROUP*, BELAY_REVISION, BELAY_WORKER_INDEX, BELAY_POD_UID, BELAY_PLACEMENT_FILE, BELAY_DRAIN_SECONDS, BELAY_KV_*, BELAY_PREFIX_CACHE, BELAY_DRAFT_TOKENS, BELAY_CHAT_ENCODING, BELAY_DEFAULT_THINKING, BELAY_EXPERT_MEMORY, BELAY_FABRIC_FORMAT, BELAY_FABRIC_KEY_FILE)").field_path(".env")
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

    /// Resources of the worker container. Default: a request of 100m CPU and 256Mi memory, no limits. NPUs are added to
    /// it: they are group.devicesPerWorker of group.deviceResource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,

    /// Scheduling constraints. Default: workers of a group prefer different nodes, and with ascend.chip A3 one superpod.
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

//! `spec.model`.
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Switch;

/// The model: its name for clients and where its checkpoint is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(cel)]
pub struct ModelSpec {
    /// What clients ask for as `model`. Default: the name of the ModelDeployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$"))]
    pub name: Option<String>,

    /// Where the checkpoint is. Exactly one of persistentVolumeClaim, hostPath and image.
    pub source: ModelSource,

    /// Longest prompt plus completion, in tokens. Default: the most that the model can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16777216))]
    pub max_context_tokens: Option<i32>,

    /// How conversations are written for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatSpec>,
}

/// How conversations are written for the model.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ChatSpec {
    /// Edition of the chat format that the checkpoint was trained on; no file of it says which. Default: April.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<ChatEncoding>,

    /// Whether the model reasons before it answers when a request does not say. Default: Enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_thinking: Option<Switch>,
}

/// Editions of the chat format.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatEncoding {
    /// V4-Flash, V4-Pro and their DSpark releases.
    April,
    /// V4-Flash-0731 and V4-Pro-0813.
    V0731,
}

impl ChatEncoding {
    /// The value of the worker's `BELAY_CHAT_ENCODING`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::April => "april",
            Self::V0731 => "0731",
        }
    }
}

/// Where the checkpoint is: exactly one of the fields.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("[has(self.persistentVolumeClaim), has(self.hostPath), has(self.image)].exists_one(set, set)")
        .message("exactly one of persistentVolumeClaim, hostPath and image must be set")
)]
pub struct ModelSource {
    /// A PersistentVolumeClaim in the namespace of the ModelDeployment. Every worker mounts it read-only, so
    /// that its access mode must allow all nodes of the workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimSource>,

    /// A directory that exists on every node that workers may run on. The pod security levels "baseline" and
    /// "restricted" refuse pods with such a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathSource>,

    /// An OCI image or artifact with the checkpoint in it, mounted as an image volume (Kubernetes 1.35, or
    /// earlier with the feature gate ImageVolume).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
}

/// A checkpoint in a PersistentVolumeClaim.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!has(self.path) || (!self.path.startsWith('/') && !self.path.split('/').exists(part, part == '..'))")
        .message("path must be relative to the volume, without '..'").field_path(".path")
)]
pub struct PersistentVolumeClaimSource {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,

    /// Directory of the checkpoint within the volume. Default: the volume's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub path: Option<String>,
}

/// A checkpoint on the nodes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("self.path.startsWith('/') && !self.path.split('/').exists(part, part == '..')")
        .message("path must be absolute, without '..'").field_path(".path")
)]
pub struct HostPathSource {
    /// Absolute path of the checkpoint's directory on the node. It must exist.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
}

/// A checkpoint in an OCI image.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!has(self.path) || (!self.path.startsWith('/') && !self.path.split('/').exists(part, part == '..'))")
        .message("path must be relative to the image's root, without '..'").field_path(".path")
)]
pub struct ImageSource {
    /// Reference of the image, as in a container's `image`.
    #[schemars(length(min = 1, max = 1024))]
    pub reference: String,

    /// When the nodes pull the image. Default: Always for the tag "latest", else IfNotPresent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,

    /// Directory of the checkpoint within the image. Default: the image's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub path: Option<String>,
}

/// When a node pulls an image.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry at every start.
    Always,
    /// Pull if the node does not have it.
    IfNotPresent,
    /// The node must have it.
    Never,
}

impl PullPolicy {
    /// The name that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

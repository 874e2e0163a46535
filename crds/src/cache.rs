//! `spec.group.cache` and `spec.group.speculation`.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Memory of requests under way and of prompts that were seen before, in each worker.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CacheSpec {
    /// Bytes that a worker keeps for all requests and prefixes together, as a whole number with an optional suffix
    /// such as Mi or Gi. More are computed later, or again, but never refused for it. It comes on top of the weights:
    /// template.resources must have room for both; on Ascend, the memory of the devices. Default: 4Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,17}(k|M|G|T|Ki|Mi|Gi|Ti)?$"))]
    pub memory: Option<String>,

    /// How cached rows are stored. Default: F32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<CacheFormat>,

    /// Whether a prompt that begins like an earlier one goes on from what was kept of that. Default: Enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Switch>,
}

/// How cached rows are stored.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheFormat {
    /// As computed: 4 bytes an element.
    F32,
    /// Rounded to 2 bytes an element.
    BF16,
    /// The layout of the published inference code: about one byte an element.
    FP8,
}

impl CacheFormat {
    /// The value of the worker's `BELAY_KV_FORMAT`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::FP8 => "fp8",
        }
    }
}

/// Whether something is used. (`On` and `Off` would be booleans to many readers of YAML.)
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It is.
    Enabled,
    /// It is not.
    Disabled,
}

impl Switch {
    /// The value of a worker's variable.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "on",
            Self::Disabled => "off",
        }
    }
}

/// Guessing of tokens that are then verified together. The output is the same with and without.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SpeculationSpec {
    /// Tokens that are guessed in front of a step by the model's own draft stage; the checkpoint must have one.
    /// 0 switches it off. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3))]
    pub draft_tokens: Option<i32>,
}

//! `spec.group.fabric`.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What passes between the workers of a group.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FabricSpec {
    /// Form in which rows travel to experts and back. Rows of experts on the same worker are rounded as well, so that an
    /// answer does not depend on where an expert is. Default: F32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_format: Option<RowFormat>,
}

/// Form of a row of activations.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFormat {
    /// As computed: 4 bytes an element.
    F32,
    /// Rounded to 2 bytes an element.
    BF16,
    /// About one byte an element.
    FP8,
}

impl RowFormat {
    /// The value of the worker's `BELAY_FABRIC_FORMAT`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::FP8 => "fp8",
        }
    }
}

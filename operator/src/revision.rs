//! Revisions: the part of the spec that reaches pods, its hash, and how it is kept.
//!
//! The hash is over what the *user* wrote, not over defaults of this operator: neither an upgrade of the operator
//! nor a new default image may move a pod. What a revision was resolved to (the image) is recorded with it when it is
//! made, and read back from there ever after (docs/adr/0005).
use belay_crds::{ChatSpec, GroupSpec, ModelSource, ModelSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::rollout::State;

/// Characters of a revision.
pub const LENGTH: usize = 8;

/// The part of the spec that reaches pods.
///
/// Its JSON is what is hashed. A field that is added later must be absent from the JSON while it has its default, or
/// every hash changes.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// `spec.model`, the name resolved.
    pub model: Model,
    /// `spec.group`.
    pub group: GroupSpec,
}

/// `spec.model`, the name resolved.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// What clients ask for.
    pub name: String,
    /// Where the checkpoint is.
    pub source: ModelSource,
    /// Longest prompt plus completion, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_context_tokens: Option<i32>,
    /// How conversations are written for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatSpec>,
}

impl Content {
    /// From the spec. `deployment` is the default of the model's name.
    pub fn new(deployment: &str, model: &ModelSpec, group: &GroupSpec) -> Self {
        Self {
            model: Model {
                name: model.name.clone().unwrap_or_else(|| deployment.to_owned()),
                source: model.source.clone(),
                max_context_tokens: model.max_context_tokens,
                chat: model.chat.clone(),
            },
            group: group.clone(),
        }
    }

    /// The revision's name. `salt` is 0 unless another content has the same hash already.
    ///
    /// # Errors
    /// When the content cannot be written as JSON.
    pub fn hash(&self, salt: u32) -> Result<String, serde_json::Error> {
        let mut text = String::new();
        write_canonical(&serde_json::to_value(self)?, &mut text);
        let mut hasher = Sha256::new();
        hasher.update(text.as_bytes());
        if salt > 0 {
            hasher.update(salt.to_le_bytes());
        }
        Ok(hasher.finalize().iter().take(LENGTH / 2).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// A revision as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its name: the hash.
    pub revision: String,
    /// Increases with every change of the spec; the highest is the newest.
    pub number: i64,
    /// What pods of the revision are made from.
    pub data: Data,
    /// How far its rollout is, if that was written down.
    pub state: Option<State>,
}

/// What a ControllerRevision holds.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Data {
    /// The part of the spec that reaches pods.
    pub content: Content,
    /// The worker image that was in force when the revision was made.
    pub image: String,
}

/// Why there is no revision for a spec.
#[derive(Debug, Error)]
pub enum RevisionError {
    /// No image is named anywhere.
    #[error("spec.group.template.image is not set, and the operator has no default (--worker-image)")]
    NoImage,
    /// The content cannot be written as JSON.
    #[error("write the revision as JSON")]
    Json(#[from] serde_json::Error),
}

/// The revision of a spec: a recorded one if its content is the same, else a new one. The number of the result is the
/// highest of all, so that history is in the order in which specs were in force, rollbacks included.
///
/// # Errors
/// When a new revision is needed but no image is known, or on unwritable content.
pub fn choose(
    content: &Content,
    known: &[Record],
    default_image: Option<&str>,
) -> Result<Record, RevisionError> {
    let highest = known.iter().map(|record| record.number).max().unwrap_or(0);
    for salt in 0.. {
        let revision = content.hash(salt)?;
        match known.iter().find(|record| record.revision == revision) {
            Some(record) if record.data.content == *content => {
                let number = if record.number == highest { highest } else { highest + 1 };
                return Ok(Record { number, ..record.clone() });
            }
            Some(_) => {} // another content with this hash: take the next salt
            None => {
                let own = content.group.template.image.as_deref();
                let image = own.or(default_image).ok_or(RevisionError::NoImage)?.to_owned();
                let data = Data { content: content.clone(), image };
                return Ok(Record { revision, number: highest + 1, data, state: None });
            }
        }
    }
    Err(RevisionError::NoImage) // not reached: the salts do not end
}

/// JSON with sorted keys and without nulls: the same for the same content, however the types are arranged.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().filter(|(_, value)| !value.is_null()).collect();
            entries.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

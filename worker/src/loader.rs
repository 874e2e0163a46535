//! From a checkpoint directory to weights in memory. Blocking: runs off the async threads.

use std::sync::Arc;

use belay_backend::{Backend, BackendError};
use belay_engine::{Tokenizer, TokenizerError};
use belay_model::{CacheOptions, Checkpoint, CheckpointError, Model, Numerics};
use belay_proto::admin::ModelCard;

use crate::config::ServeConfig;
use crate::state::Shared;

/// Why a worker can't serve its checkpoint; ends in the failed phase.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory or its config.json is not there.
    #[error("{0}")]
    NotFound(String),
    /// The checkpoint can't be used; the message names file and tensor.
    #[error("{0}")]
    Invalid(String),
    /// The options ask for more than the model has.
    #[error("{0}")]
    Options(String),
    /// The device has no room for what is to be loaded.
    #[error("{0}")]
    DeviceMemory(String),
    /// Experts would take more memory than they may.
    #[error("{needed} bytes of experts do not fit: {held} of {allowed} are taken (BELAY_EXPERT_MEMORY)")]
    NoRoom {
        /// Bytes to load.
        needed: u64,
        /// Bytes of experts that are held.
        held: u64,
        /// Bytes of experts that may be held.
        allowed: u64,
    },
}

impl LoadError {
    /// CamelCase cause, as in `WorkerStatus.reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "CheckpointNotFound",
            Self::Invalid(_) => "CheckpointInvalid",
            Self::Options(_) => "OptionsInvalid",
            Self::NoRoom { .. } | Self::DeviceMemory(_) => "OutOfMemory",
        }
    }
}

impl From<CheckpointError> for LoadError {
    fn from(error: CheckpointError) -> Self {
        match &error {
            CheckpointError::NoDirectory { .. } => Self::NotFound(error.to_string()),
            CheckpointError::NoFile { file, .. } if file == "config.json" => {
                Self::NotFound(error.to_string())
            }
            CheckpointError::Cache(cause) => Self::Options(format!("BELAY_KV_MEMORY: {cause}")),
            CheckpointError::Backend { cause: BackendError::OutOfMemory { .. }, .. } => {
                Self::DeviceMemory(error.to_string())
            }
            CheckpointError::DraftStage { .. } => Self::Options(format!("BELAY_DRAFT_TOKENS: {error}")),
            _ => Self::Invalid(error.to_string()),
        }
    }
}

impl From<TokenizerError> for LoadError {
    fn from(error: TokenizerError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// What is known before any weight is read.
pub struct Opened {
    /// Configuration and headers.
    pub checkpoint: Arc<Checkpoint>,
    /// Text side.
    pub tokenizer: Arc<Tokenizer>,
}

/// Reads config.json, the tokenizer and every header.
///
/// # Errors
/// [`LoadError`].
pub fn open(config: &ServeConfig) -> Result<Opened, LoadError> {
    let checkpoint = Checkpoint::open_with(&config.model_dir, config.draft_tokens)?;
    let tokenizer = Tokenizer::load(&config.model_dir)?;
    let card = checkpoint.card();
    if let Some(asked) = config.max_context_tokens
        && asked > card.max_context_tokens
    {
        return Err(LoadError::Options(format!(
            "BELAY_MAX_CONTEXT_TOKENS: {asked} is more than the model's {}",
            card.max_context_tokens
        )));
    }
    if config.group_name().is_none() && config.devices_per_worker > card.experts {
        return Err(LoadError::Options(format!(
            "BELAY_DEVICES_PER_WORKER: {} experts can't be spread over {} ranks",
            card.experts, config.devices_per_worker
        )));
    }
    Ok(Opened { checkpoint: Arc::new(checkpoint), tokenizer: Arc::new(tokenizer) })
}

/// The card in the operator's terms.
#[must_use]
pub fn proto_card(card: &belay_model::ModelCard) -> ModelCard {
    ModelCard {
        layers: card.layers,
        experts: card.experts,
        experts_per_token: card.experts_per_token,
        expert_bytes: card.expert_bytes,
        dense_bytes: card.dense_bytes,
        max_context_tokens: card.max_context_tokens,
        digest: card.digest.clone(),
    }
}

impl LoadError {
    /// Whether less to hold would help.
    #[must_use]
    pub fn is_room(&self) -> bool {
        matches!(self, Self::NoRoom { .. } | Self::DeviceMemory(_))
    }
}

/// Loads the dense weights; experts follow, `total` bytes are both together.
///
/// # Errors
/// [`LoadError`] naming the tensor.
pub fn dense<B: Backend>(
    backend: &Arc<B>,
    checkpoint: &Checkpoint,
    cache: CacheOptions,
    total: u64,
    shared: &Shared,
) -> Result<Model<B>, LoadError> {
    shared.load_progress(0, total);
    let progress = &mut |done, _| shared.load_progress(done, total);
    Ok(Model::load(Arc::clone(backend), checkpoint, Numerics::EXACT, cache, progress)?)
}

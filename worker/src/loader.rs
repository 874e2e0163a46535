//! From a checkpoint directory to weights in memory. Blocking: runs off the async threads.

use std::sync::Arc;

use belay_backend::{Backend, ExpertCompute};
use belay_engine::{Tokenizer, TokenizerError};
use belay_fabric::Table;
use belay_model::{CacheOptions, Checkpoint, CheckpointError, ExpertBank, Model, Numerics};
use belay_proto::admin::{ModelCard, RankStatus};

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
}

impl LoadError {
    /// CamelCase cause, as in `WorkerStatus.reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "CheckpointNotFound",
            Self::Invalid(_) => "CheckpointInvalid",
            Self::Options(_) => "OptionsInvalid",
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

/// The experts of this worker's ranks.
pub struct Ranks<B: Backend> {
    /// Number of the first one within the group.
    first: u32,
    banks: Vec<Arc<ExpertBank<B>>>,
}

impl<B: Backend> Ranks<B> {
    /// Ranks of worker `worker`, with nothing loaded.
    #[must_use]
    pub fn new(backend: &Arc<B>, checkpoint: &Arc<Checkpoint>, worker: u32, count: u32) -> Self {
        let bank =
            |_| Arc::new(ExpertBank::new(Arc::clone(backend), Arc::clone(checkpoint), Numerics::EXACT));
        Self { first: worker * count, banks: (0..count).map(bank).collect() }
    }

    fn numbered(&self) -> impl Iterator<Item = (u32, &Arc<ExpertBank<B>>)> {
        (self.first..).zip(&self.banks)
    }

    /// Bytes that are not resident yet of what `table` gives to these ranks.
    #[must_use]
    pub fn missing_bytes(&self, table: &Table, checkpoint: &Checkpoint) -> u64 {
        self.numbered()
            .flat_map(|(rank, bank)| {
                table.of_rank(rank).filter(|(layer, expert)| !bank.holds(*layer, *expert))
            })
            .map(|(layer, expert)| checkpoint.expert_bytes(layer, expert))
            .sum()
    }

    /// Loads what `table` gives to these ranks and is not resident yet; `base` and `total` place it in the progress.
    ///
    /// # Errors
    /// [`LoadError`] naming the tensor.
    pub fn load(&self, table: &Table, shared: &Shared, base: u64, total: u64) -> Result<(), LoadError> {
        let mut base = base;
        for (rank, bank) in self.numbered() {
            let mut loaded = 0;
            bank.load(table.of_rank(rank), &mut |done, _| {
                loaded = done;
                shared.load_progress(base + done, total);
            })?;
            base += loaded;
        }
        shared.load_progress(total, total);
        Ok(())
    }

    /// Drops what `table` no longer gives to these ranks.
    pub fn retire(&self, table: &Table) {
        for (rank, bank) in self.numbered() {
            let keep: std::collections::HashSet<(u32, u32)> = table.of_rank(rank).collect();
            bank.unload(bank.resident().into_iter().filter(|copy| !keep.contains(copy)));
        }
    }

    /// Compute of each rank, in rank order.
    #[must_use]
    pub fn compute(&self) -> Vec<Arc<dyn ExpertCompute>>
    where
        B: 'static,
    {
        self.banks.iter().map(|bank| Arc::clone(bank) as Arc<dyn ExpertCompute>).collect()
    }

    /// What each rank holds.
    #[must_use]
    pub fn status(&self) -> Vec<RankStatus> {
        self.numbered()
            .map(|(rank, bank)| RankStatus {
                rank,
                experts: bank.resident().len() as u32,
                expert_bytes: bank.bytes(),
            })
            .collect()
    }
}

/// Loads the dense weights and then the experts that `table` gives to `ranks`.
///
/// # Errors
/// [`LoadError`] naming the tensor.
pub fn load<B: Backend>(
    backend: &Arc<B>,
    checkpoint: &Checkpoint,
    ranks: &Ranks<B>,
    table: &Table,
    cache: CacheOptions,
    shared: &Shared,
) -> Result<Model<B>, LoadError> {
    let dense = checkpoint.card().dense_bytes;
    let total = dense + ranks.missing_bytes(table, checkpoint);
    shared.load_progress(0, total);
    let model = Model::load(Arc::clone(backend), checkpoint, Numerics::EXACT, cache, &mut |done, _| {
        shared.load_progress(done, total)
    })?;
    ranks.load(table, shared, dense, total)?;
    Ok(model)
}

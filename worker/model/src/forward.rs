//! The model: dense weights on a backend, and the forward over a step.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use belay_backend::{Backend, Fabric, Precision};
use sha2::{Digest, Sha256};

use crate::cache::{CacheError, CacheLayout, CacheOptions, KvFormat, Memory, NoRoom, Pool};
use crate::card::ModelCard;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::{Config, ConfigError};
use crate::error::ForwardError;
use crate::hyper_connection::HyperHead;
use crate::layer::Layer;
use crate::linear::{Linear, Loader, Progress};
use crate::mtp::Mtp;
use crate::numerics::Numerics;
use crate::rope::Frequencies;
use crate::scratch::{Scratch, Temporaries};
use crate::state::{Snapshot, State};
use crate::step::{Segment, Step};
use crate::trace::{NoTrace, Trace};

/// Everything but the routed experts, which are reached through a [`Fabric`].
pub struct Model<B: Backend> {
    pub(crate) backend: Arc<B>,
    pub(crate) config: Config,
    card: ModelCard,
    pub(crate) numerics: Numerics,
    pub(crate) frequencies: Frequencies,
    pub(crate) embed: Linear<B>,
    pub(crate) layers: Vec<Layer<B>>,
    hyper_head: HyperHead<B>,
    head: Linear<B>,
    /// The draft stage, if it is used.
    pub(crate) mtp: Option<Mtp<B>>,
    layout: Arc<CacheLayout>,
    pool: Arc<Pool>,
    format: KvFormat,
    /// Lent to one step at a time.
    arena: Mutex<B::Arena>,
    /// Rows from which a step is done in two halves; see [`Self::with_halves`].
    pub(crate) halves_from: Option<usize>,
}

impl<B: Backend> Model<B> {
    /// Loads the dense weights, and sets the memory of decode states apart. `progress` hears bytes done and bytes in
    /// all.
    ///
    /// # Errors
    /// The first weight that cannot be taken, by file and tensor; or that there is no memory for decode states.
    pub fn load(
        backend: Arc<B>,
        checkpoint: &Checkpoint,
        numerics: Numerics,
        cache: CacheOptions,
        progress: Progress<'_>,
    ) -> Result<Self, CheckpointError> {
        let config = checkpoint.config().clone();
        check_numerics(&config, numerics)?;
        let layout = Arc::new(CacheLayout::new(&config, cache.format)?);
        let (pool, arena) = memory(&*backend, &layout, cache.memory)?;
        let total = checkpoint.card().dense_bytes;
        let mut loader = Loader { backend: &*backend, checkpoint, total, done: 0, progress };
        let (vocab, width) = (config.vocab_size, config.hidden_size);
        let embed = loader.linear_in(Precision::Half, "embed", vocab, width)?;
        let layers = (0..config.depth())
            .map(|index| Layer::load(&mut loader, &config, index))
            .collect::<Result<_, _>>()?;
        let hyper_head = HyperHead::load(&mut loader, &config, "")?;
        let head = loader.linear_in(Precision::Full, "head", vocab, width)?;
        let mtp = if config.draft_tokens > 0 { Some(Mtp::load(&mut loader, &config)?) } else { None };
        (loader.progress)(total, total);
        Ok(Self {
            frequencies: Frequencies::new(&config),
            card: checkpoint.card().clone(),
            backend,
            config,
            numerics,
            embed,
            layers,
            hyper_head,
            head,
            mtp,
            layout,
            pool: Arc::new(pool),
            format: cache.format,
            arena: Mutex::new(arena),
            halves_from: None,
        })
    }

    /// Steps of at least `rows` rows and two segments are done in two halves: one attends while the experts of the other
    /// are computed elsewhere. That hides what an exchange takes, and reads the dense weights twice. Results have the
    /// same bits.
    #[must_use]
    pub fn with_halves(mut self, rows: usize) -> Self {
        self.halves_from = Some(rows);
        self
    }

    /// Sizes and constants.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What placement needs to know.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Where the dense weights are.
    pub fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    /// The state of a sequence without tokens. It holds no memory yet.
    pub fn new_state(&self) -> State {
        State::new(Arc::clone(&self.pool), Arc::clone(&self.layout))
    }

    /// Takes the pages that feeding `tokens` more needs, so that the step cannot fail for lack of them. The chance to
    /// rewind the step before is over.
    ///
    /// # Errors
    /// [`NoRoom`]; the state can be used as before.
    pub fn reserve(&self, state: &mut State, tokens: usize) -> Result<(), NoRoom> {
        state.reserve(tokens)
    }

    /// Takes back the tokens of the last step from `position` on, if that was rewindable.
    ///
    /// # Errors
    /// [`ForwardError::Invalid`] if the position is not one of that step's, or if what is behind it is part of a
    /// snapshot; [`ForwardError::Poisoned`]. The state has not changed.
    pub fn rewind(&self, state: &mut State, position: usize) -> Result<(), ForwardError> {
        state.rewind(position)
    }

    /// Shares the state at the end of a block of [`Self::block_tokens`].
    ///
    /// # Errors
    /// [`ForwardError::Invalid`] anywhere else; [`ForwardError::Poisoned`].
    pub fn snapshot(&self, state: &State) -> Result<Snapshot, ForwardError> {
        state.snapshot()
    }

    /// A state that goes on from a snapshot. It takes no memory until it is fed.
    pub fn restore(&self, snapshot: &Snapshot) -> State {
        snapshot.restore()
    }

    /// Snapshots can be taken at multiples of this many tokens.
    pub fn block_tokens(&self) -> usize {
        self.layout.block
    }

    /// Bytes of all states and snapshots now, and at most.
    pub fn memory(&self) -> Memory {
        self.pool.memory()
    }

    /// Exact bytes that a state holds after `tokens` tokens, between steps, if it shares nothing.
    pub fn state_bytes(&self, tokens: usize) -> usize {
        self.layout.state_bytes(tokens)
    }

    /// Exact bytes that a state of `tokens` tokens holds while `step` more are fed, and until the next step if they can
    /// be taken back.
    pub fn step_bytes(&self, tokens: usize, step: usize) -> usize {
        self.layout.step_bytes(tokens, step)
    }

    /// Tells states apart that must not be mixed: by model, storage format and numerics.
    pub fn cache_key(&self) -> u64 {
        let Self { card, format, numerics, .. } = self;
        let text = format!("{} {format} {numerics:?}", card.digest);
        let mut key = [0; 8];
        key.copy_from_slice(&Sha256::digest(text)[..8]);
        u64::from_le_bytes(key)
    }

    /// Feeds every segment's tokens and leaves the wanted logits in `logits`: `[wanted rows, V]`, in the order of the
    /// segments. A row's result has the same bits whatever else is in the step and however a sequence is cut.
    ///
    /// # Errors
    /// [`ForwardError::Invalid`], [`ForwardError::Poisoned`] and [`ForwardError::NoRoom`] before anything was touched.
    /// After any other error the states of all segments are poisoned and must be dropped.
    pub fn forward(
        &self,
        scratch: &mut Scratch<B>,
        segments: &mut [Segment<'_>],
        fabric: &dyn Fabric,
        logits: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        self.forward_traced(scratch, segments, fabric, logits, &mut NoTrace)
    }

    /// [`Self::forward`], showing `trace` what is decided on the way.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_traced(
        &self,
        scratch: &mut Scratch<B>,
        segments: &mut [Segment<'_>],
        fabric: &dyn Fabric,
        logits: &mut Vec<f32>,
        trace: &mut dyn Trace,
    ) -> Result<(), ForwardError> {
        logits.clear();
        let cut = self.cut(segments);
        let steps = Step::plan_parts(segments, cut, &self.config, &self.frequencies, self.numerics)?;
        if segments.is_empty() {
            return Ok(());
        }
        let mut parts = self.parts(&steps, segments, cut, scratch)?;
        for segment in segments.iter_mut() {
            segment.state.reserve(segment.tokens.len())?;
        }
        let mut arena = self.arena();
        for segment in segments.iter_mut() {
            segment.state.poison();
        }
        self.run(&mut parts, &mut arena, segments, fabric, trace)?;
        for part in &mut parts {
            self.head(&self.hyper_head, &part.step.wanted, part.t, logits)?;
            if let (Some(mtp), Some(plan)) = (&self.mtp, &part.plan) {
                self.catch_up(mtp, plan, part.step, part.t, &mut arena, &segments[part.segments.clone()])?;
            }
        }
        for segment in segments.iter_mut() {
            segment.state.commit(segment.tokens.len(), segment.rewindable);
        }
        Ok(())
    }

    /// Every state's rows. Whoever panicked in a step has poisoned the states that it wrote to, so the others' are whole.
    pub(crate) fn arena(&self) -> MutexGuard<'_, B::Arena> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn upload_tables(&self, step: &Step, t: &mut Temporaries<B>) -> Result<(), ForwardError> {
        self.backend.write(&mut t.plain_table, 0, &step.plain_table)?;
        self.backend.write(&mut t.compressed_table, 0, &step.compressed_table)?;
        for (table, buffer) in step.entry_tables.iter().zip(&mut t.entry_tables) {
            self.backend.write(buffer, 0, &table.values)?;
        }
        Ok(())
    }

    /// logits = head · RMS(collapsed streams), for the wanted rows; appended.
    pub(crate) fn head(
        &self,
        mixer: &HyperHead<B>,
        wanted: &[u32],
        t: &mut Temporaries<B>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        let Some(last) = t.last.as_mut().filter(|_| !wanted.is_empty()) else {
            return Ok(());
        };
        let backend = &*self.backend;
        backend.gather(
            &t.streams,
            self.config.streams * self.config.hidden_size,
            wanted,
            &mut last.streams,
        )?;
        mixer.read(backend, last, wanted.len())?;
        self.head.apply(backend, &last.x, wanted.len(), &mut last.logits)?;
        let start = logits.len();
        logits.resize(start + wanted.len() * self.config.vocab_size, 0.0);
        backend.read(&last.logits, 0, &mut logits[start..])?;
        Ok(())
    }
}

/// As many pages as fit into `bytes`.
fn memory<B: Backend>(
    backend: &B,
    layout: &CacheLayout,
    bytes: usize,
) -> Result<(Pool, B::Arena), CacheError> {
    let needed = layout.step_bytes(0, 1);
    if bytes < needed {
        return Err(CacheError::TooSmall { memory: bytes, needed });
    }
    let pages = bytes / layout.page_bytes;
    Ok((Pool::new(pages, layout.page_bytes), backend.arena(pages, layout.page_bytes)?))
}

/// The Hadamard transform of the rounding mode needs a power of two.
fn check_numerics(config: &Config, numerics: Numerics) -> Result<(), ConfigError> {
    match config.indexer {
        Some(indexer) if numerics.indexer && !indexer.head_dim.is_power_of_two() => Err(ConfigError::new(
            "index_head_dim",
            format!("{} is no power of two, which the rounded mode needs", indexer.head_dim),
        )),
        _ => Ok(()),
    }
}

//! The model: dense weights on a backend, and the forward over a step.

use std::sync::Arc;

use belay_backend::{Backend, Fabric};

use crate::card::ModelCard;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::{Config, ConfigError};
use crate::error::ForwardError;
use crate::hyper_connection::HyperHead;
use crate::layer::Layer;
use crate::linear::{Linear, Loader, Progress};
use crate::mtp::{CatchUp, Mtp};
use crate::numerics::Numerics;
use crate::rope::Frequencies;
use crate::scratch::{HostTemporaries, Scratch, Temporaries};
use crate::state::{self, State};
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
    layers: Vec<Layer<B>>,
    hyper_head: HyperHead<B>,
    head: Linear<B>,
    /// The draft stage, if it is used.
    pub(crate) mtp: Option<Mtp<B>>,
}

impl<B: Backend> Model<B> {
    /// Loads the dense weights. `progress` hears bytes done and bytes in all.
    ///
    /// # Errors
    /// The first weight that cannot be taken, by file and tensor.
    pub fn load(
        backend: Arc<B>,
        checkpoint: &Checkpoint,
        numerics: Numerics,
        progress: Progress<'_>,
    ) -> Result<Self, CheckpointError> {
        let config = checkpoint.config().clone();
        check_numerics(&config, numerics)?;
        let total = checkpoint.card().dense_bytes;
        let mut loader = Loader { backend: &*backend, checkpoint, total, done: 0, progress };
        let (vocab, width) = (config.vocab_size, config.hidden_size);
        let embed = loader.linear("embed", vocab, width)?;
        let layers = (0..config.depth())
            .map(|index| Layer::load(&mut loader, &config, index))
            .collect::<Result<_, _>>()?;
        let hyper_head = HyperHead::load(&mut loader, &config, "")?;
        let head = loader.linear("head", vocab, width)?;
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
        })
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

    /// The state of a sequence without tokens.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new_state(&self) -> Result<State<B>, ForwardError> {
        Ok(State::new(&*self.backend, &self.config)?)
    }

    /// An independent copy: two sequences with a common beginning.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn fork(&self, state: &State<B>) -> Result<State<B>, ForwardError> {
        Ok(state.fork(&*self.backend)?)
    }

    /// Device bytes that a state takes now; grows with its length.
    pub fn state_bytes(&self, state: &State<B>) -> u64 {
        state.bytes(&*self.backend)
    }

    /// Upper bound of the bytes of a state that has taken `tokens` tokens.
    pub fn state_bytes_after(&self, tokens: usize) -> u64 {
        state::bytes_after(&self.config, tokens)
    }

    /// Feeds every segment's tokens and leaves the wanted logits in `logits`: `[wanted rows, V]`, in the order of the
    /// segments. A row's result has the same bits whatever else is in the step and however a sequence is cut.
    ///
    /// # Errors
    /// [`ForwardError::Invalid`] and [`ForwardError::Poisoned`] before anything was touched. After any other error the
    /// states of all segments are poisoned and must be dropped.
    pub fn forward(
        &self,
        scratch: &mut Scratch<B>,
        segments: &mut [Segment<'_, B>],
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
        segments: &mut [Segment<'_, B>],
        fabric: &dyn Fabric,
        logits: &mut Vec<f32>,
        trace: &mut dyn Trace,
    ) -> Result<(), ForwardError> {
        let step = Step::plan(segments, &self.config, &self.frequencies, self.numerics)?;
        logits.clear();
        if step.rows() == 0 {
            return Ok(());
        }
        let plan = self.mtp.as_ref().map(|_| CatchUp::plan(segments, &self.config));
        let rows = plan.as_ref().map_or(0, CatchUp::rows).max(step.rows());
        let (t, host) = scratch.reserve(&*self.backend, &self.config, rows, step.wanted.len())?;
        for segment in segments.iter_mut() {
            segment.state.poisoned = true;
        }
        self.run(&step, t, host, segments, fabric, logits, trace)?;
        if let (Some(mtp), Some(plan)) = (&self.mtp, &plan) {
            self.catch_up(mtp, plan, &step, t, segments)?;
        }
        for segment in segments.iter_mut() {
            segment.state.position += segment.tokens.len();
            segment.state.poisoned = false;
        }
        Ok(())
    }

    fn run(
        &self,
        step: &Step,
        t: &mut Temporaries<B>,
        host: &mut HostTemporaries,
        segments: &mut [Segment<'_, B>],
        fabric: &dyn Fabric,
        logits: &mut Vec<f32>,
        trace: &mut dyn Trace,
    ) -> Result<(), ForwardError> {
        let backend = &*self.backend;
        self.upload_tables(step, t)?;
        backend.embed(self.embed.matrix(), &step.ids, self.config.streams, &mut t.streams)?;
        for (index, layer) in self.layers.iter().enumerate() {
            layer.forward(backend, step, t, host, segments, fabric, trace)?;
            if trace.wants_streams() {
                let mut streams = vec![0.0; step.rows() * self.config.streams * self.config.hidden_size];
                backend.read(&t.streams, 0, &mut streams)?;
                trace.streams(index, &streams);
            }
        }
        self.head(&self.hyper_head, &step.wanted, t, logits)
    }

    pub(crate) fn upload_tables(&self, step: &Step, t: &mut Temporaries<B>) -> Result<(), ForwardError> {
        self.backend.write(&mut t.plain_table, 0, &step.plain_table)?;
        self.backend.write(&mut t.compressed_table, 0, &step.compressed_table)?;
        for (table, buffer) in step.entry_tables.iter().zip(&mut t.entry_tables) {
            self.backend.write(buffer, 0, &table.values)?;
        }
        Ok(())
    }

    /// logits = head · RMS(collapsed streams), for the wanted rows.
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
        logits.resize(wanted.len() * self.config.vocab_size, 0.0);
        backend.read(&last.logits, 0, logits)?;
        Ok(())
    }
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

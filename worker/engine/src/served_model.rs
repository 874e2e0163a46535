//! The DeepSeek-V4 forward as the engine steps it: a model, and the fabric that reaches its experts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use belay_backend::{Backend, Fabric};
use belay_model::{ForwardError, Logits, Model, Scratch, State};

use crate::step_model::{Draft, Memory, Segment, StateError, StepError, StepModel, Wants};

/// Bytes for decode states.
const MEMORY: usize = 4 << 30;
/// A multiple of every layer's compression ratio.
const BLOCK_TOKENS: usize = 128;

/// A model and its fabric.
pub struct ServedModel<B: Backend> {
    model: Model<B>,
    fabric: Arc<dyn Fabric>,
    /// Only the step loop steps, so nobody ever waits here.
    scratch: Mutex<Scratch<B>>,
    /// Bytes held.
    used: Arc<AtomicUsize>,
}

impl<B: Backend> ServedModel<B> {
    /// Puts the two together; the fabric reaches every routed expert of the model.
    #[must_use]
    pub fn new(model: Model<B>, fabric: Arc<dyn Fabric>) -> Self {
        Self { model, fabric, scratch: Mutex::default(), used: Arc::default() }
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    fn take(&self, held: &mut Bytes, bytes: usize) -> Result<(), StateError> {
        let more = bytes.saturating_sub(held.count);
        let take = |used: usize| (used + more <= MEMORY).then_some(used + more);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => held.count += more,
            Err(used) => return Err(StateError::NoRoom { needed: more, free: MEMORY - used }),
        }
        Ok(())
    }

    fn copy(&self, state: &ServedState<B>) -> Result<ServedState<B>, StateError> {
        let mut held = Bytes { count: 0, used: Arc::clone(&self.used) };
        self.take(&mut held, state.held.count)?;
        Ok(ServedState { state: self.model.fork(&state.state).map_err(step_error)?, held })
    }
}

/// A decode state and what it counts for.
pub struct ServedState<B: Backend> {
    state: State<B>,
    held: Bytes,
}

struct Bytes {
    count: usize,
    used: Arc<AtomicUsize>,
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.used.fetch_sub(self.count, Ordering::Relaxed);
    }
}

impl<B: Backend> StepModel for ServedModel<B> {
    type State = ServedState<B>;
    type Snapshot = ServedState<B>;

    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    fn max_context(&self) -> usize {
        self.model.card().max_context_tokens as usize
    }

    fn block_tokens(&self) -> usize {
        BLOCK_TOKENS
    }

    fn max_drafts(&self) -> usize {
        0
    }

    fn cache_key(&self) -> u64 {
        0
    }

    fn memory(&self) -> Memory {
        Memory { limit: MEMORY, used: self.used.load(Ordering::Relaxed) }
    }

    fn state_bytes(&self, tokens: usize) -> usize {
        usize::try_from(self.model.state_bytes_after(tokens)).unwrap_or(usize::MAX)
    }

    fn step_bytes(&self, tokens: usize, step: usize) -> usize {
        self.state_bytes(tokens + step)
    }

    fn new_state(&self) -> Result<Self::State, StateError> {
        let held = Bytes { count: 0, used: Arc::clone(&self.used) };
        Ok(ServedState { state: self.model.new_state().map_err(step_error)?, held })
    }

    fn reserve(&self, state: &mut Self::State, tokens: usize) -> Result<(), StateError> {
        let bytes = self.state_bytes(state.state.position() + tokens);
        self.take(&mut state.held, bytes)
    }

    fn snapshot(&self, state: &Self::State) -> Result<Self::Snapshot, StateError> {
        self.copy(state)
    }

    fn restore(&self, snapshot: &Self::Snapshot) -> Result<Self::State, StateError> {
        self.copy(snapshot)
    }

    fn rewind(&self, state: &mut Self::State, position: usize) -> Result<(), StateError> {
        let message = format!("cannot go back from {} to {position}", state.state.position());
        Err(StateError::Failed(StepError { message, retryable: false }))
    }

    fn forward(
        &self,
        segments: &mut [Segment<'_, Self::State>],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError> {
        let mut segments: Vec<belay_model::Segment<'_, B>> = segments
            .iter_mut()
            .map(|segment| belay_model::Segment {
                state: &mut segment.state.state,
                tokens: segment.tokens,
                logits: match segment.wants {
                    Wants::Nothing => Logits::None,
                    Wants::Last => Logits::Last,
                    Wants::All => Logits::All,
                },
            })
            .collect();
        let mut scratch = self.scratch.lock().unwrap_or_else(|poisoned| {
            // A step panicked in the middle of using it.
            self.scratch.clear_poison();
            let mut scratch = poisoned.into_inner();
            *scratch = Scratch::default();
            scratch
        });
        self.model.forward(&mut scratch, &mut segments, &*self.fabric, logits).map_err(step_error)
    }

    fn draft(&self, _: &mut [Draft<'_, Self::State>], _: &mut Vec<u32>) -> Result<(), StepError> {
        Err(StepError { message: "there is no draft stage".into(), retryable: false })
    }
}

/// Only a request that the model can never compute is at fault itself; a lost expert or a device without room is not.
fn step_error(error: ForwardError) -> StepError {
    StepError { retryable: !matches!(error, ForwardError::Invalid { .. }), message: error.to_string() }
}

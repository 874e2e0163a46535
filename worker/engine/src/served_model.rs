//! The DeepSeek-V4 forward as the engine steps it: a model, and the fabric that reaches its experts.

use std::sync::{Arc, Mutex, MutexGuard};

use belay_backend::{Backend, Fabric};
use belay_model::{ForwardError, Logits, Model, NoRoom, Scratch, Snapshot, State};

use crate::step_model::{Draft, Memory, Segment, StateError, StepError, StepModel, Wants};

/// A model and its fabric.
pub struct ServedModel<B: Backend> {
    model: Model<B>,
    fabric: Arc<dyn Fabric>,
    /// Only the step loop steps, so nobody ever waits here.
    scratch: Mutex<Scratch<B>>,
}

impl<B: Backend> ServedModel<B> {
    /// Puts the two together; the fabric reaches every routed expert of the model.
    #[must_use]
    pub fn new(model: Model<B>, fabric: Arc<dyn Fabric>) -> Self {
        Self { model, fabric, scratch: Mutex::default() }
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch<B>> {
        self.scratch.lock().unwrap_or_else(|poisoned| {
            // A step panicked in the middle of using it.
            self.scratch.clear_poison();
            let mut scratch = poisoned.into_inner();
            *scratch = Scratch::default();
            scratch
        })
    }
}

impl<B: Backend> StepModel for ServedModel<B> {
    type State = State;
    type Snapshot = Snapshot;

    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    fn max_context(&self) -> usize {
        self.model.card().max_context_tokens as usize
    }

    fn block_tokens(&self) -> usize {
        self.model.block_tokens()
    }

    fn max_drafts(&self) -> usize {
        self.model.config().draft_tokens
    }

    fn cache_key(&self) -> u64 {
        self.model.cache_key()
    }

    fn memory(&self) -> Memory {
        let belay_model::Memory { limit, used } = self.model.memory();
        Memory { limit, used }
    }

    fn state_bytes(&self, tokens: usize) -> usize {
        self.model.state_bytes(tokens)
    }

    fn step_bytes(&self, tokens: usize, step: usize) -> usize {
        self.model.step_bytes(tokens, step)
    }

    fn new_state(&self) -> Result<State, StateError> {
        Ok(self.model.new_state())
    }

    fn reserve(&self, state: &mut State, tokens: usize) -> Result<(), StateError> {
        let room = self.model.reserve(state, tokens);
        room.map_err(|NoRoom { needed, free }| StateError::NoRoom { needed, free })
    }

    fn snapshot(&self, state: &State) -> Result<Snapshot, StateError> {
        Ok(self.model.snapshot(state).map_err(step_error)?)
    }

    fn restore(&self, snapshot: &Snapshot) -> Result<State, StateError> {
        Ok(self.model.restore(snapshot))
    }

    fn rewind(&self, state: &mut State, position: usize) -> Result<(), StateError> {
        Ok(self.model.rewind(state, position).map_err(step_error)?)
    }

    fn forward(&self, segments: &mut [Segment<'_, State>], logits: &mut Vec<f32>) -> Result<(), StepError> {
        let mut segments: Vec<belay_model::Segment<'_>> = segments
            .iter_mut()
            .map(|segment| belay_model::Segment {
                state: &mut *segment.state,
                tokens: segment.tokens,
                logits: match segment.wants {
                    Wants::Nothing => Logits::None,
                    Wants::Last => Logits::Last,
                    Wants::All => Logits::All,
                },
                rewindable: segment.rewindable,
            })
            .collect();
        self.model.forward(&mut self.scratch(), &mut segments, &*self.fabric, logits).map_err(step_error)
    }

    fn draft(&self, segments: &mut [Draft<'_, State>], drafts: &mut Vec<u32>) -> Result<(), StepError> {
        let mut segments: Vec<belay_model::Draft<'_>> = segments
            .iter_mut()
            .map(|&mut Draft { ref mut state, token, count }| belay_model::Draft { state, token, count })
            .collect();
        self.model.draft(&mut self.scratch(), &mut segments, &*self.fabric, drafts).map_err(step_error)
    }
}

/// Only a request that the model can never compute is at fault itself; a lost expert or a device without room is not.
fn step_error(error: ForwardError) -> StepError {
    StepError { retryable: !matches!(error, ForwardError::Invalid { .. }), message: error.to_string() }
}

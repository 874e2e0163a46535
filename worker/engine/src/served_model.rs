//! The DeepSeek-V4 forward as the engine steps it: a model, and the fabric that reaches its experts.

use std::sync::{Arc, Mutex};

use belay_backend::{Backend, Fabric};
use belay_model::{ForwardError, Logits, Model, Scratch, State};

use crate::step_model::{Segment, StepError, StepModel};

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
}

impl<B: Backend> StepModel for ServedModel<B> {
    type State = State<B>;

    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    fn max_context(&self) -> usize {
        self.model.card().max_context_tokens as usize
    }

    fn new_state(&self) -> Result<State<B>, StepError> {
        self.model.new_state().map_err(step_error)
    }

    fn state_bytes(&self, tokens: usize) -> usize {
        usize::try_from(self.model.state_bytes_after(tokens)).unwrap_or(usize::MAX)
    }

    fn forward(
        &self,
        segments: &mut [Segment<'_, State<B>>],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError> {
        let mut segments: Vec<belay_model::Segment<'_, B>> = segments
            .iter_mut()
            .map(|segment| belay_model::Segment {
                state: &mut *segment.state,
                tokens: segment.tokens,
                logits: if segment.wants_logits { Logits::Last } else { Logits::None },
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
}

/// Only a request that the model can never compute is at fault itself; a lost expert or a device without room is not.
fn step_error(error: ForwardError) -> StepError {
    StepError { retryable: !matches!(error, ForwardError::Invalid { .. }), message: error.to_string() }
}

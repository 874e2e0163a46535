//! What the engine needs of a model: decode states, and one forward over a batch of segments.

use crate::request::FailureKind;

/// A causal language model that computes one step for several sequences at once.
///
/// A sequence's logits have the same bits whatever else is in the batch, and however its tokens are cut into segments.
/// The engine relies on that for its promise that a request's tokens do not depend on other requests.
pub trait StepModel: Send + Sync + 'static {
    /// What a sequence leaves behind for its next token (keys and values, and what else the model keeps).
    type State: Send + 'static;

    /// Length of a row of logits.
    fn vocab_size(&self) -> usize;

    /// Longest sequence that the model takes.
    fn max_context(&self) -> usize;

    /// The state of an empty sequence.
    ///
    /// # Errors
    /// [`StepError`] if there is no memory for it.
    fn new_state(&self) -> Result<Self::State, StepError>;

    /// Upper bound of the bytes of a state that has taken this many tokens.
    fn state_bytes(&self, tokens: usize) -> usize;

    /// Feeds each segment's tokens to its state. For each segment that wants them, appends the logits after its last
    /// token to `logits`: `[segments that want them, vocab]`, in the order of the segments.
    ///
    /// # Errors
    /// [`StepError`]; the states of all segments are then undefined and must be dropped.
    fn forward(
        &self,
        segments: &mut [Segment<'_, Self::State>],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError>;
}

/// The next tokens of one sequence; never empty.
pub struct Segment<'a, S> {
    /// State before these tokens; afterwards, the state behind them.
    pub state: &'a mut S,
    /// Token ids.
    pub tokens: &'a [u32],
    /// Whether the logits after the last token are wanted.
    pub wants_logits: bool,
}

/// Why a step was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    /// For people.
    pub message: String,
    /// Whether the same request may succeed later or elsewhere.
    pub retryable: bool,
}

impl StepError {
    /// What it means for the requests that took part.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        if self.retryable { FailureKind::Lost } else { FailureKind::Broken }
    }
}

//! What the engine needs of a model: decode states in one pool of memory, and one forward over a batch of segments.

use crate::request::FailureKind;

/// A causal language model that computes one step for several sequences at once.
///
/// A row's logits have the same bits whatever else is in the batch, however its sequence was cut into segments, whether
/// its state went on from a snapshot, and after tokens were taken back. The engine relies on that for its promise that
/// a request's tokens do not depend on other requests.
pub trait StepModel: Send + Sync + 'static {
    /// Decode state of one sequence: what its tokens leave behind for the next one. Gives its memory back when dropped.
    type State: Send + 'static;
    /// A state at the end of a block, to be shared and never changed. What it shares with states counts once.
    type Snapshot: Send + 'static;

    /// Length of a row of logits.
    fn vocab_size(&self) -> usize;

    /// Longest sequence that the model takes.
    fn max_context(&self) -> usize;

    /// Snapshots can be taken at multiples of this many tokens; at least 1.
    fn block_tokens(&self) -> usize;

    /// Most tokens that [`StepModel::draft`] guesses; 0: the model has no draft stage, or it is switched off.
    fn max_drafts(&self) -> usize;

    /// Tells apart caches that must not be mixed: by model, storage format and numerics.
    fn cache_key(&self) -> u64;

    /// Bytes of all states and snapshots.
    fn memory(&self) -> Memory;

    /// Exact bytes that a state alone holds after `tokens` tokens, between steps.
    fn state_bytes(&self, tokens: usize) -> usize;

    /// Exact bytes that a state alone holds in the worst case while `step` more tokens are fed to a sequence of
    /// `tokens`.
    fn step_bytes(&self, tokens: usize, step: usize) -> usize;

    /// The state of an empty sequence.
    ///
    /// # Errors
    /// [`StateError`].
    fn new_state(&self) -> Result<Self::State, StateError>;

    /// Takes the memory that feeding `tokens` more needs, so that the step cannot fail for lack of it. Ends the chance
    /// to take back tokens of the step before.
    ///
    /// # Errors
    /// [`StateError`]; the state has not changed.
    fn reserve(&self, state: &mut Self::State, tokens: usize) -> Result<(), StateError>;

    /// Shares a state that has taken a multiple of [`StepModel::block_tokens`].
    ///
    /// # Errors
    /// [`StateError`]; the state has not changed.
    fn snapshot(&self, state: &Self::State) -> Result<Self::Snapshot, StateError>;

    /// A state that goes on from a snapshot.
    ///
    /// # Errors
    /// [`StateError`].
    fn restore(&self, snapshot: &Self::Snapshot) -> Result<Self::State, StateError>;

    /// Takes back the tokens fed last, down to `position`; only within the last segment, if that was rewindable.
    ///
    /// # Errors
    /// [`StateError::Failed`]; the state must then be dropped.
    fn rewind(&self, state: &mut Self::State, position: usize) -> Result<(), StateError>;

    /// Feeds each segment's tokens to its state, for which room was reserved. Appends the rows of logits that the
    /// segments want to `logits`: `[rows, vocab]`, in the order of the segments.
    ///
    /// # Errors
    /// [`StepError`]; the states of all segments are then undefined and must be dropped.
    fn forward(
        &self,
        segments: &mut [Segment<'_, Self::State>],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError>;

    /// Guesses how each sequence goes on: appends exactly `count` tokens for each to `drafts`. Room for the token and
    /// the guesses was reserved. What the states have taken stays the same.
    ///
    /// # Errors
    /// [`StepError`]; the states can be used as before.
    fn draft(&self, segments: &mut [Draft<'_, Self::State>], drafts: &mut Vec<u32>) -> Result<(), StepError>;
}

/// Bytes of decode states and snapshots. Exact; what several of them share counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// At most.
    pub limit: usize,
    /// Now.
    pub used: usize,
}

/// The next tokens of one sequence; never empty.
pub struct Segment<'a, S> {
    /// State before these tokens; afterwards, the state behind them.
    pub state: &'a mut S,
    /// Token ids.
    pub tokens: &'a [u32],
    /// Behind which of them the logits are wanted.
    pub wants: Wants,
    /// Whether some of these tokens may be taken back; then they are at most [`StepModel::max_drafts`] + 1.
    pub rewindable: bool,
}

/// Rows of logits that a segment wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// None: a piece of a prompt.
    Nothing,
    /// The one behind the last token: what decoding needs.
    Last,
    /// One behind each token.
    All,
}

impl Wants {
    /// How many rows these are for a segment of `tokens` tokens.
    #[must_use]
    pub fn rows(self, tokens: usize) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Last => 1,
            Self::All => tokens,
        }
    }
}

/// A sequence whose next tokens are to be guessed.
pub struct Draft<'a, S> {
    /// Its state; has not taken `token`.
    pub state: &'a mut S,
    /// The token that follows what the state has taken.
    pub token: u32,
    /// How many tokens after that one to guess; 1 to [`StepModel::max_drafts`].
    pub count: usize,
}

/// Why a state could not be made or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The memory is in use.
    #[error("no room for {needed} bytes of decode state: {free} are free")]
    NoRoom {
        /// Bytes that were asked for.
        needed: usize,
        /// Bytes that nobody holds.
        free: usize,
    },
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] StepError),
}

impl StateError {
    /// What it means for the request.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NoRoom { .. } => FailureKind::Lost,
            Self::Failed(error) => error.kind(),
        }
    }
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

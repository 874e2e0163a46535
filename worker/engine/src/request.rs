//! What a caller asks of the engine, and what it hears back.

/// One generation request. The edges (gRPC, command line) translate into this and nothing else.
#[derive(Clone, Debug)]
pub struct Request {
    /// For logs only.
    pub id: String,
    /// Token ids of the whole prompt; special tokens included, nothing is added.
    pub prompt: Vec<u32>,
    /// Tokens of this very request that another worker already produced; they count as produced. Their text is not
    /// sent again.
    pub resume: Vec<u32>,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// When to end.
    pub stop: Stop,
}

/// How to choose the next token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// In (0, 1].
    pub top_p: f32,
    /// 0 is off.
    pub top_k: u32,
    /// The same seed, prompt and sampling give the same tokens whatever else is in the batch.
    pub seed: u64,
}

/// When to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stop {
    /// `None`: as many as the context holds.
    pub max_tokens: Option<u32>,
    /// Ends before the first of these; the text does not contain it.
    pub strings: Vec<String>,
    /// Ends at the first of these tokens.
    pub ids: Vec<u32>,
    /// Go on after end-of-sequence.
    pub ignore_eos: bool,
}

/// What a request's sink hears, in order: any number of `Tokens`, then exactly one `Finished` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// New tokens. `text` is valid UTF-8 and may be empty while a character or a stop string is undecided.
    ///
    /// The token `</think>` is the last one of its event, and all text up to it is out with that event.
    Tokens {
        /// Token ids, end-of-sequence included.
        ids: Vec<u32>,
        /// Text that became certain with these tokens.
        text: String,
    },
    /// The last event of a request that went well.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens produced, resumed ones included.
        completion_tokens: u32,
    },
    /// The last event of a request that did not. `retryable`: another worker, or this one later, can go on with it.
    Failed {
        /// For people.
        message: String,
        /// Whether the request itself is sound.
        retryable: bool,
    },
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End-of-sequence, a stop string or a stop id.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
}

/// Where a request's events go. Returning `false` cancels the request.
pub type Sink = Box<dyn FnMut(Event) -> bool + Send>;

/// Why a request was not taken.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SubmitError {
    /// The request can never succeed here; names the field.
    #[error("{field}: {message}")]
    Invalid {
        /// Field of the request.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The queue is full.
    #[error("{queued} requests are waiting already")]
    Overloaded {
        /// Requests that wait.
        queued: usize,
    },
    /// The engine is draining or has stopped.
    #[error("this worker takes no new requests: {0}")]
    Unavailable(String),
}

//! What a caller asks of the engine, and what it hears back.

use std::time::{Duration, Instant};

/// One generation request. The edges (gRPC, command line) translate into this and nothing else.
///
/// Several answers to one prompt are several requests, each with a seed of its own.
#[derive(Clone, Debug, Default)]
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
    /// What the output must look like.
    pub constraint: Option<Constraint>,
    /// Report the log-probability of each produced token, and of so many most likely ones in its place.
    pub logprobs: Option<u32>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<u32>,
    /// Lower values are served first and preempted last.
    pub priority: i32,
    /// When the request ends unfinished.
    pub deadline: Option<Instant>,
    /// Requests share cached prefixes only with requests of the same salt.
    pub cache_salt: String,
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
    /// Tokens less likely than this share of the likeliest one are not drawn; in [0, 1], 0 is off.
    pub min_p: f32,
    /// Subtracted once from the logit of every token that was produced; in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time it was produced; in [-2, 2].
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens of prompt and output; in (0, 2], 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens; in [-100, 100], ids ascending.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed, prompt and sampling give the same tokens whatever else is in the batch.
    pub seed: u64,
}

impl Default for Sampling {
    /// The model's own distribution, seed 0.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Always the most likely token.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// When to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stop {
    /// `None`: as many as the context holds. 0 only scores the prompt.
    pub max_tokens: Option<u32>,
    /// Neither end-of-sequence nor a stop id ends the output before so many tokens.
    pub min_tokens: u32,
    /// Ends before the first of these; the text does not contain it.
    pub strings: Vec<String>,
    /// Ends at the first of these tokens.
    pub ids: Vec<u32>,
    /// Go on after end-of-sequence.
    pub ignore_eos: bool,
}

/// What the output must look like: tokens that cannot lead there are never chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraint {
    /// The language.
    pub grammar: Grammar,
    /// The output is free up to and including this token (the end of the reasoning).
    pub after: Option<u32>,
}

/// A set of texts.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that follows a schema.
    JsonSchema(serde_json::Value),
    /// Texts that a regular expression matches as a whole.
    Regex(String),
    /// A context-free grammar in llguidance's dialect of Lark.
    Lark(String),
}

/// What a request's sink hears, in order: `Prompt` if it asked for it, any number of `Tokens`, then exactly one
/// `Finished` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Log-probabilities of the prompt's tokens from the second on. Comes before any token.
    Prompt {
        /// `prompt tokens − 1` of them.
        logprobs: Vec<TokenLogprobs>,
    },
    /// New tokens. `text` is valid UTF-8 and may be empty while a character or a stop string is undecided.
    ///
    /// The token `</think>` is the last one of its event, and all text up to it is out with that event.
    Tokens {
        /// Token ids, end-of-sequence included.
        ids: Vec<u32>,
        /// Text that became certain with these tokens.
        text: String,
        /// One for each id, if asked for.
        logprobs: Vec<TokenLogprobs>,
    },
    /// The last event of a request that went well.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The last event of a request that did not.
    Failed {
        /// For people.
        message: String,
        /// What became of it.
        kind: FailureKind,
    },
}

/// A token and what was likely in its place: natural logarithms of the model's own distribution, before temperature,
/// penalties and masks.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The most likely tokens and theirs, descending; the lower id first among equals.
    pub top: Vec<(u32, f32)>,
}

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens produced, resumed ones included.
    pub completion_tokens: u32,
    /// Tokens of the prompt whose state was found in the prefix cache.
    pub cached_tokens: u32,
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End-of-sequence.
    EndOfSequence,
    /// One of the request's stop strings.
    StopString(String),
    /// One of the request's stop ids.
    StopId(u32),
    /// The constraint admits nothing more.
    Complete,
    /// `max_tokens` or the end of the context.
    Length,
}

impl FinishReason {
    /// `stop` or `length`, as clients know them.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Length => "length",
            _ => "stop",
        }
    }
}

/// What kind of end a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The caller ended it.
    Cancelled,
    /// Its time is over.
    DeadlineExceeded,
    /// The request is sound: another worker, or this one later, can go on with it.
    Lost,
    /// The same request would fail everywhere.
    Broken,
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
        /// When there is likely to be a place; at least a second.
        retry_after: Duration,
    },
    /// The engine is draining or has stopped.
    #[error("this worker takes no new requests: {0}")]
    Unavailable(String),
}

//! Sessions, batching, sampler, tokenizer, chat format: an engine that knows neither Kubernetes nor gRPC.
#![forbid(unsafe_code)]

pub mod chat;
mod chooser;
mod detokenizer;
mod engine;
mod exp;
mod logprobs;
mod outlet;
mod output;
mod penalties;
mod ranking;
mod request;
mod sampler;
mod schedule;
mod served_model;
mod session;
mod stats;
mod step_loop;
mod step_model;
mod stop;
mod tokenizer;
mod validate;

pub use chooser::{Choice, Chooser};
pub use detokenizer::Detokenizer;
pub use engine::{Engine, EngineConfig, SessionKey};
pub use logprobs::token_logprobs;
pub use output::Output;
pub use request::{
    Constraint, Event, FailureKind, FinishReason, Grammar, Request, Sampling, Sink, Stop, SubmitError,
    TokenLogprobs, Usage,
};
pub use sampler::{SampleError, Sampler};
pub use served_model::ServedModel;
pub use stats::Stats;
pub use step_model::{Draft, Memory, Segment, StateError, StepError, StepModel, Wants};
pub use stop::StopMatcher;
pub use tokenizer::{Tokenizer, TokenizerError};

//! Sessions, batching, sampler, tokenizer, chat format: an engine that knows neither Kubernetes nor gRPC.
#![forbid(unsafe_code)]

mod admission;
pub mod chat;
mod chooser;
mod constraint;
mod detokenizer;
mod engine;
mod exp;
mod logprobs;
mod observer;
mod outlet;
mod output;
mod pace;
mod penalties;
mod prefix_cache;
mod ranking;
mod request;
mod sampler;
pub mod schedule;
mod served_model;
mod session;
mod stats;
mod step;
mod step_loop;
mod step_model;
mod stop;
mod tokenizer;
mod validate;

pub use chooser::{Choice, Chooser};
pub use constraint::bounded_schema;
pub use detokenizer::Detokenizer;
pub use engine::{Engine, EngineConfig, SessionKey};
pub use logprobs::token_logprobs;
pub use observer::{End, Observer, RequestReport, StepReport};
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

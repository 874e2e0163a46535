//! Sessions, batching, sampler, tokenizer, chat format: an engine that knows neither Kubernetes nor gRPC.
#![forbid(unsafe_code)]

pub mod chat;
mod detokenizer;
mod output;
mod request;
mod sampler;
mod stop;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use output::Output;
pub use request::{Event, FinishReason, Request, Sampling, Sink, Stop, SubmitError};
pub use sampler::{SampleError, Sampler};
pub use stop::StopMatcher;
pub use tokenizer::{Tokenizer, TokenizerError};

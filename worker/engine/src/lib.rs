//! Sessions, batching, sampler, tokenizer, chat format: an engine that knows neither Kubernetes nor gRPC.
#![forbid(unsafe_code)]

mod request;

pub use request::{Event, FinishReason, Request, Sampling, Sink, Stop, SubmitError};

//! Sessions, batching, sampler, tokenizer, chat format: an engine that knows neither Kubernetes nor gRPC.
#![forbid(unsafe_code)]

//! The gateway over real sockets, with a test double of the worker behind its gRPC service.
#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod answers;
mod anthropic;
mod discovery;
mod fuzz;
mod grpc;
mod keys;
mod life;
mod measurements;
mod openai;
mod probing;
mod revisions;
mod shutdown;
mod support;
mod waiting;

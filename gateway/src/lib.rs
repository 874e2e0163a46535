//! The gateway: OpenAI HTTP and gRPC in, worker gRPC out.
#![forbid(unsafe_code)]

//! The worker process: one shard of the experts, all dense weights, gRPC services.
#![forbid(unsafe_code)]

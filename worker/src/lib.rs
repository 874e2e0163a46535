//! The worker process: one shard of the experts, all dense weights, gRPC services.
#![forbid(unsafe_code)]

pub mod ask;
pub mod commands;
pub mod config;
pub mod context;
pub mod devices;
mod engine_metrics;
mod group_life;
pub mod grpc;
pub mod http;
pub mod lifecycle;
pub mod loader;
pub mod logs;
mod meeting;
pub mod metrics;
pub mod placement;
pub mod ranks;
pub mod reply;
mod room;
pub mod server;
pub mod state;
pub mod translate;

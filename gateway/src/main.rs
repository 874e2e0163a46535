//! `belay-gateway`: OpenAI HTTP and gRPC in, worker gRPC out.
use belay_gateway::{config::Config, run, telemetry};
use clap::Parser;

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    telemetry::start(config.log_format);
    run::run(config).await
}

//! `belay-worker serve`.

use std::sync::Arc;
use std::time::Duration;

use belay_backend::Backend;
use belay_cpu::CpuBackend;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::ServeConfig;
use crate::server::Worker;

/// Serves until SIGTERM or SIGINT, drains, and returns; a second signal cuts the drain short.
///
/// # Errors
/// Options, addresses, or a task that ended by itself.
pub fn run(config: ServeConfig) -> anyhow::Result<()> {
    config.validate()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(config));
    // a load that is still reading can't be interrupted, and nobody waits for it any more
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(config: ServeConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let backend = Arc::new(CpuBackend::detect());
    tracing::info!(device = backend.describe(), "device");
    let worker = Worker::start(config, backend).await?;
    let mut signals = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Box::pin(worker.run_until(&mut signals)).await
}

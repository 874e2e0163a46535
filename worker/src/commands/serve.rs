//! `belay-worker serve`.

use std::sync::Arc;
use std::time::Duration;

use belay_backend::Backend;
use belay_cpu::CpuBackend;
use belay_telemetry::Exporter;
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
    let traces = Exporter::start("belay-worker")?;
    let worker = Worker::start(config, backend).await?;
    let mut signals = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let ended = Box::pin(worker.run_until(&mut signals)).await;
    if let Some(traces) = traces {
        // what is not sent in this time is not worth a slow end
        let stopping = tokio::task::spawn_blocking(move || traces.stop());
        let _ = tokio::time::timeout(Duration::from_secs(5), stopping).await;
    }
    ended
}

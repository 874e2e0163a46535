//! `belay-worker serve`.

use std::time::Duration;

use belay_backend::Backend;
use belay_telemetry::Exporter;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Device, ServeConfig};
use crate::devices::{self, Devices};
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

async fn start<B: Backend>(config: ServeConfig, devices: Devices<B>) -> anyhow::Result<Worker> {
    devices.describe().for_each(|device| tracing::info!(device, "device"));
    Worker::start(config, devices).await
}

async fn serve(config: ServeConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let traces = Exporter::start("belay-worker")?;
    let worker = match config.device.kind {
        Device::Cpu => {
            let devices = Devices::one(devices::cpu(config.device.cpu)?);
            start(config, devices).await?
        }
        Device::Ascend => {
            let devices = devices::ascend(&config.device, config.devices_per_worker)?;
            start(config, devices).await?
        }
    };
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

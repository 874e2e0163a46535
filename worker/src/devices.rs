//! What the ranks of a worker compute on.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use belay_ascend::{AscendBackend, AscendOptions, DeviceLimits, Library, Runtime, Search};
use belay_backend::Backend;

use crate::config::DeviceOptions;

/// The devices of a worker: the first one has the dense weights, and ranks go round over all of them.
pub struct Devices<B>(Arc<[Arc<B>]>);

impl<B> Clone for Devices<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B: Backend> Devices<B> {
    /// All ranks on one device.
    #[must_use]
    pub fn one(device: B) -> Self {
        Self(Arc::new([Arc::new(device)]))
    }

    /// `None` without any.
    #[must_use]
    pub fn of(devices: Vec<B>) -> Option<Self> {
        (!devices.is_empty()).then(|| Self(devices.into_iter().map(Arc::new).collect()))
    }

    /// The one with the dense weights.
    #[must_use]
    pub fn dense(&self) -> &Arc<B> {
        &self.0[0]
    }

    /// That of a rank of this worker.
    #[must_use]
    pub fn of_rank(&self, rank: u32) -> &Arc<B> {
        &self.0[rank as usize % self.0.len()]
    }

    /// Why one of them can do nothing more, once that is so.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.0.iter().find_map(|device| device.lost())
    }

    /// What they are, for the log.
    pub fn describe(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|device| device.describe())
    }
}

/// As many NPUs as there are ranks: those that the container was given, numbered from 0.
///
/// # Errors
/// CANN cannot be loaded, there are too few devices, or the chip is another one than was said.
pub fn ascend(asked: &DeviceOptions, ranks: u32) -> anyhow::Result<Devices<AscendBackend>> {
    let library = Library::open(&Search::from_env())?;
    tracing::info!(report = %library.report(), "cann");
    let runtime = Runtime::start(library)?;
    let found = runtime.device_count()?;
    ensure!(
        ranks <= found,
        "{ranks} ranks need {ranks} NPUs, and there are {found} (BELAY_DEVICES_PER_WORKER)"
    );
    let options = AscendOptions { products: asked.ascend_products.into(), ..AscendOptions::default() };
    let mut devices = Vec::new();
    for index in 0..ranks {
        let device = belay_ascend::Device::open(&runtime, index, DeviceLimits::default())
            .with_context(|| format!("device {index}"))?;
        let found = device.chip().generation.as_str();
        if let Some(expected) = asked.ascend_chip.as_deref().filter(|expected| !expected.is_empty()) {
            ensure!(
                expected == found,
                "BELAY_ASCEND_CHIP: the deployment is made for {expected}, device {index} is {} ({found})",
                device.soc()
            );
        }
        devices.push(AscendBackend::new(&device, options).with_context(|| format!("device {index}"))?);
    }
    Devices::of(devices).context("no device")
}

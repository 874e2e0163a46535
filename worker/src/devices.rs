//! What the ranks of a worker compute on.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use belay_ascend::{AscendBackend, AscendOptions, DeviceLimits, Library, Npus, Runtime, Search};
use belay_backend::{Backend, Collective, DeviceExperts};
use belay_cpu::{CpuBackend, Level};
use belay_fabric::RowFormat;

use crate::config::{AscendRows, CpuOptions, DeviceOptions};

/// Makes the ranks of a worker exchange rows with those of others by themselves: devices and experts by rank, channels of a
/// row, and the form in which rows travel.
pub type MakeCollective<B> =
    fn(Vec<(Arc<B>, Arc<dyn DeviceExperts<B>>)>, usize, RowFormat) -> anyhow::Result<Arc<dyn Collective>>;

/// The devices of a worker: the first one has the dense weights, and ranks go round over all of them.
pub struct Devices<B> {
    all: Arc<[Arc<B>]>,
    collective: Option<MakeCollective<B>>,
}

impl<B> Clone for Devices<B> {
    fn clone(&self) -> Self {
        Self { all: Arc::clone(&self.all), collective: self.collective }
    }
}

impl<B: Backend> Devices<B> {
    /// All ranks on one device.
    #[must_use]
    pub fn one(device: B) -> Self {
        Self { all: Arc::new([Arc::new(device)]), collective: None }
    }

    /// `None` without any.
    #[must_use]
    pub fn of(devices: Vec<B>) -> Option<Self> {
        let all: Arc<[Arc<B>]> = devices.into_iter().map(Arc::new).collect();
        (!all.is_empty()).then_some(Self { all, collective: None })
    }

    /// With the way in which they exchange rows by themselves.
    #[must_use]
    pub fn with_collective(mut self, make: MakeCollective<B>) -> Self {
        self.collective = Some(make);
        self
    }

    /// How they exchange rows by themselves, if they can.
    #[must_use]
    pub fn collective(&self) -> Option<MakeCollective<B>> {
        self.collective
    }

    /// The one with the dense weights.
    #[must_use]
    pub fn dense(&self) -> &Arc<B> {
        &self.all[0]
    }

    /// That of a rank of this worker.
    #[must_use]
    pub fn of_rank(&self, rank: u32) -> &Arc<B> {
        &self.all[rank as usize % self.all.len()]
    }

    /// Why one of them can do nothing more, once that is so.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.all.iter().find_map(|device| device.lost())
    }

    /// Fused operators, and whether the first device uses them; the others are of the same chip.
    #[must_use]
    pub fn fused(&self) -> Vec<(&'static str, bool)> {
        self.dense().fused()
    }

    /// What they are, for the log.
    pub fn describe(&self) -> impl Iterator<Item = String> {
        self.all.iter().map(|device| device.describe())
    }
}

/// The CPUs of this process.
///
/// # Errors
/// The instruction set that was asked for is not there.
pub fn cpu(options: CpuOptions) -> anyhow::Result<CpuBackend> {
    let backend = match options.isa {
        None => CpuBackend::detect(),
        Some(level) => {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            CpuBackend::with(level, threads).with_context(|| {
                let levels = Level::ALL.into_iter().filter(|level| level.is_available());
                let levels = levels.map(|level| level.to_string()).collect::<Vec<_>>().join(", ");
                format!("--isa {level} (BELAY_ISA): this machine has {levels}")
            })?
        }
    };
    Ok(backend.with_products(options.cpu_products.into()).with_weights(options.cpu_weights.into()))
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
    let devices = Devices::of(devices).context("no device")?;
    Ok(match asked.ascend_rows {
        AscendRows::Hccl => devices.with_collective(npus),
        AscendRows::Tcp => devices,
    })
}

fn npus(
    ranks: Vec<(Arc<AscendBackend>, Arc<dyn DeviceExperts<AscendBackend>>)>,
    hidden: usize,
    format: RowFormat,
) -> anyhow::Result<Arc<dyn Collective>> {
    // rows in FP8 are rounded before they are sent, and travel as f32
    Ok(Arc::new(Npus::new(ranks, hidden, format == RowFormat::Bf16)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CpuProducts, CpuWeights};

    #[test]
    fn an_instruction_set_products_and_the_place_of_weights_can_be_forced() {
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let (cpu_products, cpu_weights) = (CpuProducts::Bf16, CpuWeights::Mapped);
            let options = CpuOptions { isa: Some(level), cpu_products, cpu_weights };
            let described = cpu(options).unwrap().describe();
            let expected = format!("cpu, {level} kernels, bf16 products, mapped weights, ");
            assert!(described.starts_with(&expected), "{described}");
        }
    }

    #[test]
    fn an_instruction_set_that_is_not_there_is_named() {
        for level in Level::ALL.into_iter().filter(|level| !level.is_available()) {
            let options = CpuOptions { isa: Some(level), ..CpuOptions::default() };
            let error = cpu(options).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(&level.to_string()) && error.contains("scalar"), "{error}");
        }
    }
}

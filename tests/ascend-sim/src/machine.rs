//! The machine between `aclInit` and `aclFinalize`: its devices, their faults, and limits.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::codes;
use crate::config::{Chip, Config};
use crate::failure::{Outcome, fail};
use crate::heap::Heap;
use crate::lock;

static MACHINE: Mutex<Option<Arc<Machine>>> = Mutex::new(None);
// allocations that were alive when the last machine ended
static LEFT: AtomicU64 = AtomicU64::new(0);

/// One device.
pub struct Device {
    /// Its number in this process.
    pub id: usize,
    /// Its memory; held locked while a task runs, so a device runs one task at a time.
    pub heap: Mutex<Heap>,
    faults: Mutex<Faults>,
    // uses by aclrtSetDevice, and the handle of the default context while there are any
    pub(crate) uses: Mutex<(u64, usize)>,
}

#[derive(Default)]
struct Faults {
    lost: Option<i32>,
    hangs_until: Option<Instant>,
}

impl Device {
    /// Fails while the device is lost.
    pub fn check(&self) -> Outcome {
        match lock(&self.faults).lost {
            Some(code) => fail(code, format!("device {} is lost", self.id)),
            None => Ok(()),
        }
    }

    /// Loses the device: what runs on it fails with `code`.
    pub fn lose(&self, code: i32) {
        lock(&self.faults).lost = Some(code);
    }

    /// Stops the device's streams for a while.
    pub fn hang(&self, time: Duration) {
        lock(&self.faults).hangs_until = Some(Instant::now() + time);
    }

    /// Ends loss and hang.
    pub fn heal(&self) {
        *lock(&self.faults) = Faults::default();
    }

    /// Whether its streams stand still now.
    pub fn hangs(&self) -> bool {
        lock(&self.faults).hangs_until.is_some_and(|until| Instant::now() < until)
    }
}

/// The machine.
pub struct Machine {
    /// What it is.
    pub config: Config,
    /// Its family of chips.
    pub chip: Chip,
    /// Its devices.
    pub devices: Vec<Arc<Device>>,
    /// Pairs (device, peer) whose access was enabled.
    pub peers: Mutex<HashSet<(usize, usize)>>,
    execute_seconds: AtomicU32,
    wait_seconds: AtomicU32,
    hccl_delay_us: AtomicU64,
}

impl Machine {
    pub(crate) fn new(config: Config, chip: Chip) -> Self {
        // documented: 32 bytes on top of each allocation, but not on 950
        let padding = if chip.is_950() { 0 } else { 32 };
        let devices = (0..config.devices as usize)
            .map(|id| {
                Arc::new(Device {
                    id,
                    heap: Mutex::new(Heap::new(id, config.memory_bytes, padding)),
                    faults: Mutex::default(),
                    uses: Mutex::default(),
                })
            })
            .collect();
        Self {
            config,
            chip,
            devices,
            peers: Mutex::default(),
            execute_seconds: AtomicU32::new(0),
            wait_seconds: AtomicU32::new(0),
            hccl_delay_us: AtomicU64::new(0),
        }
    }

    /// The device of that number.
    pub fn device(&self, id: i32) -> Outcome<&Arc<Device>> {
        match usize::try_from(id).ok().and_then(|id| self.devices.get(id)) {
            Some(device) => Ok(device),
            None => {
                fail(codes::RT_INVALID_DEVICE, format!("no device {id}, there are {}", self.devices.len()))
            }
        }
    }

    /// The time that an op may run; none when unlimited.
    pub fn execute_limit(&self) -> Option<Duration> {
        limit(&self.execute_seconds)
    }

    /// The time that a stream may wait for an event; none when unlimited.
    pub fn wait_limit(&self) -> Option<Duration> {
        limit(&self.wait_seconds)
    }

    /// The time that each collective waits before it begins.
    pub fn hccl_delay(&self) -> Duration {
        Duration::from_micros(self.hccl_delay_us.load(Ordering::Relaxed))
    }

    /// Sets the time that each collective waits before it begins.
    pub fn set_hccl_delay(&self, microseconds: u64) {
        self.hccl_delay_us.store(microseconds, Ordering::Relaxed);
    }

    /// Sets the time that an op may run in seconds, 0 = unlimited.
    pub fn set_execute_limit(&self, seconds: u32) {
        self.execute_seconds.store(seconds, Ordering::Relaxed);
    }

    /// Sets the time that a stream may wait for an event in seconds, 0 = unlimited.
    pub fn set_wait_limit(&self, seconds: u32) {
        self.wait_seconds.store(seconds, Ordering::Relaxed);
    }
}

fn limit(seconds: &AtomicU32) -> Option<Duration> {
    match seconds.load(Ordering::Relaxed) {
        0 => None,
        seconds => Some(Duration::from_secs(seconds.into())),
    }
}

/// The machine, between init and finalize.
pub fn machine() -> Outcome<Arc<Machine>> {
    match &*lock(&MACHINE) {
        Some(machine) => Ok(machine.clone()),
        None => fail(codes::UNINITIALIZED, "aclInit was not called"),
    }
}

/// Starts the machine that the environment describes.
pub fn start() -> Outcome {
    let mut slot = lock(&MACHINE);
    if slot.is_some() {
        return fail(codes::REPEAT_INITIALIZE, "aclInit was called before");
    }
    let config = Config::from_env()?;
    let Some(chip) = Chip::of(&config.soc) else {
        return fail(codes::INVALID_PARAM, format!("unknown soc {:?}", config.soc));
    };
    LEFT.store(0, Ordering::Relaxed);
    crate::stream::STREAMS.forget_leaks();
    crate::hccl::comm::COMMS.forget_leaks();
    let machine = Arc::new(Machine::new(config, chip));
    crate::command::obey(&machine);
    *slot = Some(machine);
    Ok(())
}

/// Ends the machine; contexts and their streams go first, while it is still there to run their work on.
pub fn stop() -> Outcome {
    if lock(&MACHINE).is_none() {
        return fail(codes::REPEAT_FINALIZE, "aclFinalize without aclInit");
    }
    crate::context::release_all();
    crate::hccl::comm::COMMS.release(None);
    crate::hccl::root::end_all();
    LEFT.store(live_memory(), Ordering::Relaxed);
    *lock(&MACHINE) = None;
    Ok(())
}

/// Allocations alive on all devices, those included that a reset or the end of the machine had to release.
pub fn live_memory() -> u64 {
    match &*lock(&MACHINE) {
        Some(machine) => machine.devices.iter().map(|device| lock(&device.heap).live()).sum(),
        None => LEFT.load(Ordering::Relaxed),
    }
}

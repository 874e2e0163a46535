//! One NPU of this process.

use std::sync::Arc;
use std::time::Duration;

use crate::context::restore_binding;
use crate::ffi::memory_attribute;
use crate::{Chip, Current, Error, Result, Runtime, library};

/// Limits that the device itself sets to its work, so that nothing waits there for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// For a stream that waits for an event or a peer. Whole seconds, at least 1.
    pub wait: Duration,
    /// For one kernel; `None` leaves the default of the runtime. Whole seconds, at least 1.
    pub kernel: Option<Duration>,
}

impl Default for DeviceLimits {
    fn default() -> Self {
        Self { wait: Duration::from_secs(60), kernel: None }
    }
}

/// A device that this process uses. Cheap to clone; the last one that goes, with all that was made on it, lets go of
/// the device.
#[derive(Clone, Debug)]
pub struct Device {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    runtime: Runtime,
    index: i32,
    soc: String,
    chip: &'static Chip,
}

impl Device {
    /// Takes a device, by its number in this process (`ASCEND_RT_VISIBLE_DEVICES` renumbers them from 0).
    ///
    /// # Errors
    /// [`Error::Call`] if the runtime refuses; [`Error::UnknownChip`].
    pub fn open(runtime: &Runtime, index: u32, limits: DeviceLimits) -> Result<Self> {
        let symbols = runtime.symbols();
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        // SAFETY: any number may be asked for.
        let code = unsafe { (symbols.aclrtSetDevice)(index) };
        runtime.check("aclrtSetDevice", code)?;
        // from here on an early return has to let go of the device
        let taken = Taken { runtime, index };

        // SAFETY: takes nothing; gives null or a string.
        let name = unsafe { (symbols.aclrtGetSocName)() };
        library_object(runtime, "aclrtGetSocName", name)?;
        // SAFETY: a string of the runtime that does not change.
        let soc = unsafe { library::text(name) };
        let Some(chip) = Chip::by_soc_name(&soc) else {
            return Err(Error::UnknownChip { soc, known: Chip::known() });
        };

        if let Some(set) = symbols.aclrtSetOpWaitTimeout {
            // SAFETY: a number of seconds for the device that is current on this thread.
            let code = unsafe { set(seconds(limits.wait)) };
            runtime.check("aclrtSetOpWaitTimeout", code)?;
        }
        if let (Some(set), Some(limit)) = (symbols.aclrtSetOpExecuteTimeOut, limits.kernel) {
            // SAFETY: as above.
            let code = unsafe { set(seconds(limit)) };
            runtime.check("aclrtSetOpExecuteTimeOut", code)?;
        }

        std::mem::forget(taken);
        restore_binding(runtime);
        Ok(Self { inner: Arc::new(Inner { runtime: runtime.clone(), index, soc, chip }) })
    }

    /// The runtime it belongs to.
    pub fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    /// Its number in this process.
    pub fn index(&self) -> i32 {
        self.inner.index
    }

    /// Name of the chip as the runtime gives it, like `Ascend910B3`.
    pub fn soc(&self) -> &str {
        &self.inner.soc
    }

    /// What the chip can do.
    pub fn chip(&self) -> &'static Chip {
        self.inner.chip
    }

    /// Free and total bytes of the memory of the device that the thread is bound to.
    ///
    /// # Errors
    /// [`Error::WrongContext`], [`Error::Call`].
    pub fn memory(&self, current: &Current) -> Result<Memory> {
        if !Arc::ptr_eq(&current.context().device().inner, &self.inner) {
            return Err(Error::WrongContext { call: "aclrtGetMemInfo" });
        }
        current.hold()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both numbers are alive during the call.
        let code = unsafe {
            (self.inner.runtime.symbols().aclrtGetMemInfo)(memory_attribute::HBM, &mut free, &mut total)
        };
        self.inner.runtime.check("aclrtGetMemInfo", code)?;
        Ok(Memory { free, total })
    }
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Not in use.
    pub free: usize,
    /// All of it.
    pub total: usize,
}

/// Whole seconds, at least 1: 0 may stand for no limit.
fn seconds(limit: Duration) -> u32 {
    u32::try_from(limit.as_secs()).unwrap_or(u32::MAX).max(1)
}

fn library_object<T>(runtime: &Runtime, call: &'static str, object: *const T) -> Result<()> {
    runtime.library().check_object(call, object.cast_mut())?;
    Ok(())
}

/// A device that was set and is not yet anybody's.
struct Taken<'a> {
    runtime: &'a Runtime,
    index: i32,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        reset(self.runtime, self.index);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        reset(&self.runtime, self.index);
    }
}

fn reset(runtime: &Runtime, index: i32) {
    // SAFETY: the device was set once for this call; contexts, and all that is made in them, hold on to the device.
    let code = unsafe { (runtime.symbols().aclrtResetDevice)(index) };
    runtime.released("aclrtResetDevice", code);
    restore_binding(runtime);
}

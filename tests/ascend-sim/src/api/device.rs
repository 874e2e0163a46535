//! Devices, contexts, limits.

use std::ffi::c_void;
use std::time::Duration;

use crate::codes;
use crate::context;
use crate::failure::{Outcome, fail};
use crate::lock;
use crate::machine::machine;
use crate::out::{needed, put};
use crate::stream::synchronize_device;
use crate::symbols::export;

const BAD: i32 = codes::INVALID_PARAM;

/// A time-out argument in milliseconds: -1 = none; the documentation allows -1 and positive numbers.
pub(crate) fn time_limit(milliseconds: i32) -> Outcome<Option<Duration>> {
    match milliseconds {
        -1 => Ok(None),
        1.. => Ok(Some(Duration::from_millis(milliseconds as u64))),
        _ => fail(codes::RT_PARAM_INVALID, format!("time-out {milliseconds}")),
    }
}

export! {
    /// Makes the device's default context current on this thread; counts one use.
    status fn aclrtSetDevice(device: i32) { context::set_device(device) }

    /// Takes one use back; the last one releases what is on the device.
    status fn aclrtResetDevice(device: i32) { context::reset_device(device, false) }

    /// Releases what is on the device, whatever the uses.
    status fn aclrtResetDeviceForce(device: i32) { context::reset_device(device, true) }

    /// The device of the current context.
    status fn aclrtGetDevice(device: *mut i32) {
        needed(device, BAD, "device")?;
        let id = context::current()?.device.id as i32;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(device, id, BAD, "device") }
    }

    /// The number of devices.
    status fn aclrtGetDeviceCount(count: *mut u32) {
        needed(count, BAD, "count")?;
        let devices = machine()?.devices.len() as u32;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(count, devices, BAD, "count") }
    }

    /// Waits for all streams of the device.
    status fn aclrtSynchronizeDevice() { synchronize_device(None) }

    /// Waits for all streams of the device for at most that many milliseconds.
    status fn aclrtSynchronizeDeviceWithTimeout(milliseconds: i32) {
        synchronize_device(time_limit(milliseconds)?)
    }

    /// 1: the caller runs on the host.
    status fn aclrtGetRunMode(mode: *mut i32) {
        // SAFETY: writable, by the contract of the function.
        unsafe { put(mode, 1, BAD, "mode") }
    }

    /// Makes a context on the device and makes it current.
    status fn aclrtCreateContext(context: *mut *mut c_void, device: i32) {
        needed(context, BAD, "context")?;
        let handle = context::create(device)?;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(context, handle, BAD, "context") }
    }

    /// Destroys a context of `aclrtCreateContext`.
    status fn aclrtDestroyContext(context: *mut c_void) { context::destroy(context) }

    /// Makes a context current on this thread.
    status fn aclrtSetCurrentContext(context: *mut c_void) { context::set_current(context) }

    /// The context of this thread.
    status fn aclrtGetCurrentContext(context: *mut *mut c_void) {
        needed(context, BAD, "context")?;
        let handle = std::ptr::without_provenance_mut(context::current()?.handle);
        // SAFETY: writable, by the contract of the function.
        unsafe { put(context, handle, BAD, "context") }
    }

    /// Limits the time an op may run in seconds, 0 = unlimited.
    status fn aclrtSetOpExecuteTimeOut(seconds: u32) {
        machine()?.set_execute_limit(seconds);
        Ok(())
    }

    /// Limits the time a stream waits for an event in seconds, 0 = unlimited.
    status fn aclrtSetOpWaitTimeout(seconds: u32) {
        machine()?.set_wait_limit(seconds);
        Ok(())
    }

    /// 0 for a device in order, 1 for a lost one.
    status fn aclrtQueryDeviceStatus(device: i32, status: *mut i32) {
        let lost = machine()?.device(device)?.check().is_err();
        // SAFETY: writable, by the contract of the function.
        unsafe { put(status, i32::from(lost), BAD, "status") }
    }

    /// An attribute of a device.
    status fn aclrtGetDeviceInfo(device: u32, attribute: i32, value: *mut i64) {
        let machine = machine()?;
        let device = machine.device(device as i32)?;
        let (chip, id) = (machine.chip, device.id as i64);
        let superpod = chip != crate::config::Chip::A2;
        let answer = match attribute {
            102 => chip.cube_cores(&machine.config.soc),
            // two vector cores to a cube core
            201 => 2 * chip.cube_cores(&machine.config.soc),
            301 => machine.config.memory_bytes as i64,
            403 if superpod => id,
            404 | 405 if superpod => 0,
            601 => chip.arch(),
            _ => return fail(codes::RT_FEATURE_NOT_SUPPORT, format!("device attribute {attribute}")),
        };
        // SAFETY: writable, by the contract of the function.
        unsafe { put(value, answer, BAD, "value") }
    }

    /// Whether a device can reach another's memory: all can, none itself.
    status fn aclrtDeviceCanAccessPeer(can: *mut i32, device: i32, peer: i32) {
        let machine = machine()?;
        machine.device(device)?;
        machine.device(peer)?;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(can, i32::from(device != peer), BAD, "can") }
    }

    /// Lets the current device reach another's memory.
    status fn aclrtDeviceEnablePeerAccess(peer: i32, flags: u32) {
        let context = context::current()?;
        let peer = context.machine.device(peer)?.id;
        if flags != 0 || peer == context.device.id {
            return fail(codes::RT_PARAM_INVALID, format!("peer {peer}, flags {flags}"));
        }
        lock(&context.machine.peers).insert((context.device.id, peer));
        Ok(())
    }
}

//! Copies and fills: which pointers a kind allows, bounds, and when the work is done.

use std::sync::Arc;

use crate::codes;
use crate::context::current;
use crate::failure::{Failure, Outcome, fail};
use crate::heap::device_of;
use crate::host::HostRange;
use crate::lock;
use crate::machine::{Device, Machine};
use crate::stream::{self, Task};

/// One end of a copy.
#[derive(Clone)]
enum Side {
    Host(HostRange),
    Device(Arc<Device>, u64),
}

impl Side {
    fn of(machine: &Machine, address: u64, len: u64) -> Outcome<Self> {
        match device_of(address) {
            None => Ok(Self::Host(HostRange::new(address, len)?)),
            Some(id) => {
                let device = machine.device(id as i32)?.clone();
                lock(&device.heap).bytes(address, len)?;
                Ok(Self::Device(device, address))
            }
        }
    }

    fn device(&self) -> Option<usize> {
        match self {
            Self::Host(_) => None,
            Self::Device(device, _) => Some(device.id),
        }
    }
}

/// A checked copy.
#[derive(Clone)]
struct Transfer {
    from: Side,
    to: Side,
    len: u64,
}

impl Transfer {
    fn new(to: u64, to_len: u64, from: u64, len: u64, kind: i32) -> Outcome<Option<Self>> {
        let context = current()?;
        if to == 0 || from == 0 {
            return fail(codes::INVALID_PARAM, "a pointer is null");
        }
        if len > to_len {
            let text = format!("{len} bytes do not fit into the {to_len} of the destination");
            return fail(codes::RT_PARAM_INVALID, text);
        }
        if len == 0 {
            return Ok(None);
        }
        let machine = &context.machine;
        let copy = Self { from: Side::of(machine, from, len)?, to: Side::of(machine, to, len)?, len };
        copy.check_kind(kind, context.device.id, machine)?;
        Ok(Some(copy))
    }

    fn check_kind(&self, kind: i32, here: usize, machine: &Machine) -> Outcome {
        let (from, to) = (self.from.device(), self.to.device());
        let fits = match kind {
            0 => from.is_none() && to.is_none(),
            1 => from.is_none() && to.is_some(),
            2 => from.is_some() && to.is_none(),
            3 => from.is_some() && to.is_some(),
            4 => true,
            5 => return fail(codes::RT_FEATURE_NOT_SUPPORT, "copies to managed buffers are not simulated"),
            6 => from.is_some() && from == to,
            7 => from.is_some() && to.is_some() && from != to,
            _ => return fail(codes::RT_PARAM_INVALID, format!("copy kind {kind}")),
        };
        if !fits {
            let text = format!("copy kind {kind} from {from:?} to {to:?} (device, none = host)");
            return fail(codes::RT_INVALID_MEMORY_TYPE, text);
        }
        let peers = lock(&machine.peers);
        for side in [from, to].into_iter().flatten() {
            if side != here && !peers.contains(&(here, side)) {
                let text = format!("device {here} has no access to device {side}");
                return fail(codes::RT_INVALID_MEMORY_TYPE, text);
            }
        }
        Ok(())
    }

    /// # Safety
    /// Host memory that is not pinned must be valid for the length.
    unsafe fn run(&self) -> Outcome {
        let bytes = match &self.from {
            // SAFETY: promised by the caller.
            Side::Host(range) => unsafe { range.read() }?,
            Side::Device(device, address) => {
                device.check()?;
                lock(&device.heap).bytes(*address, self.len)?.to_vec()
            }
        };
        match &self.to {
            // SAFETY: promised by the caller.
            Side::Host(range) => unsafe { range.write(&bytes) },
            Side::Device(device, address) => {
                device.check()?;
                lock(&device.heap).bytes_mut(*address, self.len)?.copy_from_slice(&bytes);
                Ok(())
            }
        }
    }

    fn pinned(&self) -> bool {
        [&self.from, &self.to].into_iter().all(|side| match side {
            Side::Host(range) => range.pinned(),
            Side::Device(..) => true,
        })
    }
}

/// Copies now.
///
/// # Safety
/// Host memory must be valid for the length.
pub unsafe fn copy(to: u64, to_len: u64, from: u64, len: u64, kind: i32) -> Outcome {
    current()?.device.check()?;
    stream::refuse_in_capture()?;
    match Transfer::new(to, to_len, from, len, kind)? {
        // SAFETY: promised by the caller.
        Some(copy) => unsafe { copy.run() },
        None => Ok(()),
    }
}

/// Copies on a stream. With host memory that is not pinned it returns after the copy, as documented.
///
/// # Safety
/// Host memory must be valid for the length until the copy is done.
pub unsafe fn copy_async(
    to: u64,
    to_len: u64,
    from: u64,
    len: u64,
    kind: i32,
    stream: *const std::ffi::c_void,
) -> Outcome {
    let stream = stream::of_current(stream)?;
    let Some(copy) = Transfer::new(to, to_len, from, len, kind)? else { return Ok(()) };
    if copy.from.device().is_none() && copy.to.device().is_none() {
        return fail(codes::RT_FEATURE_NOT_SUPPORT, "no asynchronous copy inside the host");
    }
    let pinned = copy.pinned();
    if !pinned {
        stream::refuse_in_capture()?;
        stream.refuse_captured()?;
    }
    // SAFETY: promised by the caller.
    let work = move || unsafe { copy.run() };
    let number = stream.submit(Task::new(move |_| work().map_err(in_stream)))?;
    if pinned { Ok(()) } else { stream.wait_for(number, None, codes::RT_STREAM_SYNC_TIMEOUT) }
}

// memory that was good when the copy was submitted and is not when it runs
fn in_stream(failure: Failure) -> Failure {
    match failure.code {
        codes::RT_PARAM_INVALID => Failure { code: codes::RT_SYS_DMA, ..failure },
        _ => failure,
    }
}

fn fill_target(to: u64, to_len: u64, len: u64) -> Outcome<Option<Arc<Device>>> {
    let context = current()?;
    if to == 0 {
        return fail(codes::INVALID_PARAM, "the pointer is null");
    }
    if len > to_len {
        return fail(codes::RT_PARAM_INVALID, format!("{len} bytes do not fit into {to_len}"));
    }
    if len == 0 {
        return Ok(None);
    }
    match Side::of(&context.machine, to, len)? {
        Side::Device(device, _) if device.id == context.device.id => Ok(Some(device)),
        // documented for device memory; host memory is refused here as the stricter reading
        _ => fail(codes::RT_INVALID_MEMORY_TYPE, format!("{to:#x} is not memory of the current device")),
    }
}

/// Fills now.
pub fn fill(to: u64, to_len: u64, value: i32, len: u64) -> Outcome {
    current()?.device.check()?;
    stream::refuse_in_capture()?;
    if let Some(device) = fill_target(to, to_len, len)? {
        lock(&device.heap).bytes_mut(to, len)?.fill(value as u8);
    }
    Ok(())
}

/// Fills on a stream.
pub fn fill_async(to: u64, to_len: u64, value: i32, len: u64, stream: *const std::ffi::c_void) -> Outcome {
    let stream = stream::of_current(stream)?;
    let Some(device) = fill_target(to, to_len, len)? else { return Ok(()) };
    stream.submit(Task::new(move |_| {
        lock(&device.heap).bytes_mut(to, len).map_err(in_stream)?.fill(value as u8);
        Ok(())
    }))?;
    Ok(())
}

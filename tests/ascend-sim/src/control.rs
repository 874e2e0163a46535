//! What CANN does not have: the functions that a test steers the simulator with.

use std::ffi::c_char;
use std::time::Duration;

use crate::failure::Outcome;
use crate::hccl::comm::COMMS;
use crate::machine::{Machine, live_memory, machine};
use crate::{context, event, executor, graph, host, out, stream, symbols, tensor};

/// # Safety
/// As [`out::text`].
unsafe fn name(pointer: *const c_char) -> Option<String> {
    // SAFETY: promised by the caller.
    unsafe { out::text(pointer) }.ok().flatten()
}

fn answer(outcome: Outcome) -> i32 {
    outcome.map_or_else(|failure| failure.code, |()| 0)
}

fn on_device(device: i32, act: impl FnOnce(&Machine, usize)) -> i32 {
    answer(machine().and_then(|machine| {
        let id = machine.device(device)?.id;
        act(&machine, id);
        Ok(())
    }))
}

/// Makes the `nth` (1 = next) call of `symbol` answer `code`, or null, without doing its work. Answers 0, or
/// -1 when no such symbol is simulated.
///
/// # Safety
/// `symbol` ends with a zero byte.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn belaySimFail(symbol: *const c_char, nth: u64, code: i32) -> i32 {
    // SAFETY: promised by the caller.
    let known = unsafe { name(symbol) }.is_some_and(|symbol| symbols::inject(&symbol, nth, code));
    if known { 0 } else { -1 }
}

/// Forgets all failures of [`belaySimFail`].
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub extern "C" fn belaySimFailClear() {
    symbols::clear();
}

/// Calls of `symbol` so far, failed ones included.
///
/// # Safety
/// `symbol` ends with a zero byte.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn belaySimCalls(symbol: *const c_char) -> u64 {
    // SAFETY: promised by the caller.
    unsafe { name(symbol) }.map_or(0, |symbol| symbols::calls(&symbol))
}

/// Writes the names of all simulated symbols, one a line with a zero byte at the end, as far as `n` bytes
/// reach. Answers the bytes needed.
///
/// # Safety
/// `buffer` is null or writable for `n` bytes.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn belaySimSymbols(buffer: *mut c_char, n: u64) -> u64 {
    let mut text = symbols::names().collect::<Vec<_>>().join("\n").into_bytes();
    text.push(0);
    if !buffer.is_null() && n > 0 {
        let len = text.len().min(n as usize);
        // SAFETY: the buffer has n bytes, promised by the caller.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast(), len);
            *buffer.add(len - 1) = 0;
        }
    }
    text.len() as u64
}

/// Objects of a kind alive; `u64::MAX` for a kind that is not simulated. Memory, streams and communicators
/// that a device reset or `aclFinalize` had to release still count until the next `aclInit`: neither hides a
/// leak.
///
/// # Safety
/// `kind` ends with a zero byte.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn belaySimLive(kind: *const c_char) -> u64 {
    // SAFETY: promised by the caller.
    let kind = unsafe { name(kind) };
    match kind.as_deref() {
        Some("context") => context::CONTEXTS.live() as u64,
        Some("stream") => stream::STREAMS.live(),
        Some("event") => event::EVENTS.live() as u64,
        Some("notify") => event::NOTIFIES.live() as u64,
        Some("device_memory") => live_memory(),
        Some("host_memory") => host::live(),
        Some("tensor") => tensor::TENSORS.live() as u64,
        Some("scalar") => tensor::SCALARS.live() as u64,
        Some("int_array") => tensor::INT_ARRAYS.live() as u64,
        Some("tensor_list") => tensor::TENSOR_LISTS.live() as u64,
        Some("executor") => executor::EXECUTORS.live() as u64,
        Some("graph") => graph::GRAPHS.live() as u64,
        Some("comm") => COMMS.live(),
        _ => u64::MAX,
    }
}

/// Loses a device: tasks on it fail with `code`, and synchronous calls answer it. Its communicators are cut
/// off from their peers for good.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub extern "C" fn belaySimLoseDevice(device: i32, code: i32) -> i32 {
    on_device(device, |machine, id| {
        machine.devices[id].lose(code);
        COMMS.lose_device(id, code);
    })
}

/// Lets a device's streams stand still for a while.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub extern "C" fn belaySimHangDevice(device: i32, milliseconds: u64) -> i32 {
    on_device(device, |machine, id| machine.devices[id].hang(Duration::from_millis(milliseconds)))
}

/// Ends the loss or hang of a device.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub extern "C" fn belaySimHealDevice(device: i32) -> i32 {
    on_device(device, |machine, id| machine.devices[id].heal())
}

/// Lets each collective wait that long before it begins.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub extern "C" fn belaySimHcclDelay(microseconds: u64) -> i32 {
    answer(machine().map(|machine| machine.set_hccl_delay(microseconds)))
}

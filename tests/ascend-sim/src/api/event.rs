//! Events and notifies.

use std::ffi::c_void;
use std::sync::Arc;

use crate::api::device::time_limit;
use crate::codes;
use crate::context::current;
use crate::event::{EVENTS, Event, NOTIFIES, Notify, event};
use crate::failure::{Outcome, fail};
use crate::out::{needed, put};
use crate::stream::{of_current, refuse_in_capture};
use crate::symbols::export;

const BAD: i32 = codes::INVALID_PARAM;

/// # Safety
/// `pointer` is null or writable.
unsafe fn create(pointer: *mut *mut c_void, make: impl FnOnce() -> Outcome<Arc<Event>>) -> Outcome {
    needed(pointer, BAD, "event")?;
    current()?.device.check()?;
    let handle = EVENTS.insert(make()?);
    // SAFETY: promised by the caller.
    unsafe { put(pointer, handle, BAD, "event") }
}

export! {
    /// Makes an event that synchronises and takes time stamps, but no reset.
    status fn aclrtCreateEvent(pointer: *mut *mut c_void) {
        // SAFETY: writable, by the contract of the function.
        unsafe { create(pointer, || Ok(Event::plain())) }
    }

    /// Makes an event with flags: 1 synchronises, 8 takes time stamps.
    status fn aclrtCreateEventWithFlag(pointer: *mut *mut c_void, flags: u32) {
        // SAFETY: writable, by the contract of the function.
        unsafe { create(pointer, || Event::with_flags(flags)) }
    }

    /// Destroys an event; work that waits for it goes on to wait.
    status fn aclrtDestroyEvent(handle: *mut c_void) { EVENTS.remove(handle).map(|_| ()) }

    /// Records what was submitted to the stream so far.
    status fn aclrtRecordEvent(handle: *mut c_void, stream: *mut c_void) {
        event(handle)?.record(&*of_current(stream)?)
    }

    /// Puts an event of `aclrtCreateEventWithFlag` back to its first state, in the stream's order.
    status fn aclrtResetEvent(handle: *mut c_void, stream: *mut c_void) {
        event(handle)?.reset(&*of_current(stream)?)
    }

    /// The old query: 0 complete, 1 not.
    status fn aclrtQueryEvent(handle: *mut c_void, status: *mut i32) {
        current()?;
        let complete = event(handle)?.complete();
        // SAFETY: writable, by the contract of the function.
        unsafe { put(status, i32::from(!complete), BAD, "status") }
    }

    /// The query: 1 complete, 0 not. An event that was never recorded is complete.
    status fn aclrtQueryEventStatus(handle: *mut c_void, status: *mut i32) {
        current()?;
        let complete = event(handle)?.complete();
        // SAFETY: writable, by the contract of the function.
        unsafe { put(status, i32::from(complete), BAD, "status") }
    }

    /// Waits on the host.
    status fn aclrtSynchronizeEvent(handle: *mut c_void) {
        refuse_in_capture()?;
        current()?.device.check()?;
        event(handle)?.synchronize(None)
    }

    /// Waits on the host for at most that many milliseconds; 507047 after that.
    status fn aclrtSynchronizeEventWithTimeout(handle: *mut c_void, milliseconds: i32) {
        refuse_in_capture()?;
        current()?.device.check()?;
        event(handle)?.synchronize(time_limit(milliseconds)?)
    }

    /// Lets the stream wait for what the event records now.
    status fn aclrtStreamWaitEvent(stream: *mut c_void, handle: *mut c_void) {
        event(handle)?.block(&*of_current(stream)?)
    }

    /// Milliseconds between two events that completed.
    status fn aclrtEventElapsedTime(milliseconds: *mut f32, start: *mut c_void, end: *mut c_void) {
        current()?;
        let time = event(start)?.elapsed(&*event(end)?)?;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(milliseconds, time, BAD, "ms") }
    }

    /// Makes a notify; flags 0 and 1 are documented.
    status fn aclrtCreateNotify(pointer: *mut *mut c_void, flag: u64) {
        needed(pointer, BAD, "notify")?;
        current()?.device.check()?;
        if flag > 1 {
            return fail(codes::RT_PARAM_INVALID, format!("notify flag {flag:#x}"));
        }
        let handle = NOTIFIES.insert(Arc::new(Notify::default()));
        // SAFETY: writable, by the contract of the function.
        unsafe { put(pointer, handle, BAD, "notify") }
    }

    /// Destroys a notify.
    status fn aclrtDestroyNotify(handle: *mut c_void) { NOTIFIES.remove(handle).map(|_| ()) }

    /// Sets a notify in the stream's order.
    status fn aclrtRecordNotify(handle: *mut c_void, stream: *mut c_void) {
        NOTIFIES.get(handle)?.record(&*of_current(stream)?)
    }

    /// Lets the stream wait for a notify and take it; the time-out is in seconds, 0 = none.
    status fn aclrtWaitAndResetNotify(handle: *mut c_void, stream: *mut c_void, seconds: u32) {
        NOTIFIES.get(handle)?.wait_and_reset(&*of_current(stream)?, seconds)
    }
}

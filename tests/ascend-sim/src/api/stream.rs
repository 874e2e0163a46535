//! Streams.

use std::ffi::c_void;

use crate::api::device::time_limit;
use crate::codes;
use crate::context::current;
use crate::failure::{Outcome, fail};
use crate::out::{needed, put};
use crate::stream::{STREAMS, Stream, of_current, refuse_in_capture};
use crate::symbols::export;

const BAD: i32 = codes::INVALID_PARAM;

/// # Safety
/// `stream` is null or writable.
unsafe fn create(stream: *mut *mut c_void) -> Outcome {
    needed(stream, BAD, "stream")?;
    let context = current()?;
    context.device.check()?;
    let handle = STREAMS.insert(Stream::start(context, false));
    // SAFETY: promised by the caller.
    unsafe { put(stream, handle, BAD, "stream") }
}

export! {
    /// Makes a stream of the current context.
    status fn aclrtCreateStream(stream: *mut *mut c_void) {
        // SAFETY: writable, by the contract of the function.
        unsafe { create(stream) }
    }

    /// Makes a stream with a priority (0 highest to 7) and flags (1 fast launch, 2 fast sync); both change
    /// nothing here.
    status fn aclrtCreateStreamWithConfig(stream: *mut *mut c_void, priority: u32, flag: u32) {
        if priority > 7 || flag & !3 != 0 {
            return fail(BAD, format!("priority {priority}, flag {flag:#x}"));
        }
        // SAFETY: writable, by the contract of the function.
        unsafe { create(stream) }
    }

    /// Destroys a stream after its work is done.
    status fn aclrtDestroyStream(stream: *mut c_void) {
        STREAMS.remove(stream)?.end(false);
        Ok(())
    }

    /// Destroys a stream and drops its work.
    status fn aclrtDestroyStreamForce(stream: *mut c_void) {
        STREAMS.remove(stream)?.end(true);
        Ok(())
    }

    /// Waits for the stream's work; answers, once, what it failed with.
    status fn aclrtSynchronizeStream(stream: *mut c_void) {
        refuse_in_capture()?;
        of_current(stream)?.synchronize(None, codes::RT_STREAM_SYNC_TIMEOUT)
    }

    /// Waits for at most that many milliseconds; 507046 after that.
    status fn aclrtSynchronizeStreamWithTimeout(stream: *mut c_void, milliseconds: i32) {
        refuse_in_capture()?;
        let limit = time_limit(milliseconds)?;
        of_current(stream)?.synchronize(limit, codes::RT_STREAM_SYNC_TIMEOUT)
    }

    /// 0 when all work is done, 1 when not; fails with what the work failed with.
    status fn aclrtStreamQuery(stream: *mut c_void, status: *mut i32) {
        let stream = of_current(stream)?;
        stream.context.device.check()?;
        if let Some(failure) = stream.failure() {
            return Err(failure);
        }
        // SAFETY: writable, by the contract of the function.
        unsafe { put(status, i32::from(!stream.idle()), BAD, "status") }
    }

    /// Stops the running task and drops the others.
    status fn aclrtStreamAbort(stream: *mut c_void) {
        of_current(stream)?.abort();
        Ok(())
    }

    /// 1: a failed task stops the streams of the context. Not for the default stream.
    status fn aclrtSetStreamFailureMode(stream: *mut c_void, mode: u64) {
        let stream = of_current(stream)?;
        if mode > 1 || stream.is_default {
            return fail(codes::RT_PARAM_INVALID, format!("failure mode {mode}"));
        }
        stream.context.set_stop_on_failure(mode == 1);
        Ok(())
    }
}

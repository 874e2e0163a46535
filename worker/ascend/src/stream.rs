//! Queues of work on a device.
//!
//! Whatever work reads or writes is held by its stream until the stream was waited for, so that memory which a caller
//! lets go of early is not freed under the device.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::milliseconds;
use crate::ffi::{RawStream, Status, failure_mode, stream_status};
use crate::{Context, Current, Error, Event, Result};

/// How long a stream that is dropped waits for its work before it aborts it.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Something that work of a stream uses.
pub(crate) type Kept = Arc<dyn Any + Send + Sync>;

/// A queue of work on a device, done in order. Cheap to clone; the last one that goes waits for its work, up to 5 s,
/// and aborts what is left.
#[derive(Clone, Debug)]
pub struct Stream {
    inner: Arc<Inner>,
}

struct Inner {
    context: Context,
    raw: RawStream,
    /// Pieces of work queued so far. Written under the lock of `state`, but read without: who queues may be held up
    /// inside the runtime while the queue is full, and must not hold up who waits or aborts.
    submitted: AtomicU64,
    state: Mutex<State>,
}

// SAFETY: the runtime lets several threads with the same context use a stream; the pointer is only handed to it.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl std::fmt::Debug for Inner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Stream").field("device", &self.context.device().index()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    /// Pieces known to be done: all up to this one.
    completed: u64,
    /// Times the stream was aborted.
    aborts: u64,
    /// What queued work uses, by address, with the number of the last piece that does.
    kept: HashMap<usize, (u64, Kept)>,
}

impl State {
    fn keep(&mut self, ticket: u64, object: &Kept) {
        let address = Arc::as_ptr(object).cast::<()>() as usize;
        self.kept.entry(address).or_insert_with(|| (ticket, Arc::clone(object))).0 = ticket;
    }

    /// Takes note that everything up to a piece is done; gives what is no longer used, to be dropped without the lock.
    fn complete(&mut self, ticket: u64) -> Vec<(u64, Kept)> {
        self.completed = self.completed.max(ticket);
        let completed = self.completed;
        self.kept.extract_if(|_, (last, _)| *last <= completed).map(|(_, kept)| kept).collect()
    }
}

/// Which piece of a stream's work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    number: u64,
    aborts: u64,
}

impl Stream {
    /// A stream that stops at the first task that fails, where the runtime can do that.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn new(current: &Current) -> Result<Self> {
        current.hold()?;
        let runtime = current.runtime();
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is alive during the call; the thread has a context.
        let code = unsafe { (runtime.symbols().aclrtCreateStream)(&mut raw) };
        runtime.check("aclrtCreateStream", code)?;
        let context = current.context().clone();
        let stream = Self {
            inner: Arc::new(Inner { context, raw, submitted: AtomicU64::new(0), state: Mutex::default() }),
        };
        if let Some(set) = runtime.symbols().aclrtSetStreamFailureMode {
            // SAFETY: the stream was just created.
            let code = unsafe { set(raw, failure_mode::STOP) };
            runtime.check("aclrtSetStreamFailureMode", code)?;
        }
        Ok(stream)
    }

    /// The context it belongs to.
    pub fn context(&self) -> &Context {
        &self.inner.context
    }

    /// Waits until all work that is queued now is done.
    ///
    /// # Errors
    /// [`Error::WrongContext`]; [`Error::Call`] with [`Kind::Timeout`](crate::Kind::Timeout) if the limit passes, or
    /// with what a task failed of.
    pub fn synchronize(&self, current: &Current, limit: Duration) -> Result<()> {
        current.require(&self.inner.context, "aclrtSynchronizeStreamWithTimeout")?;
        self.inner.synchronize(limit)
    }

    /// Whether all its work is done.
    ///
    /// # Errors
    /// [`Error::WrongContext`], [`Error::Call`].
    pub fn is_idle(&self, current: &Current) -> Result<bool> {
        current.require(&self.inner.context, "aclrtStreamQuery")?;
        let target = self.inner.submitted.load(Ordering::Acquire);
        let mut status = 0;
        // SAFETY: the stream is alive, `status` is alive during the call.
        let code = unsafe { (current.runtime().symbols().aclrtStreamQuery)(self.inner.raw, &mut status) };
        current.runtime().check("aclrtStreamQuery", code)?;
        let is_idle = status == stream_status::COMPLETE;
        if is_idle {
            let done = self.inner.lock().complete(target);
            drop(done);
        }
        Ok(is_idle)
    }

    /// Work that is queued from now on begins after the event, which was recorded before on another stream. The device
    /// waits no longer than [`DeviceLimits::wait`](crate::DeviceLimits::wait).
    ///
    /// # Errors
    /// [`Error::WrongContext`], [`Error::Call`].
    pub fn wait_event(&self, current: &Current, event: &Event) -> Result<()> {
        current.require(event.context(), "aclrtStreamWaitEvent")?;
        let wait = current.runtime().symbols().aclrtStreamWaitEvent;
        // SAFETY: stream and event are alive, and the stream holds on to the event until it was waited for.
        self.submit(current, "aclrtStreamWaitEvent", &[event.kept()], |stream| unsafe {
            wait(stream, event.raw())
        })?;
        Ok(())
    }

    /// Ends running work and drops what is queued. The stream may be used again; what was written is undefined. Other
    /// streams that wait for events of this one have to be aborted as well.
    ///
    /// # Errors
    /// [`Error::WrongContext`], [`Error::Call`], [`Error::Absent`] for a CANN that cannot do this.
    pub fn abort(&self, current: &Current) -> Result<()> {
        current.require(&self.inner.context, "aclrtStreamAbort")?;
        self.inner.abort()
    }

    /// Queues work. `kept` is held until the stream was waited for.
    pub(crate) fn submit(
        &self,
        current: &Current,
        call: &'static str,
        kept: &[&Kept],
        queue: impl FnOnce(RawStream) -> Status,
    ) -> Result<Ticket> {
        current.require(&self.inner.context, call)?;
        // the lock is held so that numbers are in the order of the queue
        let mut state = self.inner.lock();
        let ticket = self.inner.submitted.load(Ordering::Relaxed) + 1;
        kept.iter().for_each(|object| state.keep(ticket, object));
        let code = queue(self.inner.raw);
        // counted even if it was refused: a wait for more than there is does no harm, and what the call was given is
        // then held until it is sure that nothing uses it
        self.inner.submitted.store(ticket, Ordering::Release);
        let ticket = Ticket { number: ticket, aborts: state.aborts };
        drop(state);
        current.runtime().check(call, code)?;
        Ok(ticket)
    }

    /// Whether a piece of work is known to be done.
    ///
    /// # Errors
    /// [`Error::StreamAborted`] if it may have been dropped.
    pub(crate) fn is_done(&self, ticket: Ticket) -> Result<bool> {
        let state = self.inner.lock();
        if state.aborts != ticket.aborts {
            return Err(Error::StreamAborted);
        }
        Ok(state.completed >= ticket.number)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn synchronize(&self, limit: Duration) -> Result<()> {
        let target = self.submitted.load(Ordering::Acquire);
        let runtime = self.context.runtime();
        let wait = runtime.symbols().aclrtSynchronizeStreamWithTimeout;
        // SAFETY: the stream is alive, its context is current, and the limit is never −1.
        let code = unsafe { wait(self.raw, milliseconds(limit)) };
        runtime.check("aclrtSynchronizeStreamWithTimeout", code)?;
        let done = self.lock().complete(target);
        drop(done);
        Ok(())
    }

    fn abort(&self) -> Result<()> {
        let runtime = self.context.runtime();
        let Some(abort) = runtime.symbols().aclrtStreamAbort else {
            return Err(Error::Absent { symbol: "aclrtStreamAbort" });
        };
        let target = self.submitted.load(Ordering::Acquire);
        // SAFETY: the stream is alive and its context is current.
        let code = unsafe { abort(self.raw) };
        runtime.check("aclrtStreamAbort", code)?;
        let mut state = self.lock();
        state.aborts += 1;
        let done = state.complete(target);
        drop(state);
        drop(done);
        Ok(())
    }

    /// Whether nothing of the stream's work runs any more.
    fn drain(&self) -> bool {
        if self.lock().completed == self.submitted.load(Ordering::Acquire) {
            return true;
        }
        let waited = self.synchronize(DRAIN_LIMIT);
        waited.is_ok() || self.abort().is_ok()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let runtime = self.context.runtime();
        self.context.enter(|| {
            let is_drained = self.drain();
            let (call, destroy) = match runtime.symbols().aclrtDestroyStreamForce {
                // the plain call waits for the work without a limit
                Some(force) if !is_drained => ("aclrtDestroyStreamForce", force),
                _ => ("aclrtDestroyStream", runtime.symbols().aclrtDestroyStream),
            };
            if is_drained || call == "aclrtDestroyStreamForce" {
                // SAFETY: the stream is alive, its context is current, and this is its last owner.
                let code = unsafe { destroy(self.raw) };
                runtime.released(call, code);
            } else {
                runtime.left_behind("a stream with work that neither ends nor can be aborted");
            }
            if !is_drained {
                // the device may still write there
                for (_, kept) in std::mem::take(&mut self.lock().kept).into_values() {
                    runtime.left_behind("memory of work that neither ends nor can be aborted");
                    std::mem::forget(kept);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_kept_until_the_last_piece_that_uses_it() {
        let (shared, early): (Kept, Kept) = (Arc::new(1u8), Arc::new(2u8));
        let mut state = State::default();
        state.keep(1, &shared);
        state.keep(2, &early);
        state.keep(3, &shared);
        assert_eq!(Arc::strong_count(&shared), 2, "kept once, however often it is used");
        drop(state.complete(2));
        assert_eq!([Arc::strong_count(&shared), Arc::strong_count(&early)], [2, 1]);
        drop(state.complete(3));
        assert_eq!(Arc::strong_count(&shared), 1);
        drop(state.complete(1));
        assert_eq!(state.completed, 3, "never back");
    }
}

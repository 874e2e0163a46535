//! Points in the work of a stream.

use std::sync::Arc;
use std::time::Duration;

use crate::error::milliseconds;
use crate::ffi::{RawEvent, event_flag, event_status};
use crate::stream::Kept;
use crate::{Context, Current, Result, Stream};

/// What an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventUse {
    /// To order streams and to be waited for.
    Order,
    /// The same, and to measure the time between two of them.
    Time,
}

/// A point in the work of a stream. Cheap to clone.
#[derive(Clone)]
pub struct Event {
    inner: Arc<Inner>,
    kept: Kept,
}

struct Inner {
    context: Context,
    raw: RawEvent,
}

// SAFETY: the runtime lets several threads with the same context use an event; the pointer is only handed to it.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Event {
    /// An event that is not recorded yet.
    ///
    /// # Errors
    /// [`Error::Call`](crate::Error::Call).
    pub fn new(current: &Current, purpose: EventUse) -> Result<Self> {
        current.hold()?;
        let flag = match purpose {
            EventUse::Order => event_flag::SYNC,
            EventUse::Time => event_flag::SYNC | event_flag::TIME_LINE,
        };
        let runtime = current.runtime();
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is alive during the call; the thread has a context.
        let code = unsafe { (runtime.symbols().aclrtCreateEventWithFlag)(&mut raw, flag) };
        runtime.check("aclrtCreateEventWithFlag", code)?;
        let inner = Arc::new(Inner { context: current.context().clone(), raw });
        Ok(Self { kept: Arc::clone(&inner) as Kept, inner })
    }

    /// The context it belongs to.
    pub fn context(&self) -> &Context {
        &self.inner.context
    }

    /// Moves the event to behind all that is queued on the stream now.
    ///
    /// # Errors
    /// [`Error::WrongContext`](crate::Error::WrongContext), [`Error::Call`](crate::Error::Call).
    pub fn record(&self, current: &Current, stream: &Stream) -> Result<()> {
        current.require(&self.inner.context, "aclrtRecordEvent")?;
        let record = current.runtime().symbols().aclrtRecordEvent;
        // SAFETY: stream and event are alive, and the stream holds on to the event until it was waited for.
        stream.submit(current, "aclrtRecordEvent", &[&self.kept], |stream| unsafe {
            record(self.inner.raw, stream)
        })?;
        Ok(())
    }

    /// Whether the work before it is done. An event that was never recorded counts as done.
    ///
    /// # Errors
    /// [`Error::WrongContext`](crate::Error::WrongContext), [`Error::Call`](crate::Error::Call).
    pub fn is_complete(&self, current: &Current) -> Result<bool> {
        current.require(&self.inner.context, "aclrtQueryEventStatus")?;
        let mut status = 0;
        // SAFETY: the event is alive, `status` is alive during the call.
        let code =
            unsafe { (current.runtime().symbols().aclrtQueryEventStatus)(self.inner.raw, &mut status) };
        current.runtime().check("aclrtQueryEventStatus", code)?;
        Ok(status == event_status::COMPLETE)
    }

    /// Waits until the work before it is done.
    ///
    /// # Errors
    /// [`Error::WrongContext`](crate::Error::WrongContext); [`Error::Call`](crate::Error::Call), with
    /// [`Kind::Timeout`](crate::Kind::Timeout) if the limit passes.
    pub fn synchronize(&self, current: &Current, limit: Duration) -> Result<()> {
        current.require(&self.inner.context, "aclrtSynchronizeEventWithTimeout")?;
        let wait = current.runtime().symbols().aclrtSynchronizeEventWithTimeout;
        // SAFETY: the event is alive and the limit is never −1.
        let code = unsafe { wait(self.inner.raw, milliseconds(limit)) };
        Ok(current.runtime().check("aclrtSynchronizeEventWithTimeout", code)?)
    }

    /// Time between two events of [`EventUse::Time`] that are complete.
    ///
    /// # Errors
    /// [`Error::WrongContext`](crate::Error::WrongContext), [`Error::Call`](crate::Error::Call).
    pub fn elapsed_since(&self, current: &Current, start: &Self) -> Result<Duration> {
        current.require(&self.inner.context, "aclrtEventElapsedTime")?;
        current.require(&start.inner.context, "aclrtEventElapsedTime")?;
        let elapsed = current.runtime().symbols().aclrtEventElapsedTime;
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive, the number is alive during the call.
        let code = unsafe { elapsed(&mut milliseconds, start.inner.raw, self.inner.raw) };
        current.runtime().check("aclrtEventElapsedTime", code)?;
        Ok(Duration::try_from_secs_f32(milliseconds / 1e3).unwrap_or_default())
    }

    pub(crate) fn raw(&self) -> RawEvent {
        self.inner.raw
    }

    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Event")
            .field("device", &self.inner.context.device().index())
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.context.enter(|| {
            // SAFETY: created by `Event::new`; streams hold on to events that they use, so nothing does.
            let code = unsafe { (self.context.runtime().symbols().aclrtDestroyEvent)(self.raw) };
            self.context.runtime().released("aclrtDestroyEvent", code);
        });
    }
}

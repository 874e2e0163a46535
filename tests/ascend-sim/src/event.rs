//! Events and notifies.

use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::codes;
use crate::failure::{Failure, Outcome, fail};
use crate::lock;
use crate::registry::Registry;
use crate::stream::{Stream, Task};

/// All events.
pub static EVENTS: Registry<Event> =
    Registry::new("event", codes::RT_INVALID_HANDLE, codes::RT_INVALID_HANDLE);
/// All notifies.
pub static NOTIFIES: Registry<Notify> =
    Registry::new("notify", codes::RT_INVALID_HANDLE, codes::RT_INVALID_HANDLE);

/// Flag: the event synchronises streams.
pub const FLAG_SYNC: u32 = 1;
/// Flag: the event takes time stamps.
pub const FLAG_TIME_LINE: u32 = 8;

#[derive(Default)]
struct State {
    // how often it was recorded, and the last record that was reached
    recorded: u64,
    reached: u64,
    at: Option<Instant>,
    failure: Option<Failure>,
}

/// An event: what was submitted to a stream before it was recorded.
pub struct Event {
    flags: u32,
    // events of aclrtCreateEvent take no reset
    resettable: bool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Event {
    /// An event of `aclrtCreateEvent`: synchronises and takes time stamps.
    pub fn plain() -> Arc<Self> {
        Arc::new(Self {
            flags: FLAG_SYNC | FLAG_TIME_LINE,
            resettable: false,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// An event with flags.
    pub fn with_flags(flags: u32) -> Outcome<Arc<Self>> {
        // other flags are documented, but not simulated
        if flags == 0 || flags & !(FLAG_SYNC | FLAG_TIME_LINE) != 0 {
            return fail(codes::RT_PARAM_INVALID, format!("event flag {flags:#x}"));
        }
        let resettable = flags & FLAG_SYNC != 0;
        Ok(Arc::new(Self { flags, resettable, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Records what was submitted to the stream so far.
    pub fn record(self: &Arc<Self>, stream: &Stream) -> Outcome {
        let number = {
            let mut state = lock(&self.state);
            state.recorded += 1;
            state.failure = None;
            state.recorded
        };
        let (event, lost) = (self.clone(), self.clone());
        let mut task = Task::marker(move |running| {
            event.reach(number, running.stream.failure());
            Ok(())
        });
        task.dropped = Some(Arc::new(move |failure: &Failure| {
            lock(&lost.state).failure.get_or_insert_with(|| failure.clone());
            lost.changed.notify_all();
        }));
        stream.submit(task).map(|_| ())
    }

    fn reach(&self, number: u64, failure: Option<Failure>) {
        let mut state = lock(&self.state);
        state.reached = state.reached.max(number);
        state.at = Some(Instant::now());
        if state.failure.is_none() {
            state.failure = failure;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Puts the event back to its first state, when the stream gets there.
    pub fn reset(self: &Arc<Self>, stream: &Stream) -> Outcome {
        if !self.resettable {
            return fail(
                codes::RT_PARAM_INVALID,
                "an event that takes no reset: made without ACL_EVENT_SYNC",
            );
        }
        let event = self.clone();
        stream
            .submit(Task::marker(move |_| {
                *lock(&event.state) = State::default();
                Ok(())
            }))
            .map(|_| ())
    }

    /// Whether all that was recorded is done; true when nothing was.
    pub fn complete(&self) -> bool {
        let state = lock(&self.state);
        state.reached >= state.recorded
    }

    /// Lets a stream wait until what is recorded now is done.
    pub fn block(self: &Arc<Self>, stream: &Stream) -> Outcome {
        if self.flags & FLAG_SYNC == 0 {
            return fail(codes::RT_PARAM_INVALID, "an event without ACL_EVENT_SYNC can't be waited for");
        }
        let number = lock(&self.state).recorded;
        let event = self.clone();
        stream
            .submit(Task::marker(move |running| {
                let limit = running.stream.context.machine.wait_limit();
                running.wait(limit, codes::RT_WAIT_TIMEOUT, || lock(&event.state).reached >= number)
            }))
            .map(|_| ())
    }

    /// Waits on the host; answers what the work before the event failed with.
    pub fn synchronize(&self, limit: Option<Duration>) -> Outcome {
        let start = Instant::now();
        let mut state = lock(&self.state);
        let number = state.recorded;
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if state.reached >= number {
                return Ok(());
            }
            let rest = match limit.map(|limit| limit.saturating_sub(start.elapsed())) {
                Some(Duration::ZERO) => {
                    return fail(
                        codes::RT_EVENT_SYNC_TIMEOUT,
                        format!("not done after {:?}", start.elapsed()),
                    );
                }
                Some(rest) => rest,
                None => Duration::from_secs(1),
            };
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn stamp(&self) -> Outcome<Instant> {
        if self.flags & FLAG_TIME_LINE == 0 {
            return fail(codes::RT_EVENT_TIMESTAMP_INVALID, "an event without ACL_EVENT_TIME_LINE");
        }
        let state = lock(&self.state);
        match state.at {
            _ if state.recorded == 0 => {
                fail(codes::RT_EVENT_TIMESTAMP_INVALID, "the event was never recorded")
            }
            Some(at) if state.reached >= state.recorded => Ok(at),
            _ => fail(codes::RT_EVENT_NOT_COMPLETE, "the event has not completed"),
        }
    }

    /// Milliseconds from this event to `end`.
    pub fn elapsed(&self, end: &Self) -> Outcome<f32> {
        let (start, end) = (self.stamp()?, end.stamp()?);
        let forward = end.saturating_duration_since(start).as_secs_f32();
        let backward = start.saturating_duration_since(end).as_secs_f32();
        Ok((forward - backward) * 1e3)
    }
}

/// A notify: a flag that one stream sets and another waits for and takes.
#[derive(Default)]
pub struct Notify {
    set: Mutex<bool>,
}

impl Notify {
    /// Sets it when the stream gets there.
    pub fn record(self: &Arc<Self>, stream: &Stream) -> Outcome {
        let notify = self.clone();
        stream
            .submit(Task::marker(move |_| {
                *lock(&notify.set) = true;
                Ok(())
            }))
            .map(|_| ())
    }

    /// Lets the stream wait for it and take it; `seconds` 0 = for ever.
    pub fn wait_and_reset(self: &Arc<Self>, stream: &Stream, seconds: u32) -> Outcome {
        let notify = self.clone();
        let limit = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        stream
            .submit(Task::marker(move |running| {
                running.wait(limit, codes::RT_WAIT_TIMEOUT, || std::mem::take(&mut *lock(&notify.set)))
            }))
            .map(|_| ())
    }
}

/// The event of a handle.
pub fn event(handle: *const c_void) -> Outcome<Arc<Event>> {
    EVENTS.get(handle)
}

//! Streams: each an ordered queue with a thread of its own, so that work really is done later.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::codes;
use crate::context::{Context, current};
use crate::failure::{Failure, Outcome, contained, fail};
use crate::lock;
use crate::registry::Registry;

/// The streams made explicitly.
pub static STREAMS: Streams = Streams {
    registry: Registry::new("stream", codes::RT_INVALID_HANDLE, codes::RT_INVALID_HANDLE),
    leaked: AtomicU64::new(0),
};

// captures that forbid synchronous calls: the stream, and the thread that may not call, none = all
type StrictCapture = (usize, Option<ThreadId>);
static STRICT_CAPTURES: Mutex<Vec<StrictCapture>> = Mutex::new(Vec::new());

const POLL: Duration = Duration::from_millis(1);

/// The registry of streams; counts those that a reset had to release.
pub struct Streams {
    registry: Registry<Stream>,
    leaked: AtomicU64,
}

impl Streams {
    /// All streams made explicitly.
    pub fn all(&self) -> Vec<(usize, Arc<Stream>)> {
        self.registry.all()
    }

    /// Takes a stream out that its owner left behind.
    pub fn forget(&self, handle: usize) {
        if self.registry.remove(std::ptr::without_provenance(handle)).is_ok() {
            self.leaked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Streams alive, those that a reset had to release included.
    pub fn live(&self) -> u64 {
        self.registry.live() as u64 + self.leaked.load(Ordering::Relaxed)
    }

    /// Starts counting those left behind anew.
    pub fn forget_leaks(&self) {
        self.leaked.store(0, Ordering::Relaxed);
    }

    /// Enters a stream.
    pub fn insert(&self, stream: Arc<Stream>) -> *mut c_void {
        self.registry.insert(stream)
    }

    /// Takes a stream of the current context out.
    pub fn remove(&self, handle: *const c_void) -> Outcome<Arc<Stream>> {
        if handle.is_null() {
            return fail(codes::RT_PARAM_INVALID, "the default stream can't be destroyed");
        }
        of_current(handle)?;
        self.registry.remove(handle)
    }
}

/// The stream of a handle, null meaning the default stream; it must belong to the current context.
pub fn of_current(handle: *const c_void) -> Outcome<Arc<Stream>> {
    let context = current()?;
    if handle.is_null() {
        return Ok(context.default_stream());
    }
    let stream = STREAMS.registry.get(handle)?;
    if stream.context.handle != context.handle {
        return fail(codes::RT_STREAM_CONTEXT, "the stream does not belong to the current context");
    }
    Ok(stream)
}

/// What a task does, given whether it is to give up.
pub type Work = Arc<dyn Fn(&Running<'_>) -> Outcome + Send + Sync>;

/// What is told the reason when a task is dropped.
pub type Dropped = Arc<dyn Fn(&Failure) + Send + Sync>;

/// A task of a stream.
#[derive(Clone)]
pub struct Task {
    /// What it does.
    pub work: Work,
    /// Told the reason when the task is dropped without running.
    pub dropped: Option<Dropped>,
    // waits and records take no time of the device's own
    instant: bool,
}

impl Task {
    /// A task that occupies the device.
    pub fn new(work: impl Fn(&Running<'_>) -> Outcome + Send + Sync + 'static) -> Self {
        Self { work: Arc::new(work), dropped: None, instant: false }
    }

    /// A task that only marks or waits.
    pub fn marker(work: impl Fn(&Running<'_>) -> Outcome + Send + Sync + 'static) -> Self {
        Self { work: Arc::new(work), dropped: None, instant: true }
    }
}

/// What a running task sees of its stream.
pub struct Running<'a> {
    /// The stream.
    pub stream: &'a Stream,
    epoch: u64,
}

impl Running<'_> {
    /// Whether an abort, a forced end or a stopped context wants the task to give up.
    pub fn cancelled(&self) -> bool {
        self.stream.epoch.load(Ordering::Acquire) != self.epoch || self.stream.context.stopped_by().is_some()
    }

    /// Polls until `ready`; fails when cancelled, or with `code` after `limit`.
    pub fn wait(&self, limit: Option<Duration>, code: i32, mut ready: impl FnMut() -> bool) -> Outcome {
        let start = Instant::now();
        while !ready() {
            if self.cancelled() {
                return fail(codes::RT_STREAM_ABORT, "given up while waiting");
            }
            if limit.is_some_and(|limit| start.elapsed() >= limit) {
                return fail(code, format!("waited for {:?}", start.elapsed()));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

struct State {
    queue: VecDeque<Task>,
    submitted: u64,
    done: u64,
    failure: Option<Failure>,
    ended: bool,
    capture: Option<(Vec<Task>, ThreadId)>,
}

/// A stream.
pub struct Stream {
    /// The context that it belongs to.
    pub context: Arc<Context>,
    /// Whether it is a context's default stream.
    pub is_default: bool,
    state: Mutex<State>,
    changed: Condvar,
    // raised by aborts and forced ends
    epoch: AtomicU64,
}

impl Stream {
    /// Makes a stream and starts its thread.
    pub fn start(context: Arc<Context>, is_default: bool) -> Arc<Self> {
        let stream = Arc::new(Self {
            context,
            is_default,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                submitted: 0,
                done: 0,
                failure: None,
                ended: false,
                capture: None,
            }),
            changed: Condvar::new(),
            epoch: AtomicU64::new(0),
        });
        let worker = stream.clone();
        std::thread::spawn(move || worker.serve());
        stream
    }

    fn serve(&self) {
        let config = &self.context.machine.config;
        let mut random = config.seed ^ (self.context.handle as u64) | 1;
        loop {
            let mut state = lock(&self.state);
            let task = loop {
                if let Some(task) = state.queue.pop_front() {
                    break task;
                }
                if state.ended {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            let running = Running { stream: self, epoch: self.epoch.load(Ordering::Acquire) };
            drop(state);
            let outcome = self.run(&task, &running, config.op_delay_us, &mut random);
            let mut state = lock(&self.state);
            state.done += 1;
            if let Err(failure) = outcome {
                // what was aborted is not an error of the work that comes after, nor one that stops the context
                if self.epoch.load(Ordering::Acquire) == running.epoch {
                    self.context.note_failure(&failure);
                    state.failure.get_or_insert(failure);
                }
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn run(&self, task: &Task, running: &Running<'_>, delay_us: u64, random: &mut u64) -> Outcome {
        let outcome = self
            .ready(task, running, delay_us, random)
            .and_then(|()| contained(codes::RT_AICORE_EXCEPTION, || (task.work)(running)));
        if let (Err(failure), Some(dropped)) = (&outcome, &task.dropped) {
            dropped(failure);
        }
        outcome
    }

    fn ready(&self, task: &Task, running: &Running<'_>, delay_us: u64, random: &mut u64) -> Outcome {
        if let Some(failure) = self.context.stopped_by() {
            return Err(failure);
        }
        let device = &self.context.device;
        if !task.instant && delay_us > 0 {
            // xorshift: half to one and a half times the delay
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            let delay = Duration::from_micros(delay_us / 2 + *random % (delay_us + 1));
            let end = Instant::now() + delay;
            running.wait(None, 0, || match end.saturating_duration_since(Instant::now()) {
                Duration::ZERO => true,
                rest => {
                    std::thread::sleep(rest.min(POLL));
                    Instant::now() >= end
                }
            })?;
        }
        let limit = if task.instant { None } else { self.context.machine.execute_limit() };
        running.wait(limit, codes::RT_AICORE_TIMEOUT, || !device.hangs())?;
        device.check()
    }

    /// Puts a task at the end of the queue, or into the capture. Answers its number for [`Stream::wait_for`].
    pub fn submit(&self, task: Task) -> Outcome<u64> {
        let mut state = lock(&self.state);
        if state.ended {
            return fail(codes::RT_INVALID_HANDLE, "the stream was destroyed");
        }
        if let Some((tasks, _)) = &mut state.capture {
            tasks.push(task);
            return Ok(state.submitted);
        }
        state.queue.push_back(task);
        state.submitted += 1;
        let number = state.submitted;
        drop(state);
        self.changed.notify_all();
        Ok(number)
    }

    /// Whether all work is done.
    pub fn idle(&self) -> bool {
        let state = lock(&self.state);
        state.done == state.submitted
    }

    /// What its work failed with so far, kept for the next synchronisation.
    pub fn failure(&self) -> Option<Failure> {
        lock(&self.state).failure.clone()
    }

    /// Waits for the work submitted until now and answers, and forgets, its failure. `code` answers a time-out.
    pub fn synchronize(&self, limit: Option<Duration>, code: i32) -> Outcome {
        self.refuse_captured()?;
        let number = lock(&self.state).submitted;
        self.wait_for(number, limit, code)?;
        self.context.device.check()?;
        if let Some(failure) = self.context.stopped_by() {
            return Err(failure);
        }
        match lock(&self.state).failure.take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Waits until the task of that number is done.
    pub fn wait_for(&self, number: u64, limit: Option<Duration>, code: i32) -> Outcome {
        let start = Instant::now();
        let epoch = self.epoch.load(Ordering::Acquire);
        let mut state = lock(&self.state);
        while state.done < number {
            if self.epoch.load(Ordering::Acquire) != epoch {
                return fail(codes::RT_STREAM_ABORT, "the stream was aborted");
            }
            let rest = match limit.map(|limit| limit.saturating_sub(start.elapsed())) {
                Some(Duration::ZERO) => return fail(code, format!("not done after {:?}", start.elapsed())),
                Some(rest) => rest,
                None => Duration::from_secs(1),
            };
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        if self.epoch.load(Ordering::Acquire) != epoch {
            return fail(codes::RT_STREAM_ABORT, "the stream was aborted");
        }
        Ok(())
    }

    fn drop_queue(&self, state: &mut State, failure: &Failure) {
        for task in state.queue.drain(..) {
            if let Some(dropped) = &task.dropped {
                dropped(failure);
            }
            state.done += 1;
        }
    }

    /// Stops the running task, drops the queued ones, and leaves the stream ready for new work.
    pub fn abort(&self) {
        let failure = Failure { code: codes::RT_STREAM_ABORT, text: "the stream was aborted".into() };
        let mut state = lock(&self.state);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.drop_queue(&mut state, &failure);
        self.changed.notify_all();
        while state.done < state.submitted {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.failure = None;
        self.context.resume();
    }

    /// Ends the stream's thread: after the queued work, or at once when forced.
    pub fn end(&self, force: bool) {
        let failure = Failure { code: codes::RT_STREAM_ABORT, text: "the stream was destroyed".into() };
        let mut state = lock(&self.state);
        state.ended = true;
        if force {
            self.epoch.fetch_add(1, Ordering::AcqRel);
            self.drop_queue(&mut state, &failure);
        }
        self.changed.notify_all();
        while state.done < state.submitted {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Records work instead of doing it. Mode 0 forbids synchronous calls to all threads, 1 to this one.
    pub fn capture(self: &Arc<Self>, mode: i32) -> Outcome {
        if self.is_default {
            return fail(codes::RT_STREAM_CAPTURE_IMPLICIT, "the default stream can't be captured");
        }
        let mut state = lock(&self.state);
        if state.capture.is_some() {
            return fail(codes::RT_STREAM_CAPTURED, "the stream is being captured");
        }
        let thread = std::thread::current().id();
        state.capture = Some((Vec::new(), thread));
        let forbidden = match mode {
            0 => None,
            1 => Some(thread),
            _ => return Ok(()),
        };
        lock(&STRICT_CAPTURES).push((Arc::as_ptr(self).addr(), forbidden));
        Ok(())
    }

    /// Ends the capture and answers what was recorded.
    pub fn captured(self: &Arc<Self>) -> Outcome<Vec<Task>> {
        let mut state = lock(&self.state);
        match &state.capture {
            None => return fail(codes::RT_STREAM_NOT_CAPTURED, "the stream is not being captured"),
            Some((_, thread)) if *thread != std::thread::current().id() => {
                return fail(codes::RT_STREAM_CAPTURE_WRONG_THREAD, "the capture began on another thread");
            }
            Some(_) => {}
        }
        lock(&STRICT_CAPTURES).retain(|(stream, _)| *stream != Arc::as_ptr(self).addr());
        Ok(state.capture.take().map(|(tasks, _)| tasks).unwrap_or_default())
    }

    /// Fails while the stream is being captured.
    pub fn refuse_captured(&self) -> Outcome {
        match lock(&self.state).capture {
            Some(_) => fail(codes::RT_STREAM_CAPTURED, "the stream is being captured"),
            None => Ok(()),
        }
    }
}

/// Fails when a capture forbids the calling thread to wait or to copy synchronously.
pub fn refuse_in_capture() -> Outcome {
    let here = std::thread::current().id();
    if lock(&STRICT_CAPTURES).iter().any(|(_, thread)| thread.is_none_or(|thread| thread == here)) {
        return fail(codes::RT_CAPTURE_MODE_NOT_SUPPORT, "the mode of a capture forbids synchronous calls");
    }
    Ok(())
}

/// Waits for all streams of the current context's device.
pub fn synchronize_device(limit: Option<Duration>) -> Outcome {
    refuse_in_capture()?;
    let context = current()?;
    let start = Instant::now();
    let mut streams: Vec<_> = STREAMS.all().into_iter().map(|(_, stream)| stream).collect();
    streams.extend(crate::context::CONTEXTS.all().into_iter().map(|(_, context)| context.default_stream()));
    streams.retain(|stream| Arc::ptr_eq(&stream.context.device, &context.device));
    let mut outcome = Ok(());
    for stream in streams {
        let rest = limit.map(|limit| limit.saturating_sub(start.elapsed()));
        outcome = outcome.and(stream.synchronize(rest, codes::RT_STREAM_SYNC_TIMEOUT));
    }
    outcome
}

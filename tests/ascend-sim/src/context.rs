//! Contexts: one is current on a thread, and a stream belongs to one.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::codes;
use crate::failure::{Failure, Outcome, fail};
use crate::lock;
use crate::machine::{Device, Machine, machine};
use crate::registry::{Registry, fresh};
use crate::stream::{self, Stream};

/// All contexts.
pub static CONTEXTS: Registry<Context> =
    Registry::new("context", codes::RT_CONTEXT_NULL, codes::RT_INVALID_HANDLE);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// A context on a device.
pub struct Context {
    /// Its handle.
    pub handle: usize,
    /// The machine that it was made on.
    pub machine: Arc<Machine>,
    /// Its device.
    pub device: Arc<Device>,
    implicit: bool,
    default_stream: Mutex<Option<Arc<Stream>>>,
    stop_on_failure: AtomicBool,
    failed: Mutex<Option<Failure>>,
}

impl Context {
    fn create(machine: Arc<Machine>, device: Arc<Device>, implicit: bool) -> Arc<Self> {
        let handle = fresh();
        let context = Arc::new(Self {
            handle,
            machine,
            device,
            implicit,
            default_stream: Mutex::default(),
            stop_on_failure: AtomicBool::new(false),
            failed: Mutex::default(),
        });
        CONTEXTS.insert_as(handle, context.clone());
        context
    }

    /// The stream that a null handle means.
    pub fn default_stream(self: &Arc<Self>) -> Arc<Stream> {
        lock(&self.default_stream).get_or_insert_with(|| Stream::start(self.clone(), true)).clone()
    }

    /// From now on a failed task stops the context's streams.
    pub fn set_stop_on_failure(&self, stop: bool) {
        self.stop_on_failure.store(stop, Ordering::Relaxed);
    }

    /// Records that a task failed.
    pub fn note_failure(&self, failure: &Failure) {
        if self.stop_on_failure.load(Ordering::Relaxed) {
            lock(&self.failed).get_or_insert_with(|| failure.clone());
        }
    }

    /// What stopped the context's streams, if anything has.
    pub fn stopped_by(&self) -> Option<Failure> {
        lock(&self.failed).clone()
    }

    /// Lets the streams run again, as an abort does.
    pub fn resume(&self) {
        *lock(&self.failed) = None;
    }

    fn end(&self, force: bool) {
        for (handle, stream) in stream::STREAMS.all() {
            if stream.context.handle == self.handle {
                stream.end(force);
                stream::STREAMS.forget(handle);
            }
        }
        if let Some(stream) = lock(&self.default_stream).take() {
            stream.end(force);
        }
    }
}

/// The calling thread's context.
pub fn current() -> Outcome<Arc<Context>> {
    machine()?;
    match CURRENT.get() {
        0 => fail(codes::RT_CONTEXT_NULL, "the calling thread has no current context"),
        handle => CONTEXTS
            .get(std::ptr::without_provenance(handle))
            .or_else(|_| fail(codes::RT_CONTEXT_NULL, "the calling thread's context was destroyed")),
    }
}

/// Makes a context and makes it current.
pub fn create(device: i32) -> Outcome<*mut c_void> {
    let machine = machine()?;
    let device = machine.device(device)?.clone();
    device.check()?;
    let context = Context::create(machine, device, false);
    CURRENT.set(context.handle);
    Ok(std::ptr::without_provenance_mut(context.handle))
}

/// Destroys a context that [`create`] made.
pub fn destroy(handle: *const c_void) -> Outcome {
    let context = CONTEXTS.get(handle)?;
    if context.implicit {
        return fail(codes::RT_PARAM_INVALID, "a default context is released by resetting its device");
    }
    context.end(false);
    CONTEXTS.remove(handle)?;
    Ok(())
}

/// Makes a context current on this thread.
pub fn set_current(handle: *const c_void) -> Outcome {
    machine()?;
    let context = CONTEXTS.get(handle)?;
    CURRENT.set(context.handle);
    Ok(())
}

/// Makes a device's default context current, making it when it is the first use of the device.
pub fn set_device(id: i32) -> Outcome {
    let machine = machine()?;
    let device = machine.device(id)?.clone();
    device.check()?;
    let mut uses = lock(&device.uses);
    if uses.0 == 0 {
        uses.1 = Context::create(machine, device.clone(), true).handle;
    }
    uses.0 += 1;
    CURRENT.set(uses.1);
    Ok(())
}

/// Takes one use of a device back, or all; the last releases what is on it.
pub fn reset_device(id: i32, force: bool) -> Outcome {
    let machine = machine()?;
    let device = machine.device(id)?;
    let default = {
        let mut uses = lock(&device.uses);
        if uses.0 == 0 {
            return fail(codes::RT_INVALID_DEVICE, format!("device {id} is not set"));
        }
        uses.0 = if force { 0 } else { uses.0 - 1 };
        if uses.0 > 0 {
            return Ok(());
        }
        std::mem::take(&mut uses.1)
    };
    release(default, false);
    crate::hccl::comm::COMMS.release(Some(device.id));
    lock(&device.heap).release_all();
    Ok(())
}

fn release(handle: usize, force: bool) {
    let handle = std::ptr::without_provenance(handle);
    if let Ok(context) = CONTEXTS.get(handle) {
        context.end(force);
        // a failure can only mean that another thread released it first
        let _ = CONTEXTS.remove(handle);
    }
}

/// Releases all contexts, as `aclFinalize` does.
pub fn release_all() {
    for (handle, _) in CONTEXTS.all() {
        release(handle, true);
    }
}

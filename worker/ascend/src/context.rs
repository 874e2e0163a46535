//! Contexts, and the one that a thread is bound to.
//!
//! CANN keeps the current context per thread. Whatever needs one takes a [`Current`], which cannot leave the thread
//! that made it; an object of another context is then refused before CANN is called.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::ffi::RawContext;
use crate::{Device, Error, Result, Runtime};

thread_local! {
    static BOUND: RefCell<Option<Binding>> = const { RefCell::new(None) };
}

/// What a thread is bound to.
struct Binding {
    /// Holding on to it keeps the context alive even if a guard is forgotten.
    context: Context,
    /// Guards that live on this thread.
    guards: usize,
    /// Another context is current, and this one could not be made so again.
    is_lost: bool,
}

/// A context on a device, to which streams, events and memory belong. Cheap to clone; each of these objects holds on
/// to its context.
#[derive(Clone, Debug)]
pub struct Context {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: Device,
    raw: RawContext,
}

// SAFETY: a context may be used by several threads, as documented for contexts that were created explicitly; the
// pointer is only handed to the runtime.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Context {
    /// A context of its own on a device.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn new(device: &Device) -> Result<Self> {
        let runtime = device.runtime();
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is alive during the call; the device was set.
        let code = unsafe { (runtime.symbols().aclrtCreateContext)(&mut raw, device.index()) };
        runtime.check("aclrtCreateContext", code)?;
        let context = Self { inner: Arc::new(Inner { device: device.clone(), raw }) };
        // a new context becomes the current one
        restore_binding(runtime);
        Ok(context)
    }

    /// Makes it the context of this thread for as long as the guard lives. Guards of the same context may be nested.
    ///
    /// # Errors
    /// [`Error::WrongContext`] if the thread is bound to another context; [`Error::Call`].
    pub fn bind(&self) -> Result<Current> {
        BOUND.with(|bound| {
            let mut bound = bound.borrow_mut();
            match bound.as_mut() {
                Some(binding) if binding.context.is(self) => binding.guards += 1,
                Some(_) => return Err(Error::WrongContext { call: "bind" }),
                None => {
                    self.set()?;
                    *bound = Some(Binding { context: self.clone(), guards: 1, is_lost: false });
                }
            }
            Ok(Current { context: self.clone(), _this_thread: PhantomData })
        })
    }

    /// The device it is on.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.inner.device.runtime()
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Runs a release with this context current, on whatever thread that is. Releases may nest.
    pub(crate) fn enter(&self, release: impl FnOnce()) {
        if is_bound_to(self) {
            return release();
        }
        // a release that this one causes is then already inside; at the end of a thread there is no binding to keep
        let entered = Binding { context: self.clone(), guards: 1, is_lost: false };
        let before = BOUND.try_with(|bound| bound.borrow_mut().replace(entered));
        // a failure has no effect, and another try may have one
        if let Err(error) = self.set().or_else(|_| self.set()) {
            // the release is tried nevertheless, and says itself whether it worked
            tracing::warn!(%error, "a context could not be entered for a release");
        }
        release();
        if let Ok(before) = before {
            let entered = BOUND.try_with(|bound| std::mem::replace(&mut *bound.borrow_mut(), before));
            drop(entered);
            restore_binding(self.runtime());
        }
    }

    fn set(&self) -> Result<()> {
        // SAFETY: the context lives as long as `inner`.
        let code = unsafe { (self.runtime().symbols().aclrtSetCurrentContext)(self.inner.raw) };
        Ok(self.runtime().check("aclrtSetCurrentContext", code)?)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let runtime = self.device.runtime();
        // SAFETY: created by `Context::new`; streams, events, memory and bound threads hold on to it, so none is left.
        let code = unsafe { (runtime.symbols().aclrtDestroyContext)(self.raw) };
        runtime.released("aclrtDestroyContext", code);
    }
}

/// Proof that the current thread is bound to a context. It cannot be sent to another thread.
#[derive(Debug)]
pub struct Current {
    context: Context,
    _this_thread: PhantomData<*const ()>,
}

impl Current {
    /// The context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.context.runtime()
    }

    /// Refuses an object of another context.
    pub(crate) fn require(&self, context: &Context, call: &'static str) -> Result<()> {
        if !self.context.is(context) {
            return Err(Error::WrongContext { call });
        }
        self.hold()
    }

    /// Refuses memory of another device. Contexts of a device share its memory; streams and events they do not.
    pub(crate) fn require_memory(&self, context: &Context, call: &'static str) -> Result<()> {
        if !self.context.is(context) && self.context.device().index() != context.device().index() {
            return Err(Error::WrongContext { call });
        }
        self.hold()
    }

    /// Makes the context current again if it was lost to a release of another one.
    pub(crate) fn hold(&self) -> Result<()> {
        BOUND.with(|bound| match bound.borrow_mut().as_mut() {
            Some(binding) if binding.is_lost => {
                self.context.set()?;
                binding.is_lost = false;
                Ok(())
            }
            _ => Ok(()),
        })
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // the context stays current in CANN: there is no call that leaves a thread without one. Nothing here relies on
        // it without a guard.
        let last = BOUND.try_with(|bound| {
            let mut bound = bound.borrow_mut();
            match bound.as_mut() {
                Some(binding) if binding.guards > 1 => {
                    binding.guards -= 1;
                    None
                }
                _ => bound.take(),
            }
        });
        // dropped outside of the borrow: this may destroy the context
        drop(last);
    }
}

fn is_bound_to(context: &Context) -> bool {
    let is = |binding: &Binding| binding.context.is(context) && !binding.is_lost;
    BOUND.try_with(|bound| bound.borrow().as_ref().is_some_and(is)).unwrap_or(false)
}

/// Makes the thread's bound context current again after a call that changed it. If that fails, it is tried again before
/// the next use of a guard.
pub(crate) fn restore_binding(runtime: &Runtime) {
    let _ = BOUND.try_with(|bound| {
        let mut bound = bound.borrow_mut();
        let Some(binding) = bound.as_mut() else { return };
        // SAFETY: the context is alive, since the thread holds on to it.
        let code = unsafe { (runtime.symbols().aclrtSetCurrentContext)(binding.context.inner.raw) };
        let outcome = runtime.check("aclrtSetCurrentContext", code);
        binding.is_lost = outcome.is_err();
        if let Err(error) = outcome {
            tracing::warn!(%error, "a thread lost its context");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    trait Sent<A> {
        fn is_sent() {}
    }
    impl<T: ?Sized> Sent<()> for T {}
    impl<T: ?Sized + Send> Sent<u8> for T {}

    fn shared<T: Send + Sync>() {}

    #[test]
    fn a_guard_stays_on_its_thread_and_what_it_guards_does_not() {
        // ambiguous, and so no program, if guards could be sent
        <Current as Sent<_>>::is_sent();
        shared::<Context>();
        shared::<crate::Stream>();
        shared::<crate::Event>();
        shared::<crate::Region>();
        shared::<crate::HostBuffer>();
    }
}

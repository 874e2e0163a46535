//! The process's use of CANN: initialised once, finalised when the last user is gone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::ffi::{HcclStatus, OK, REPEATED_INIT, Status};
use crate::library::{Library, Symbols};
use crate::{AscendError, Error, Result};

/// CANN is initialised for a process, not for a user: this counts the users.
static PROCESS: Mutex<Process> = Mutex::new(Process { users: 0, ours: false, library: None });

struct Process {
    users: usize,
    /// We initialised it, so we finalise it.
    ours: bool,
    library: Option<Arc<Library>>,
}

/// CANN, initialised. Cheap to clone; the last one that goes finalises CANN.
///
/// Keep it out of statics: CANN must not be finalised while the process runs its exit handlers.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    library: Arc<Library>,
    unreleased: AtomicU64,
}

impl Runtime {
    /// Initialises CANN, unless this process did so before.
    ///
    /// # Errors
    /// [`Error::OtherLibrary`] if another library is in use; [`Error::Call`] if the initialisation fails.
    pub fn start(library: Arc<Library>) -> Result<Self> {
        let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        if process.library.as_ref().is_some_and(|used| !Arc::ptr_eq(used, &library)) {
            return Err(Error::OtherLibrary);
        }
        if process.users == 0 {
            // SAFETY: null stands for no configuration file.
            let code = unsafe { (library.symbols().aclInit)(std::ptr::null()) };
            if code != REPEATED_INIT {
                library.check("aclInit", code)?;
            }
            process.ours = code == OK;
            process.library = Some(Arc::clone(&library));
        }
        process.users += 1;
        Ok(Self { inner: Arc::new(Inner { library, unreleased: AtomicU64::new(0) }) })
    }

    /// Devices that this process sees.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn device_count(&self) -> Result<u32> {
        let mut count = 0;
        // SAFETY: `count` is alive during the call.
        let code = unsafe { (self.symbols().aclrtGetDeviceCount)(&mut count) };
        self.check("aclrtGetDeviceCount", code)?;
        Ok(count)
    }

    /// The libraries behind it.
    pub fn library(&self) -> &Arc<Library> {
        &self.inner.library
    }

    /// Objects whose release failed. They are not released again: the documentation does not say whether an object
    /// whose release failed still exists.
    pub fn unreleased(&self) -> u64 {
        self.inner.unreleased.load(Ordering::Relaxed)
    }

    pub(crate) fn symbols(&self) -> &Symbols {
        self.inner.library.symbols()
    }

    pub(crate) fn check(&self, call: &'static str, code: Status) -> Result<(), AscendError> {
        self.inner.library.check(call, code)
    }

    /// The same for a function of HCCL.
    pub(crate) fn check_hccl(&self, call: &'static str, code: HcclStatus) -> Result<(), AscendError> {
        self.inner.library.check_hccl(call, code)
    }

    /// Takes note of how a release went. Nobody waits for an answer, so a failure is counted and logged.
    pub(crate) fn released(&self, call: &'static str, code: Status) {
        if let Err(error) = self.check(call, code) {
            self.left_behind(&error.to_string());
        }
    }

    /// Counts an object that cannot be released.
    pub(crate) fn left_behind(&self, why: &str) {
        self.inner.unreleased.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(why, "an object of the device runtime is left behind");
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Runtime").field("library", &self.inner.library).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        process.users -= 1;
        if process.users > 0 {
            return;
        }
        process.library = None;
        if process.ours {
            // SAFETY: every object of the runtime holds on to an `Inner`, so none is left.
            let code = unsafe { (self.library.symbols().aclFinalize)() };
            if let Err(error) = self.library.check("aclFinalize", code) {
                tracing::warn!(%error, "the device runtime was not finalised");
            }
        }
    }
}

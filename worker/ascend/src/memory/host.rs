use std::ffi::c_void;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::stream::Kept;
use crate::{Context, Current, Result};

/// Pinned host memory, which a device copies to and from by itself.
pub struct HostBuffer {
    allocation: Arc<Allocation>,
    kept: Kept,
}

struct Allocation {
    context: Context,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory; access to the bytes goes through the one `HostBuffer`.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl HostBuffer {
    /// `bytes` zero bytes.
    ///
    /// # Errors
    /// [`Error::Call`](crate::Error::Call).
    pub fn new(current: &Current, bytes: usize) -> Result<Self> {
        current.hold()?;
        let runtime = current.runtime();
        let mut memory = std::ptr::null_mut();
        // SAFETY: `memory` is alive during the call; the thread has a context.
        let code = unsafe { (runtime.symbols().aclrtMallocHost)(&mut memory, bytes.max(1)) };
        runtime.check("aclrtMallocHost", code)?;
        let start = runtime.library().check_object("aclrtMallocHost", memory)?.cast::<u8>();
        // SAFETY: `bytes` bytes that were just allocated and that nobody else knows.
        unsafe { start.write_bytes(0, bytes) };
        let allocation = Arc::new(Allocation { context: current.context().clone(), start, len: bytes });
        Ok(Self { kept: Arc::clone(&allocation) as Kept, allocation })
    }

    /// The context it belongs to.
    pub fn context(&self) -> &Context {
        &self.allocation.context
    }

    pub(super) fn pointer(&self) -> *mut c_void {
        self.allocation.start.as_ptr().cast()
    }

    pub(super) fn kept(&self) -> &Kept {
        &self.kept
    }
}

impl Deref for HostBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are initialised and live as long as the allocation. A copy of a stream that uses them owns
        // the `HostBuffer` meanwhile (`Pending`), so there is none to be read through.
        unsafe { std::slice::from_raw_parts(self.allocation.start.as_ptr(), self.allocation.len) }
    }
}

impl DerefMut for HostBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; a `HostBuffer` cannot be cloned, and streams that hold on to the allocation never look
        // into it.
        unsafe { std::slice::from_raw_parts_mut(self.allocation.start.as_ptr(), self.allocation.len) }
    }
}

impl std::fmt::Debug for HostBuffer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "HostBuffer({} bytes)", self.allocation.len)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.context.enter(|| {
            let free = self.context.runtime().symbols().aclrtFreeHost;
            // SAFETY: given by aclrtMallocHost and freed once; streams that use it hold on to it.
            let code = unsafe { free(self.start.as_ptr().cast()) };
            self.context.runtime().released("aclrtFreeHost", code);
        });
    }
}

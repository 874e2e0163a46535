use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use crate::stream::Kept;
use crate::{AscendError, Context, Current, Error, Kind, Result};

/// Which pages of the device's memory an allocation takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// Huge ones if there are, else small ones.
    #[default]
    HugeFirst,
    /// Huge ones.
    HugeOnly,
    /// Small ones.
    NormalOnly,
}

impl Pages {
    fn policy(self) -> i32 {
        match self {
            Self::HugeFirst => 0,
            Self::HugeOnly => 1,
            Self::NormalOnly => 2,
        }
    }
}

/// One allocation of device memory. It is freed when the last region of it is gone and no stream's work uses it.
#[derive(Clone, Debug)]
pub struct DeviceBuffer {
    whole: Region,
}

impl DeviceBuffer {
    /// Allocates; the contents are undefined.
    ///
    /// # Errors
    /// [`Error::OutOfDeviceMemory`], [`Error::Call`].
    pub fn new(current: &Current, bytes: usize, pages: Pages) -> Result<Self> {
        current.hold()?;
        let runtime = current.runtime();
        let mut memory = std::ptr::null_mut();
        // SAFETY: `memory` is alive during the call; the thread has a context.
        let code = unsafe { (runtime.symbols().aclrtMalloc)(&mut memory, bytes.max(1), pages.policy()) };
        runtime.check("aclrtMalloc", code).map_err(|cause| refusal(current, bytes, cause))?;
        runtime.library().check_object("aclrtMalloc", memory)?;
        let allocation =
            Arc::new(Allocation { context: current.context().clone(), address: memory as usize });
        let kept = Arc::clone(&allocation) as Kept;
        Ok(Self { whole: Region { allocation, kept, offset: 0, len: bytes } })
    }

    /// All of it.
    pub fn region(&self) -> &Region {
        &self.whole
    }
}

fn refusal(current: &Current, bytes: usize, cause: AscendError) -> Error {
    if cause.kind != Kind::OutOfMemory {
        return cause.into();
    }
    let free = current.context().device().memory(current).map_or(0, |memory| memory.free);
    Error::OutOfDeviceMemory { bytes, free, cause }
}

#[derive(Debug)]
struct Allocation {
    context: Context,
    address: usize,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.context.enter(|| {
            // SAFETY: given by aclrtMalloc and freed once; regions and streams that use it hold on to it.
            let code = unsafe { (self.context.runtime().symbols().aclrtFree)(self.address as *mut c_void) };
            self.context.runtime().released("aclrtFree", code);
        });
    }
}

/// A part of device memory. It names bytes and keeps them allocated; it does not own them: whoever has two regions of
/// the same bytes has to order what he queues on them.
#[derive(Clone)]
pub struct Region {
    allocation: Arc<Allocation>,
    kept: Kept,
    offset: usize,
    len: usize,
}

impl Region {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address on the device; nothing that the host can read.
    pub fn address(&self) -> usize {
        self.allocation.address + self.offset
    }

    /// Bytes `range` of it.
    ///
    /// # Errors
    /// [`Error::TooSmall`].
    pub fn part(&self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::TooSmall {
                what: "a part of a region",
                needed: range.end,
                available: self.len,
            });
        }
        let (allocation, kept) = (Arc::clone(&self.allocation), Arc::clone(&self.kept));
        Ok(Self { allocation, kept, offset: self.offset + range.start, len: range.end - range.start })
    }

    /// The context it belongs to.
    pub fn context(&self) -> &Context {
        &self.allocation.context
    }

    pub(crate) fn pointer(&self) -> *mut c_void {
        self.address() as *mut c_void
    }

    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Region({:#x}, {} bytes)", self.address(), self.len)
    }
}

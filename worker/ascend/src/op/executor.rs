use std::ffi::c_void;
use std::ptr::NonNull;

use crate::ffi::{RawExecutor, RawTensor, Status};
use crate::library::Queue;
use crate::memory::Region;
use crate::stream::Kept;
use crate::tensor::Tensor;
use crate::{Current, Error, Result, Runtime, Stream};

/// Gives a tensor of a planned operator another address.
type SetAddress = unsafe extern "C" fn(*mut RawExecutor, usize, *mut RawTensor, *mut c_void) -> Status;

/// An operator that was planned.
///
/// As planned it can be queued once, and the library destroys it then, whether queueing works or not. Made repeatable
/// it is ours: queued any number of times and destroyed in the end.
#[derive(Debug)]
pub(super) struct Executor {
    runtime: Runtime,
    /// `None` once the library has taken it.
    raw: Option<NonNull<RawExecutor>>,
    workspace: u64,
    is_repeatable: bool,
}

// SAFETY: a plan in host memory that has no ties to a thread.
unsafe impl Send for Executor {}

impl Executor {
    /// Runs the phase that plans. `plan` gets where to put the size of the workspace and the executor.
    pub(super) fn plan(
        runtime: &Runtime,
        call: &'static str,
        plan: impl FnOnce(*mut u64, *mut *mut RawExecutor) -> Status,
    ) -> Result<Self> {
        let (mut workspace, mut raw) = (0, std::ptr::null_mut());
        let code = plan(&mut workspace, &mut raw);
        // after a failure `raw` says nothing
        runtime.check(call, code)?;
        let raw = runtime.library().check_object(call, raw)?;
        Ok(Self { runtime: runtime.clone(), raw: Some(raw), workspace, is_repeatable: false })
    }

    /// Makes it repeatable; to be called right after planning. Some operators cannot be.
    pub(super) fn make_repeatable(&mut self) -> Result<()> {
        let Some(raw) = self.raw.filter(|_| !self.is_repeatable) else { return Ok(()) };
        // SAFETY: planned and not queued yet.
        let code = unsafe { (self.runtime.symbols().aclSetAclOpExecutorRepeatable)(raw.as_ptr()) };
        self.runtime.check("aclSetAclOpExecutorRepeatable", code)?;
        self.is_repeatable = true;
        Ok(())
    }

    /// Bytes of workspace that it needs.
    pub(super) fn workspace(&self) -> usize {
        usize::try_from(self.workspace).unwrap_or(usize::MAX)
    }

    pub(super) fn is_repeatable(&self) -> bool {
        self.is_repeatable
    }

    /// Tells input `index` that its memory is elsewhere.
    pub(super) fn move_input(&self, index: usize, tensor: &mut Tensor, to: &Region) -> Result<()> {
        self.move_tensor(
            "aclSetInputTensorAddr",
            self.runtime.symbols().aclSetInputTensorAddr,
            index,
            tensor,
            to,
        )
    }

    /// Tells output `index` that its memory is elsewhere.
    pub(super) fn move_output(&self, index: usize, tensor: &mut Tensor, to: &Region) -> Result<()> {
        self.move_tensor(
            "aclSetOutputTensorAddr",
            self.runtime.symbols().aclSetOutputTensorAddr,
            index,
            tensor,
            to,
        )
    }

    fn move_tensor(
        &self,
        call: &'static str,
        set: SetAddress,
        index: usize,
        tensor: &mut Tensor,
        to: &Region,
    ) -> Result<()> {
        let Some(raw) = self.raw.filter(|_| tensor.address() != to.address()) else { return Ok(()) };
        // SAFETY: executor and tensor are alive, and the tensor is the one that it was planned with.
        let code = unsafe { set(raw.as_ptr(), index, tensor.raw(), to.pointer()) };
        self.runtime.check(call, code)?;
        tensor.set_address(to.address());
        Ok(())
    }

    /// Queues it. `kept` is all memory that it uses, the workspace's included.
    pub(super) fn launch(
        &mut self,
        current: &Current,
        stream: &Stream,
        workspace: &Region,
        kept: &[&Kept],
        (call, queue): (&'static str, Queue),
    ) -> Result<()> {
        let needed = self.workspace();
        if needed > workspace.len() {
            return Err(Error::TooSmall { what: "the workspace", needed, available: workspace.len() });
        }
        let Some(raw) = self.raw else { return Ok(()) };
        let pointer = if needed == 0 { std::ptr::null_mut() } else { workspace.pointer() };
        let (bytes, is_repeatable) = (self.workspace, self.is_repeatable);
        let taken = &mut self.raw;
        stream.submit(current, call, kept, |stream| {
            if !is_repeatable {
                *taken = None;
            }
            // SAFETY: the executor was planned for this operator and is not spent; the workspace has the size that
            // planning asked for, and the stream holds on to it and to the tensors' memory.
            unsafe { queue(pointer, bytes, raw.as_ptr(), stream) }
        })?;
        Ok(())
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // one that was planned and never queued is documented to be destroyed only after it was made repeatable
        let marked = self.make_repeatable();
        let Some(raw) = self.raw else { return };
        if let Err(error) = marked {
            return self.runtime.left_behind(&error.to_string());
        }
        // SAFETY: repeatable, so it is ours, and destroyed once. Queued work does not use it: the library itself
        // destroys one that is not repeatable as soon as it was queued.
        let code = unsafe { (self.runtime.symbols().aclDestroyAclOpExecutor)(raw.as_ptr()) };
        self.runtime.released("aclDestroyAclOpExecutor", code);
    }
}

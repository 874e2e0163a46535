//! The library's objects, each released once.

use std::ptr::NonNull;

use super::{DataType, View};
use crate::ffi::{RawIntArray, RawScalar, RawTensor, RawTensorList, format};
use crate::{Result, Runtime};

/// Description of a tensor as the operator library holds it. It names an address but does not keep the memory.
#[derive(Debug)]
pub struct Tensor {
    runtime: Runtime,
    raw: NonNull<RawTensor>,
    address: usize,
    is_ours: bool,
}

// SAFETY: a description in host memory that has no ties to a thread.
unsafe impl Send for Tensor {}

impl Tensor {
    /// Describes a view.
    ///
    /// # Errors
    /// [`Error::Call`](crate::Error::Call).
    pub fn new(runtime: &Runtime, view: &View) -> Result<Self> {
        let layout = view.layout();
        let (dims, strides) = (layout.dims(), layout.strides());
        // a view that is not all of its memory lies in a storage of one dimension
        let span = [layout.offset() + layout.span() as i64];
        let storage = if layout.is_contiguous() && layout.offset() == 0 { dims } else { &span[..] };
        // SAFETY: the arrays are alive during the call, which copies them; the memory is only named.
        let raw = unsafe {
            (runtime.symbols().aclCreateTensor)(
                dims.as_ptr(),
                dims.len() as u64,
                layout.dtype() as i32,
                strides.as_ptr(),
                layout.offset(),
                format::ND,
                storage.as_ptr(),
                storage.len() as u64,
                view.region().pointer(),
            )
        };
        let raw = runtime.library().check_object("aclCreateTensor", raw)?;
        Ok(Self { runtime: runtime.clone(), raw, address: view.region().address(), is_ours: true })
    }

    /// Address of the memory that it names.
    pub fn address(&self) -> usize {
        self.address
    }

    pub(crate) fn set_address(&mut self, address: usize) {
        self.address = address;
    }

    pub(crate) fn raw(&self) -> *mut RawTensor {
        self.raw.as_ptr()
    }

    /// Leaves the object to a list.
    fn give_away(mut self) {
        self.is_ours = false;
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        // SAFETY: created by `new` and in no list.
        let code = unsafe { (self.runtime.symbols().aclDestroyTensor)(self.raw.as_ptr()) };
        self.runtime.released("aclDestroyTensor", code);
    }
}

/// A list of tensors, which it owns.
#[derive(Debug)]
pub struct TensorList {
    runtime: Runtime,
    raw: NonNull<RawTensorList>,
}

// SAFETY: a description in host memory that has no ties to a thread.
unsafe impl Send for TensorList {}

impl TensorList {
    /// Takes the tensors into a list; they are released if that fails.
    ///
    /// # Errors
    /// [`Error::Call`](crate::Error::Call).
    pub fn new(runtime: &Runtime, tensors: Vec<Tensor>) -> Result<Self> {
        let raw: Vec<*const RawTensor> = tensors.iter().map(|tensor| tensor.raw().cast_const()).collect();
        // SAFETY: the array is alive during the call; its members are alive and owned here.
        let list = unsafe { (runtime.symbols().aclCreateTensorList)(raw.as_ptr(), raw.len() as u64) };
        let list = runtime.library().check_object("aclCreateTensorList", list)?;
        // the list now releases its members
        tensors.into_iter().for_each(Tensor::give_away);
        Ok(Self { runtime: runtime.clone(), raw: list })
    }
}

impl TensorList {
    pub(crate) fn raw(&self) -> *mut RawTensorList {
        self.raw.as_ptr()
    }
}

impl Drop for TensorList {
    fn drop(&mut self) {
        // SAFETY: created by `new`; this releases the members as well.
        let code = unsafe { (self.runtime.symbols().aclDestroyTensorList)(self.raw.as_ptr()) };
        self.runtime.released("aclDestroyTensorList", code);
    }
}

/// A number with its type.
#[derive(Debug)]
pub struct Scalar {
    runtime: Runtime,
    raw: NonNull<RawScalar>,
}

// SAFETY: a number in host memory that has no ties to a thread.
unsafe impl Send for Scalar {}

impl Scalar {
    /// An f32.
    ///
    /// # Errors
    /// [`Error::Call`](crate::Error::Call).
    pub fn f32(runtime: &Runtime, mut value: f32) -> Result<Self> {
        let value = (&raw mut value).cast();
        // SAFETY: the value is alive during the call, which copies it, and has the type that is named.
        let raw = unsafe { (runtime.symbols().aclCreateScalar)(value, DataType::F32 as i32) };
        Ok(Self { runtime: runtime.clone(), raw: runtime.library().check_object("aclCreateScalar", raw)? })
    }

    pub(crate) fn raw(&self) -> *const RawScalar {
        self.raw.as_ptr()
    }
}

impl Drop for Scalar {
    fn drop(&mut self) {
        // SAFETY: created by `f32` and released once.
        let code = unsafe { (self.runtime.symbols().aclDestroyScalar)(self.raw.as_ptr()) };
        self.runtime.released("aclDestroyScalar", code);
    }
}

/// A list of integers, such as axes.
#[derive(Debug)]
pub struct IntArray {
    runtime: Runtime,
    raw: NonNull<RawIntArray>,
}

// SAFETY: numbers in host memory that have no ties to a thread.
unsafe impl Send for IntArray {}

impl IntArray {
    /// Copies the values.
    ///
    /// # Errors
    /// [`Error::Call`](crate::Error::Call).
    pub fn new(runtime: &Runtime, values: &[i64]) -> Result<Self> {
        // SAFETY: the values are alive during the call, which copies them.
        let raw = unsafe { (runtime.symbols().aclCreateIntArray)(values.as_ptr(), values.len() as u64) };
        Ok(Self { runtime: runtime.clone(), raw: runtime.library().check_object("aclCreateIntArray", raw)? })
    }

    pub(crate) fn raw(&self) -> *const RawIntArray {
        self.raw.as_ptr()
    }
}

impl Drop for IntArray {
    fn drop(&mut self) {
        // SAFETY: created by `new` and released once.
        let code = unsafe { (self.runtime.symbols().aclDestroyIntArray)(self.raw.as_ptr()) };
        self.runtime.released("aclDestroyIntArray", code);
    }
}

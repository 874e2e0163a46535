//! `aclTensor`, `aclScalar`, `aclIntArray`, `aclTensorList`.

use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use crate::codes;
use crate::dtype::DType;
use crate::failure::{Outcome, fail};
use crate::lock;
use crate::registry::Registry;
use crate::view::{View, dense_strides};

const NULL: i32 = codes::NN_PARAM_NULLPTR;
const BAD: i32 = codes::NN_PARAM_INVALID;

/// All tensors.
pub static TENSORS: Registry<Tensor> = Registry::new("tensor", NULL, BAD);
/// All scalars.
pub static SCALARS: Registry<Scalar> = Registry::new("scalar", NULL, BAD);
/// All integer arrays.
pub static INT_ARRAYS: Registry<Vec<i64>> = Registry::new("int_array", NULL, BAD);
/// All tensor lists: the handles of their members.
pub static TENSOR_LISTS: Registry<Vec<usize>> = Registry::new("tensor_list", NULL, BAD);

/// A tensor: a view whose address can be replaced.
pub struct Tensor {
    view: Mutex<View>,
    // kept for the C caller that asks for the shape
    shape: Vec<i64>,
}

/// What describes a new tensor.
pub struct Description {
    /// The sizes of the view.
    pub shape: Vec<i64>,
    /// The strides in elements; none = dense.
    pub strides: Option<Vec<i64>>,
    /// The first element.
    pub offset: i64,
    /// The `aclDataType`.
    pub dtype: i32,
    /// The `aclFormat`.
    pub format: i32,
    /// The address of the storage.
    pub address: u64,
}

impl Tensor {
    /// A tensor of that description.
    pub fn new(description: Description) -> Outcome<Arc<Self>> {
        let Description { shape, strides, offset, dtype, format, address } = description;
        let Some(dtype) = DType::of(dtype) else {
            return fail(codes::INVALID_PARAM, format!("data type {dtype} is not simulated"));
        };
        if shape.len() > 8 || shape.iter().any(|size| *size < 0) || offset < 0 {
            return fail(codes::INVALID_PARAM, format!("shape {shape:?}, offset {offset}"));
        }
        let sizes: Vec<usize> = shape.iter().map(|size| *size as usize).collect();
        let strides = strides.unwrap_or_else(|| dense_strides(&sizes));
        let view = View { dtype, shape: sizes, strides, offset, address, format };
        Ok(Arc::new(Self { view: Mutex::new(view), shape }))
    }

    /// What it shows now.
    pub fn view(&self) -> View {
        lock(&self.view).clone()
    }

    /// Replaces the address.
    pub fn set_address(&self, address: u64) {
        lock(&self.view).address = address;
    }

    /// The sizes of the view.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }
}

/// A scalar.
#[derive(Debug, Clone, Copy)]
pub struct Scalar {
    /// Its type.
    pub dtype: DType,
    bits: u64,
}

impl Scalar {
    /// A scalar from the bytes at `value`.
    ///
    /// # Safety
    /// `value` is null or readable for the size of the type.
    pub unsafe fn read(value: *const c_void, dtype: i32) -> Outcome<Arc<Self>> {
        let dtype = match DType::of(dtype) {
            Some(dtype) if dtype.bits() >= 8 => dtype,
            _ => return fail(codes::INVALID_PARAM, format!("data type {dtype} of a scalar")),
        };
        let mut word = [0; 8];
        for (index, byte) in word.iter_mut().take(dtype.bits() / 8).enumerate() {
            if value.is_null() {
                return fail(codes::INVALID_PARAM, "the value is null");
            }
            // SAFETY: promised by the caller.
            *byte = unsafe { *value.cast::<u8>().add(index) };
        }
        Ok(Arc::new(Self { dtype, bits: u64::from_le_bytes(word) }))
    }

    /// Its value as a float.
    pub fn float(&self) -> f32 {
        self.dtype.decode_float(self.bits)
    }

    /// Its value as an integer.
    pub fn int(&self) -> i64 {
        self.dtype.decode_int(self.bits)
    }
}

/// Destroys a list and its members.
pub fn destroy_list(handle: *const c_void) -> Outcome {
    let members = TENSOR_LISTS.remove(handle)?;
    let mut outcome = Ok(());
    for member in members.iter() {
        // all members go, and the first that was gone already is reported
        let removed = TENSORS.remove(std::ptr::without_provenance(*member)).map(|_| ());
        outcome = outcome.and(removed);
    }
    outcome
}

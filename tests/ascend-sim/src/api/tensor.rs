//! Tensors, scalars, arrays, lists, executors.

use std::ffi::c_void;
use std::sync::Arc;

use crate::codes;
use crate::executor::EXECUTORS;
use crate::out::{array, put};
use crate::symbols::export;
use crate::tensor::{Description, INT_ARRAYS, SCALARS, Scalar, TENSOR_LISTS, TENSORS, Tensor, destroy_list};

const BAD: i32 = codes::INVALID_PARAM;
const NULL: i32 = codes::NN_PARAM_NULLPTR;

export! {
    /// Makes a tensor. Null strides mean a dense view (the documentation is silent).
    pointer fn aclCreateTensor(
        shape: *const i64, rank: u64, dtype: i32, strides: *const i64, offset: i64, format: i32,
        storage: *const i64, storage_rank: u64, address: *mut c_void,
    ) -> *mut c_void {
        // SAFETY: arrays of the length given, by the contract of the function.
        let (shape, strides, _storage) = unsafe {
            let strides = if strides.is_null() { None } else { Some(array(strides, rank, BAD, "strides")?) };
            (array(shape, rank, BAD, "viewDims")?, strides, array(storage, storage_rank, BAD, "storageDims")?)
        };
        let address = address.addr() as u64;
        let tensor = Tensor::new(Description { shape, strides, offset, dtype, format, address })?;
        Ok(TENSORS.insert(tensor))
    }

    /// Makes a scalar from the bytes at `value`.
    pointer fn aclCreateScalar(value: *mut c_void, dtype: i32) -> *mut c_void {
        // SAFETY: readable for the size of the type, by the contract of the function.
        let scalar = unsafe { Scalar::read(value, dtype) }?;
        Ok(SCALARS.insert(scalar))
    }

    /// Makes an integer array.
    pointer fn aclCreateIntArray(values: *const i64, n: u64) -> *mut c_void {
        // SAFETY: an array of the length given, by the contract of the function.
        let values = unsafe { array(values, n, BAD, "value") }?;
        Ok(INT_ARRAYS.insert(Arc::new(values)))
    }

    /// Makes a list; it owns its members from now on.
    pointer fn aclCreateTensorList(tensors: *const *const c_void, n: u64) -> *mut c_void {
        // SAFETY: an array of the length given, by the contract of the function.
        let tensors = unsafe { array(tensors, n, BAD, "value") }?;
        let members = tensors.into_iter().map(|tensor| TENSORS.get(tensor).map(|_| tensor.addr()));
        let members = members.collect::<Result<Vec<_>, _>>()?;
        Ok(TENSOR_LISTS.insert(Arc::new(members)))
    }

    /// Destroys a tensor.
    status fn aclDestroyTensor(tensor: *const c_void) { TENSORS.remove(tensor).map(|_| ()) }

    /// Destroys a scalar.
    status fn aclDestroyScalar(scalar: *const c_void) { SCALARS.remove(scalar).map(|_| ()) }

    /// Destroys an integer array.
    status fn aclDestroyIntArray(values: *const c_void) { INT_ARRAYS.remove(values).map(|_| ()) }

    /// Destroys a list and its members; fails when a member was destroyed before.
    status fn aclDestroyTensorList(list: *const c_void) { destroy_list(list) }

    /// The sizes of a tensor. The array is the caller's: `delete[]` on the real one, `free` also works here,
    /// where both come from `malloc`.
    status fn aclGetViewShape(tensor: *const c_void, shape: *mut *mut i64, rank: *mut u64) {
        let tensor = TENSORS.get(tensor)?;
        let sizes: Box<[i64]> = tensor.shape().into();
        let n = sizes.len() as u64;
        // SAFETY: writable, by the contract of the function.
        unsafe {
            put(rank, n, NULL, "viewDimsNum")?;
            put(shape, Box::leak(sizes).as_mut_ptr(), NULL, "viewDims")
        }
    }

    /// The element type of a tensor.
    status fn aclGetDataType(tensor: *const c_void, dtype: *mut i32) {
        let code = TENSORS.get(tensor)?.view().dtype as i32;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(dtype, code, NULL, "dataType") }
    }

    /// Replaces the address of a tensor.
    status fn aclSetRawTensorAddr(tensor: *mut c_void, address: *mut c_void) {
        TENSORS.get(tensor)?.set_address(address.addr() as u64);
        Ok(())
    }

    /// Lets an executor run any number of times.
    status fn aclSetAclOpExecutorRepeatable(executor: *mut c_void) {
        EXECUTORS.get(executor)?.set_repeatable();
        Ok(())
    }

    /// Destroys an executor that did not go with its single run.
    status fn aclDestroyAclOpExecutor(executor: *mut c_void) { EXECUTORS.remove(executor).map(|_| ()) }

    /// Replaces the address of an input of a repeatable executor.
    status fn aclSetInputTensorAddr(
        executor: *mut c_void, index: usize, tensor: *mut c_void, address: *mut c_void,
    ) {
        EXECUTORS.get(executor)?.set_address(true, index, tensor, address.addr() as u64)
    }

    /// Replaces the address of an output of a repeatable executor.
    status fn aclSetOutputTensorAddr(
        executor: *mut c_void, index: usize, tensor: *mut c_void, address: *mut c_void,
    ) {
        EXECUTORS.get(executor)?.set_address(false, index, tensor, address.addr() as u64)
    }
}

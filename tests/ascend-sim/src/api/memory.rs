//! Memory of device and host.

use std::ffi::c_void;

use crate::codes;
use crate::context::current;
use crate::failure::{Outcome, fail};
use crate::heap::device_of;
use crate::lock;
use crate::out::{needed, put};
use crate::symbols::export;
use crate::{host, memory};

const BAD: i32 = codes::INVALID_PARAM;

fn check_policy(policy: i32) -> Outcome {
    // the bits that ask for low or high bandwidth memory
    match policy & !0x1100 {
        0..=7 => Ok(()),
        _ => fail(BAD, format!("memory policy {policy:#x}")),
    }
}

fn at(pointer: *const c_void) -> u64 {
    // an address of host memory is turned back into a pointer when it is copied
    pointer.expose_provenance() as u64
}

export! {
    /// Allocates memory of the current device, filled with the poison pattern.
    status fn aclrtMalloc(pointer: *mut *mut c_void, size: usize, policy: i32) {
        needed(pointer, BAD, "devPtr")?;
        check_policy(policy)?;
        let context = current()?;
        context.device.check()?;
        let address = lock(&context.device.heap).allocate(size as u64)?;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(pointer, std::ptr::without_provenance_mut(address as usize), BAD, "devPtr") }
    }

    /// Frees device memory at once: work that is still queued fails on it.
    status fn aclrtFree(pointer: *mut c_void) {
        let context = current()?;
        match device_of(at(pointer)) {
            Some(id) => lock(&context.machine.device(id as i32)?.heap).free(at(pointer)),
            None => fail(codes::RT_PARAM_INVALID, format!("{pointer:?} is not device memory")),
        }
    }

    /// Allocates pinned host memory, filled with the poison pattern.
    status fn aclrtMallocHost(pointer: *mut *mut c_void, size: usize) {
        needed(pointer, BAD, "hostPtr")?;
        current()?;
        let memory = host::allocate(size)?;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(pointer, memory.cast(), BAD, "hostPtr") }
    }

    /// Frees pinned host memory.
    status fn aclrtFreeHost(pointer: *mut c_void) {
        current()?;
        host::free(pointer.cast())
    }

    /// Copies now, whatever the streams do.
    status fn aclrtMemcpy(to: *mut c_void, to_len: usize, from: *const c_void, len: usize, kind: i32) {
        // SAFETY: host memory is valid for the length, by the contract of the function.
        unsafe { memory::copy(at(to), to_len as u64, at(from), len as u64, kind) }
    }

    /// Copies on a stream; with host memory that is not pinned it returns after the copy.
    status fn aclrtMemcpyAsync(
        to: *mut c_void, to_len: usize, from: *const c_void, len: usize, kind: i32, stream: *mut c_void,
    ) {
        // SAFETY: host memory is valid until the copy is done, by the contract of the function.
        unsafe { memory::copy_async(at(to), to_len as u64, at(from), len as u64, kind, stream) }
    }

    /// Fills device memory now.
    status fn aclrtMemset(to: *mut c_void, to_len: usize, value: i32, len: usize) {
        memory::fill(at(to), to_len as u64, value, len as u64)
    }

    /// Fills device memory on a stream.
    status fn aclrtMemsetAsync(to: *mut c_void, to_len: usize, value: i32, len: usize, stream: *mut c_void) {
        memory::fill_async(at(to), to_len as u64, value, len as u64, stream)
    }

    /// Free and total bytes of the current device.
    status fn aclrtGetMemInfo(attribute: i32, free: *mut usize, total: *mut usize) {
        needed(free, BAD, "free")?;
        needed(total, BAD, "total")?;
        let context = current()?;
        let (free_bytes, total_bytes) = match attribute {
            // the HBM attributes; these devices have no DDR of their own
            1 | 4 | 5 | 10 => lock(&context.device.heap).info(),
            0 | 2 | 3 | 6..=9 => (0, 0),
            _ => return fail(BAD, format!("memory attribute {attribute}")),
        };
        // SAFETY: writable, by the contract of the function.
        unsafe {
            put(free, free_bytes as usize, BAD, "free")?;
            put(total, total_bytes as usize, BAD, "total")
        }
    }
}

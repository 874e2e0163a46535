//! Reading what a C caller passes and writing what it asks for.

use std::ffi::{CStr, c_char};

use crate::codes;
use crate::failure::{Outcome, fail};

/// Writes `value` through an out-pointer.
///
/// # Safety
/// A pointer that is not null is writable.
pub unsafe fn put<T>(pointer: *mut T, value: T, code: i32, what: &str) -> Outcome {
    if pointer.is_null() {
        return fail(code, format!("{what} is null"));
    }
    // SAFETY: promised by the caller; C gives no alignment promise worth trusting.
    unsafe { pointer.write_unaligned(value) };
    Ok(())
}

/// Refuses a null out-pointer before any work is done.
pub fn needed<T>(pointer: *const T, code: i32, what: &str) -> Outcome {
    if pointer.is_null() { fail(code, format!("{what} is null")) } else { Ok(()) }
}

/// Copies an array in.
///
/// # Safety
/// A pointer that is not null is readable for `n` elements.
pub unsafe fn array<T: Copy>(pointer: *const T, n: u64, code: i32, what: &str) -> Outcome<Vec<T>> {
    if n == 0 {
        return Ok(Vec::new());
    }
    if pointer.is_null() {
        return fail(code, format!("{what} is null"));
    }
    // SAFETY: promised by the caller.
    Ok((0..n as usize).map(|i| unsafe { pointer.add(i).read_unaligned() }).collect())
}

/// Copies a string in; none when it is null.
///
/// # Safety
/// A pointer that is not null points to a string that ends with a zero byte.
pub unsafe fn text(pointer: *const c_char) -> Outcome<Option<String>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: promised by the caller.
    match unsafe { CStr::from_ptr(pointer) }.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => fail(codes::INVALID_PARAM, "a string is not UTF-8"),
    }
}

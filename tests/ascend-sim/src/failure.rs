//! What a call failed with, and what the thread remembers of it.

use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char};

/// A failed call: the status code and a text for `aclGetRecentErrMsg`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("error {code}: {text}")]
pub struct Failure {
    /// The documented status code.
    pub code: i32,
    /// What went wrong, in words.
    pub text: String,
}

/// The result of simulated calls.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Builds a failure.
pub fn fail<T>(code: i32, text: impl Into<String>) -> Outcome<T> {
    Err(Failure { code, text: text.into() })
}

/// Runs `body`; a panic, which is a fault of the simulator itself, becomes a failure with `code`, as no panic
/// may cross the C border or leave a stream without its thread.
pub fn contained<T>(code: i32, body: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(body))
        .unwrap_or_else(|_| fail(code, "the simulator panicked: see its standard error"))
}

thread_local! {
    static LAST_CODE: Cell<i32> = const { Cell::new(0) };
    static TEXT: RefCell<Option<CString>> = const { RefCell::new(None) };
    // what aclGetRecentErrMsg handed out: the pointer stays good until the thread asks again
    static GIVEN: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Remembers a failure of `symbol` on this thread.
pub fn remember(symbol: &str, failure: &Failure) {
    LAST_CODE.set(failure.code);
    let text = format!("E{}: {symbol}: {}", failure.code, failure.text).replace('\0', " ");
    TEXT.set(CString::new(text).ok());
}

/// The last failing code of this thread; `clear` forgets it.
pub fn last_code(clear: bool) -> i32 {
    if clear { LAST_CODE.replace(0) } else { LAST_CODE.get() }
}

/// Takes the text of the last failure: null when nothing failed since the last call.
pub fn take_text() -> *const c_char {
    match TEXT.take() {
        Some(text) => {
            let pointer = text.as_ptr();
            GIVEN.set(Some(text));
            pointer
        }
        None => std::ptr::null(),
    }
}

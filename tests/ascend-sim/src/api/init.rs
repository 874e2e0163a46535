//! Init, finalize, versions and errors.

use std::ffi::c_char;

use crate::codes;
use crate::failure::{fail, last_code, take_text};
use crate::machine::{machine, start, stop};
use crate::out::{put, text};
use crate::symbols::export;

const VERSION: [i32; 3] = [9, 1, 0];

export! {
    /// Starts the simulator; reads `BELAY_ASCEND_SIM`. The JSON file is only looked for.
    status fn aclInit(config_path: *const c_char) {
        // SAFETY: a string or null, by the contract of the function.
        if let Some(path) = unsafe { text(config_path) }?
            && !path.is_empty()
            && !std::path::Path::new(&path).is_file()
        {
            return fail(100_003, format!("no file {path:?}"));
        }
        start()
    }

    /// Ends the simulator; releases contexts and streams. `aclInit` may follow, as documented.
    status fn aclFinalize() {
        stop()
    }

    /// The text of this thread's last failure since the last call; null when there was none.
    pointer fn aclGetRecentErrMsg() -> *const c_char {
        Ok(take_text())
    }

    /// The SoC's name.
    pointer fn aclrtGetSocName() -> *const c_char {
        use std::ffi::CString;
        use std::sync::Mutex;
        // names that were handed out live as long as the process, as a constant string would
        static NAMES: Mutex<Vec<CString>> = Mutex::new(Vec::new());
        let soc = machine()?.config.soc.clone();
        let mut names = crate::lock(&NAMES);
        if let Some(name) = names.iter().find(|name| name.as_bytes() == soc.as_bytes()) {
            return Ok(name.as_ptr());
        }
        let Ok(name) = CString::new(soc) else { return fail(codes::INVALID_PARAM, "the soc name") };
        let pointer = name.as_ptr();
        names.push(name);
        Ok(pointer)
    }

    /// Major, minor and patch of the runtime.
    status fn aclrtGetVersion(major: *mut i32, minor: *mut i32, patch: *mut i32) {
        for (pointer, value) in [major, minor, patch].into_iter().zip(VERSION) {
            // SAFETY: writable, by the contract of the function.
            unsafe { put(pointer, value, codes::INVALID_PARAM, "version") }?;
        }
        Ok(())
    }

    /// The version of a package as one number: major·10⁷ + minor·10⁵ + patch·10³ (the documentation gives a
    /// number, not its make-up).
    status fn aclsysGetVersionNum(package: *const c_char, version: *mut i32) {
        // SAFETY: a string or null, by the contract of the function.
        if unsafe { text(package) }?.is_none_or(|name| name.is_empty()) {
            return fail(codes::INVALID_PARAM, "no package name");
        }
        let number = VERSION[0] * 10_000_000 + VERSION[1] * 100_000 + VERSION[2] * 1_000;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(version, number, codes::INVALID_PARAM, "version") }
    }
}

pub use last::*;

/// The two error queries, which answer a code that is not their own failure.
mod last {
    use super::last_code;
    use crate::symbols;

    /// The last failing code of this thread; kept.
    ///
    /// # Safety
    /// None needed; `level` is 0, the thread.
    #[allow(non_snake_case)]
    // SAFETY: the name is CANN's, and no other library of the process is to define it.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn aclrtPeekAtLastError(_level: i32) -> i32 {
        symbols::query("aclrtPeekAtLastError").unwrap_or_else(|| last_code(false))
    }

    /// The last failing code of this thread; forgotten.
    ///
    /// # Safety
    /// None needed; `level` is 0, the thread.
    #[allow(non_snake_case)]
    // SAFETY: the name is CANN's, and no other library of the process is to define it.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn aclrtGetLastError(_level: i32) -> i32 {
        symbols::query("aclrtGetLastError").unwrap_or_else(|| last_code(true))
    }
}

/// The names of the error queries.
pub(crate) const QUERY_SYMBOLS: &[&str] = &["aclrtPeekAtLastError", "aclrtGetLastError"];

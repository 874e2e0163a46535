//! CANN's libraries, found at run time.
//!
//! Nothing is linked: each symbol is looked up in the libraries where it is documented to live, and which file gave it
//! is recorded. Optional symbols may be missing; required ones make one error that lists them all.

mod error;
mod finder;
mod operators;
mod report;
mod search;
mod table;

use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;

pub use error::{LibraryError, Missing, Tried};
pub(crate) use finder::Finder;
pub(crate) use operators::{Operator, Operators, Queue};
pub use report::{Report, Resolved};
pub use search::{Family, LIBRARY_VARIABLE, Place, Search};
pub(crate) use table::Symbols;

use crate::error::AscendError;
use crate::ffi::{HcclStatus, OK, Status};

/// The symbols of an installation of CANN, or of something with the same interface.
///
/// The files stay loaded until the process ends: the libraries have threads and destructors of their own.
pub struct Library {
    symbols: Symbols,
    report: Report,
}

impl Library {
    /// Opens the libraries and looks up every symbol.
    ///
    /// # Errors
    /// [`LibraryError`], with all that is missing and all that was tried.
    pub fn open(search: &Search) -> Result<Arc<Self>, LibraryError> {
        let mut finder = Finder::new(search);
        if !finder.choose_place() {
            return Err(LibraryError::NotFound { tried: finder.into_tried() });
        }
        let symbols = Symbols::resolve(&mut finder);
        let from_files = match finder.place() {
            Some(Place::Root(root)) => search::version_of(root),
            _ => None,
        };
        let Some(symbols) = symbols else {
            let version = from_files.or_else(|| finder.version());
            return Err(LibraryError::MissingSymbols {
                missing: finder.missing(),
                version,
                tried: finder.into_tried(),
            });
        };
        let version = from_files.or_else(|| finder.version());
        let report = finder.into_report(version);
        tracing::debug!(report = %report, "cann libraries are loaded");
        Ok(Arc::new(Self { symbols, report }))
    }

    /// What was found where.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Whether an optional symbol was found, or a required one, which always is.
    pub fn has(&self, symbol: &str) -> bool {
        self.report.symbols.iter().any(|found| found.symbol == symbol && found.file.is_some())
    }

    pub(crate) fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// An error for every code but 0.
    pub(crate) fn check(&self, call: &'static str, code: Status) -> Result<(), AscendError> {
        if code == OK { Ok(()) } else { Err(AscendError::of_code(call, code, self.last_message())) }
    }

    /// The same for a function of HCCL, whose codes are its own.
    pub(crate) fn check_hccl(&self, call: &'static str, code: HcclStatus) -> Result<(), AscendError> {
        if code == OK {
            return Ok(());
        }
        // SAFETY: takes a number; gives null or a string that does not change.
        let name = self.symbols.HcclGetErrorString.map(|ask| unsafe { text(ask(code)) });
        let said = [name.unwrap_or_default(), self.last_message()];
        let said: Vec<&str> = said.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        Err(AscendError::of_hccl(call, code, said.join(": ")))
    }

    /// An error for a null pointer where a call should give an object.
    pub(crate) fn check_object<T>(
        &self,
        call: &'static str,
        object: *mut T,
    ) -> Result<std::ptr::NonNull<T>, AscendError> {
        std::ptr::NonNull::new(object).ok_or_else(|| AscendError::no_object(call, self.last_message()))
    }

    /// What the library has to say about the last failure on this thread; empty if nothing.
    fn last_message(&self) -> String {
        // SAFETY: takes nothing; gives null or a string.
        let message = unsafe { (self.symbols.aclGetRecentErrMsg)() };
        // SAFETY: the string belongs to this thread and lives until its next call of the library.
        unsafe { text(message) }.trim().to_owned()
    }
}

impl std::fmt::Debug for Library {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Library").field("version", &self.report.version).finish_non_exhaustive()
    }
}

/// Copies a C string; empty for null.
///
/// # Safety
/// `string` is null or points to a string that ends in 0 and is not changed meanwhile.
pub(crate) unsafe fn text(string: *const std::ffi::c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: by the caller's promise.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

/// A path as it is shown to people.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

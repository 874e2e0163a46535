use std::ffi::{CString, c_char, c_void};
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library as File, RTLD_GLOBAL, RTLD_LAZY};

use super::{Family, Missing, Place, Report, Resolved, Search, Tried};
use crate::ffi::{OK, Status};

/// Opens files as they are needed and looks symbols up in them.
pub(crate) struct Finder<'a> {
    search: &'a Search,
    place: Option<&'a Place>,
    /// By path; `None` for one that does not open. Never unloaded: CANN's libraries start threads and register
    /// destructors, and function pointers outlive this finder.
    files: Vec<(PathBuf, Option<ManuallyDrop<File>>)>,
    tried: Vec<Tried>,
    symbols: Vec<Resolved>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(search: &'a Search) -> Self {
        Self { search, place: None, files: Vec::new(), tried: Vec::new(), symbols: Vec::new() }
    }

    /// Takes the first place where the runtime's library opens; false if there is none.
    pub(super) fn choose_place(&mut self) -> bool {
        for place in &self.search.places {
            let opens =
                self.search.candidates(Family::Runtime, place).iter().any(|path| self.file(path).is_some());
            if opens {
                self.place = Some(place);
                return true;
            }
        }
        false
    }

    pub(super) fn place(&self) -> Option<&Place> {
        self.place
    }

    /// A function pointer of type `F` to a symbol, from the first file that has it. What happened is recorded.
    ///
    /// # Safety
    /// `F` is the type of an `unsafe extern "C"` function pointer with the symbol's signature.
    pub(crate) unsafe fn symbol<F: Copy>(
        &mut self,
        symbol: &'static str,
        family: Family,
        required: bool,
    ) -> Option<F> {
        let found = self.look_up(symbol, family);
        let file = found.as_ref().map(|(address, path)| home_of(*address).unwrap_or_else(|| path.clone()));
        self.symbols.push(Resolved { symbol, family, required, file });
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        // SAFETY: F is a function pointer by the caller's promise, of the same size, and the address is not null.
        found.map(|(address, _)| unsafe { std::mem::transmute_copy::<*mut c_void, F>(&address) })
    }

    /// Required symbols that were not found so far.
    pub(super) fn missing(&self) -> Vec<Missing> {
        let missing = self.symbols.iter().filter(|found| found.required && found.file.is_none());
        missing.map(|found| Missing { symbol: found.symbol, family: found.family }).collect()
    }

    /// The number that the runtime's package gives itself, if there is the call for it.
    pub(super) fn version(&mut self) -> Option<String> {
        // SAFETY: the signature is that of the documentation.
        let query: unsafe extern "C" fn(*mut c_char, *mut i32) -> Status =
            unsafe { self.symbol("aclsysGetVersionNum", Family::Runtime, false) }?;
        let mut package = *b"runtime\0";
        let mut number = 0;
        // SAFETY: a string that ends in 0 and a place for the number, both alive during the call.
        let code = unsafe { query(package.as_mut_ptr().cast(), &mut number) };
        (code == OK).then(|| format!("(runtime package {number})"))
    }

    pub(super) fn into_tried(self) -> Vec<Tried> {
        self.tried
    }

    pub(super) fn into_report(self, version: Option<String>) -> Report {
        Report { version, symbols: self.symbols, tried: self.tried }
    }

    /// Address, never null, and the file that was asked for it.
    fn look_up(&mut self, symbol: &str, family: Family) -> Option<(*mut c_void, PathBuf)> {
        let place = self.place?;
        let name = CString::new(symbol).ok()?;
        for path in self.search.candidates(family, place) {
            let Some(file) = self.file(&path) else { continue };
            // SAFETY: the symbol is only turned into its address, which is not used as anything here.
            let found = unsafe { file.get::<*mut c_void>(name.as_bytes_with_nul()) };
            let address = found.map_or(std::ptr::null_mut(), |found| found.as_raw_ptr());
            if !address.is_null() {
                return Some((address, path));
            }
        }
        None
    }

    fn file(&mut self, path: &Path) -> Option<&File> {
        let known = self.files.iter().position(|(known, _)| known == path);
        let index = known.unwrap_or_else(|| {
            // SAFETY: runs the initialisers of a library of CANN, or of what the operator of this process put in its
            // place; nothing is asked of the caller for that. Symbols are global since these libraries find each
            // other's that way.
            let opened = unsafe { File::open(Some(path), RTLD_LAZY | RTLD_GLOBAL) };
            let refused = opened.as_ref().err().map(ToString::to_string);
            self.tried.push(Tried { file: path.to_owned(), refused });
            self.files.push((path.to_owned(), opened.ok().map(ManuallyDrop::new)));
            self.files.len() - 1
        });
        self.files[index].1.as_deref()
    }
}

/// The file that holds an address.
fn home_of(address: *mut c_void) -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: any address may be asked for; `info` is written.
    let known = unsafe { libc::dladdr(address, &mut info) };
    if known == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the name belongs to a loaded file, and files are never unloaded here.
    let name = unsafe { std::ffi::CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes())))
}

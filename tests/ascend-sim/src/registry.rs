//! Opaque handles: numbers that look like pointers, are never dereferenced and never used twice.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use crate::failure::{Outcome, fail};
use crate::lock;

// no user-space address has bit 55: a handle that is dereferenced faults at once
const HANDLE_BASE: usize = 0x00A0_0000_0000_0000;
static NEXT: AtomicUsize = AtomicUsize::new(1);

/// A new handle value.
pub fn fresh() -> usize {
    HANDLE_BASE + NEXT.fetch_add(1, Ordering::Relaxed) * 16
}

/// The live objects of one kind by handle.
pub struct Registry<T> {
    kind: &'static str,
    null_code: i32,
    invalid_code: i32,
    objects: LazyLock<Mutex<HashMap<usize, Arc<T>>>>,
}

impl<T> Registry<T> {
    /// A registry of `kind`; the codes answer a null handle and one that names nothing alive.
    pub const fn new(kind: &'static str, null_code: i32, invalid_code: i32) -> Self {
        Self { kind, null_code, invalid_code, objects: LazyLock::new(|| Mutex::new(HashMap::new())) }
    }

    /// Enters an object and answers its handle.
    pub fn insert(&self, value: Arc<T>) -> *mut c_void {
        let handle = fresh();
        self.insert_as(handle, value);
        std::ptr::without_provenance_mut(handle)
    }

    /// Enters an object under a handle from [`fresh`].
    pub fn insert_as(&self, handle: usize, value: Arc<T>) {
        lock(&self.objects).insert(handle, value);
    }

    /// The object of a handle.
    pub fn get(&self, handle: *const c_void) -> Outcome<Arc<T>> {
        if handle.is_null() {
            return fail(self.null_code, format!("{} is null", self.kind));
        }
        match lock(&self.objects).get(&handle.addr()) {
            Some(object) => Ok(object.clone()),
            None => fail(self.invalid_code, format!("{} {handle:?} is not alive", self.kind)),
        }
    }

    /// Takes the object of a handle out.
    pub fn remove(&self, handle: *const c_void) -> Outcome<Arc<T>> {
        if handle.is_null() {
            return fail(self.null_code, format!("{} is null", self.kind));
        }
        match lock(&self.objects).remove(&handle.addr()) {
            Some(object) => Ok(object),
            None => fail(self.invalid_code, format!("{} {handle:?} is not alive", self.kind)),
        }
    }

    /// Whether the handle names a live object.
    pub fn alive(&self, handle: usize) -> bool {
        lock(&self.objects).contains_key(&handle)
    }

    /// Objects alive.
    pub fn live(&self) -> usize {
        lock(&self.objects).len()
    }

    /// All objects alive with their handles.
    pub fn all(&self) -> Vec<(usize, Arc<T>)> {
        lock(&self.objects).iter().map(|(handle, object)| (*handle, object.clone())).collect()
    }
}

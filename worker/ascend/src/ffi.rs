//! Types and constants of CANN's C interface, written by hand from its documentation.
//!
//! Enumerations cross the boundary as `i32`: a library newer than this page may return values it does not know.

use std::ffi::c_void;
use std::marker::{PhantomData, PhantomPinned};

/// What nearly every function returns: 0 or an error code.
pub(crate) type Status = i32;
/// A stream of the runtime.
pub(crate) type RawStream = *mut c_void;
/// An event of the runtime.
pub(crate) type RawEvent = *mut c_void;
/// A context of the runtime.
pub(crate) type RawContext = *mut c_void;

macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[repr(C)]
        pub(crate) struct $name {
            _data: [u8; 0],
            // lives in the library, at one address, and says nothing about threads
            _marker: PhantomData<(*mut u8, PhantomPinned)>,
        }
    )*};
}

opaque! {
    /// Description of a tensor in device memory.
    RawTensor;
    /// A number with its type.
    RawScalar;
    /// A list of integers in host memory.
    RawIntArray;
    /// A list that owns tensors.
    RawTensorList;
    /// A planned operator.
    RawExecutor;
}

/// Codes that are no errors.
pub(crate) const OK: Status = 0;
/// aclInit was called before in this process.
pub(crate) const REPEATED_INIT: Status = 100_002;

/// Where a copy reads and writes.
pub(crate) mod copy_kind {
    pub(crate) const HOST_TO_DEVICE: i32 = 1;
    pub(crate) const DEVICE_TO_HOST: i32 = 2;
    pub(crate) const DEVICE_TO_DEVICE: i32 = 3;
}

/// Attribute of memory in `aclrtGetMemInfo`.
pub(crate) mod memory_attribute {
    pub(crate) const HBM: i32 = 1;
}

/// State of a stream.
pub(crate) mod stream_status {
    pub(crate) const COMPLETE: i32 = 0;
}

/// State of a recorded event in `aclrtQueryEventStatus`; the older query has the two values the other way round.
pub(crate) mod event_status {
    pub(crate) const COMPLETE: i32 = 1;
}

/// What an event can do; bits.
pub(crate) mod event_flag {
    pub(crate) const SYNC: u32 = 1;
    pub(crate) const TIME_LINE: u32 = 8;
}

/// What a stream does after a task of it failed.
pub(crate) mod failure_mode {
    pub(crate) const STOP: u64 = 1;
}

/// Layout of a tensor's storage.
pub(crate) mod format {
    pub(crate) const ND: i32 = 2;
}

/// Precision of a matrix product.
pub(crate) mod cube_math {
    /// That of the operands.
    pub(crate) const KEEP_DTYPE: i8 = 0;
}

/// Which channels a rotation pairs.
pub(crate) mod rotary {
    /// Neighbours: (0, 1), (2, 3) and so on.
    pub(crate) const INTERLEAVED: i64 = 1;
}

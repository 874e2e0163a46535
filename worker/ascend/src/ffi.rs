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
/// What functions of HCCL return: 0 or a code of its own.
pub(crate) type HcclStatus = i32;
/// A communicator.
pub(crate) type RawCommunicator = *mut c_void;

/// How ranks find the first one: bytes of the library's own.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawRootInfo(pub(crate) [u8; ROOT_INFO_BYTES]);

/// Bytes of a root info.
pub(crate) const ROOT_INFO_BYTES: usize = 4108;

/// Settings of a communicator in the form of version 3. Later forms are longer; the library reads as much as the size
/// says.
#[repr(C)]
pub(crate) struct RawCommConfig {
    pub(crate) size: usize,
    pub(crate) magic: u32,
    pub(crate) version: u32,
    pub(crate) reserved: u64,
    /// MB for each direction.
    pub(crate) buffer_size: u32,
    pub(crate) deterministic: u32,
    pub(crate) name: [u8; 128],
}

impl RawCommConfig {
    pub(crate) const MAGIC: u32 = 0xf0f0_f0f0;
    pub(crate) const VERSION: u32 = 3;
    /// A setting that is left to the library.
    pub(crate) const UNSET: u32 = u32::MAX;
}

/// Types of elements in HCCL, which numbers them otherwise than the operators do.
pub(crate) mod hccl_type {
    pub(crate) const INT8: i32 = 0;
    pub(crate) const INT32: i32 = 2;
    pub(crate) const FP16: i32 = 3;
    pub(crate) const FP32: i32 = 4;
    pub(crate) const INT64: i32 = 5;
    pub(crate) const UINT8: i32 = 7;
    pub(crate) const BFP16: i32 = 11;
}

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

/// How a grouped product is done.
pub(crate) mod grouped {
    /// One tensor for the results of all groups.
    pub(crate) const ONE_RESULT: i64 = 3;
    /// Groups are rows of the left side.
    pub(crate) const BY_ROWS: i64 = 0;
    /// Groups are given by how many rows they have.
    pub(crate) const COUNTS: i64 = 1;
    /// Results as they are.
    pub(crate) const NO_ACTIVATION: i64 = 0;
}

/// Which channels a rotation pairs.
pub(crate) mod rotary {
    /// Neighbours: (0, 1), (2, 3) and so on.
    pub(crate) const INTERLEAVED: i64 = 1;
}

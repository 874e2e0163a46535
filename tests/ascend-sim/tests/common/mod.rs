//! What the tests share: a started simulator, tensors on it, and running an op.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::macro_metavars_in_unsafe,
    reason = "test code: a failed step ends the test"
)]

pub mod ranks;

use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use belay_ascend_sim::api::device::*;
pub use belay_ascend_sim::api::event::*;
pub use belay_ascend_sim::api::graph::*;
pub use belay_ascend_sim::api::init::*;
pub use belay_ascend_sim::api::memory::*;
pub use belay_ascend_sim::api::stream::*;
pub use belay_ascend_sim::api::tensor::*;
pub use belay_ascend_sim::control::*;
use half::{bf16, f16};

pub type Handle = *mut c_void;
pub const NULL: Handle = std::ptr::null_mut();

pub const H2H: i32 = 0;
pub const H2D: i32 = 1;
pub const D2H: i32 = 2;
pub const D2D: i32 = 3;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A started simulator; tests of one binary take turns.
pub struct Sim {
    _turn: MutexGuard<'static, ()>,
}

/// Starts the simulator with a configuration and sets device 0.
pub fn sim(config: &str) -> Sim {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: tests that read or write the environment hold the lock.
    unsafe { std::env::set_var("BELAY_ASCEND_SIM", config) };
    // SAFETY: null is allowed.
    assert_eq!(unsafe { aclInit(std::ptr::null()) }, 0, "{}", message());
    // SAFETY: takes a number.
    ok(unsafe { aclrtSetDevice(0) });
    Sim { _turn: turn }
}

impl Drop for Sim {
    fn drop(&mut self) {
        belaySimFailClear();
        // SAFETY: takes no arguments.
        unsafe { aclFinalize() };
    }
}

/// The text of the last failure.
pub fn message() -> String {
    // SAFETY: takes no arguments.
    let text = unsafe { aclGetRecentErrMsg() };
    if text.is_null() {
        return String::new();
    }
    // SAFETY: a string that lives until this thread asks again.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Expects success.
#[track_caller]
pub fn ok(code: i32) {
    assert_eq!(code, 0, "{}", message());
}

/// Objects of a kind alive.
pub fn live(kind: &str) -> u64 {
    let kind = CString::new(kind).unwrap();
    // SAFETY: ends with a zero byte.
    unsafe { belaySimLive(kind.as_ptr()) }
}

/// Injects a failure.
pub fn inject(symbol: &str, nth: u64, code: i32) -> i32 {
    let symbol = CString::new(symbol).unwrap();
    // SAFETY: ends with a zero byte.
    unsafe { belaySimFail(symbol.as_ptr(), nth, code) }
}

/// Calls so far.
pub fn calls(symbol: &str) -> u64 {
    let symbol = CString::new(symbol).unwrap();
    // SAFETY: ends with a zero byte.
    unsafe { belaySimCalls(symbol.as_ptr()) }
}

/// Device memory.
pub fn malloc(size: usize) -> Handle {
    let mut pointer = NULL;
    // SAFETY: the pointer is writable.
    ok(unsafe { aclrtMalloc(&mut pointer, size, 0) });
    pointer
}

/// A stream.
pub fn stream() -> Handle {
    let mut stream = NULL;
    // SAFETY: the pointer is writable.
    ok(unsafe { aclrtCreateStream(&mut stream) });
    stream
}

/// Synchronises.
pub fn sync(stream: Handle) -> i32 {
    // SAFETY: handles are looked up.
    unsafe { aclrtSynchronizeStream(stream) }
}

/// Copies bytes to the device now.
pub fn upload(to: Handle, bytes: &[u8]) {
    // SAFETY: the bytes are readable.
    ok(unsafe { aclrtMemcpy(to, bytes.len(), bytes.as_ptr().cast(), bytes.len(), H2D) });
}

/// Copies bytes from the device now.
pub fn download(from: Handle, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: the bytes are writable.
    ok(unsafe { aclrtMemcpy(bytes.as_mut_ptr().cast(), len, from, len, D2H) });
    bytes
}

/// An element type in tests.
pub trait Element: Copy {
    /// Its `aclDataType`.
    const DTYPE: i32;
    /// Its bytes.
    fn bytes(self) -> Vec<u8>;
    /// From its bytes.
    fn of(bytes: &[u8]) -> Self;
}

macro_rules! element {
    ($($ty:ty = $code:literal),*) => {$(
        impl Element for $ty {
            const DTYPE: i32 = $code;
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn of(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}
element!(f32 = 0, f16 = 1, i8 = 2, i32 = 3, u8 = 4, i64 = 9, bf16 = 27);

impl Element for bool {
    const DTYPE: i32 = 12;
    fn bytes(self) -> Vec<u8> {
        vec![self.into()]
    }
    fn of(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }
}

/// A dense tensor with memory of its own.
pub struct Tensor {
    pub handle: Handle,
    pub memory: Handle,
    count: usize,
    owns: bool,
}

impl Tensor {
    /// A tensor of values.
    pub fn of<E: Element>(shape: &[i64], values: &[E]) -> Self {
        assert_eq!(shape.iter().product::<i64>() as usize, values.len());
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.bytes()).collect();
        let memory = malloc(bytes.len().max(1));
        if !bytes.is_empty() {
            upload(memory, &bytes);
        }
        Self { handle: tensor(E::DTYPE, shape, None, 0, memory), memory, count: values.len(), owns: true }
    }

    /// A tensor of poison.
    pub fn new<E: Element>(shape: &[i64]) -> Self {
        let count = shape.iter().product::<i64>() as usize;
        let memory = malloc((count * size_of::<E>()).max(1));
        Self { handle: tensor(E::DTYPE, shape, None, 0, memory), memory, count, owns: true }
    }

    /// A tensor object over memory that it does not own.
    pub fn wrap(handle: Handle, memory: Handle) -> Self {
        Self { handle, memory, count: 0, owns: false }
    }

    /// A strided view of this one's memory.
    pub fn view<E: Element>(&self, shape: &[i64], strides: &[i64], offset: i64) -> Self {
        let handle = tensor(E::DTYPE, shape, Some(strides), offset, self.memory);
        let count = shape.iter().product::<i64>() as usize;
        Self { handle, memory: self.memory, count, owns: false }
    }

    /// The values of a dense tensor now.
    pub fn values<E: Element>(&self) -> Vec<E> {
        let bytes = download(self.memory, self.count * size_of::<E>());
        bytes.chunks_exact(size_of::<E>()).map(E::of).collect()
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: handles are looked up; one that is gone already is refused.
        unsafe {
            aclDestroyTensor(self.handle);
            if self.owns {
                aclrtFree(self.memory);
            }
        }
    }
}

/// A tensor object.
pub fn tensor(dtype: i32, shape: &[i64], strides: Option<&[i64]>, offset: i64, memory: Handle) -> Handle {
    let strides = strides.map_or(std::ptr::null(), |strides| strides.as_ptr());
    // SAFETY: the arrays have the length given.
    let handle = unsafe {
        aclCreateTensor(
            shape.as_ptr(),
            shape.len() as u64,
            dtype,
            strides,
            offset,
            2,
            shape.as_ptr(),
            shape.len() as u64,
            memory,
        )
    };
    assert!(!handle.is_null(), "{}", message());
    handle
}

/// A scalar.
pub fn scalar<E: Element>(value: E) -> Handle {
    let mut bytes = value.bytes();
    // SAFETY: the bytes are readable for the size of the type.
    let handle = unsafe { aclCreateScalar(bytes.as_mut_ptr().cast(), E::DTYPE) };
    assert!(!handle.is_null(), "{}", message());
    handle
}

/// An integer array.
pub fn ints(values: &[i64]) -> Handle {
    // SAFETY: the array has the length given.
    let handle = unsafe { aclCreateIntArray(values.as_ptr(), values.len() as u64) };
    assert!(!handle.is_null(), "{}", message());
    handle
}

/// A list of tensors, which it owns from now on.
pub fn list(tensors: &[&Tensor]) -> Handle {
    let handles: Vec<*const c_void> = tensors.iter().map(|tensor| tensor.handle.cast_const()).collect();
    // SAFETY: the array has the length given.
    let handle = unsafe { aclCreateTensorList(handles.as_ptr(), handles.len() as u64) };
    assert!(!handle.is_null(), "{}", message());
    handle
}

/// The second phase of an op.
pub type Launch = unsafe extern "C" fn(Handle, u64, Handle, Handle) -> i32;

/// Runs both phases on the default stream and waits; answers the first failure.
pub fn try_run(plan: impl FnOnce(*mut u64, *mut Handle) -> i32, launch: Launch) -> i32 {
    let (mut size, mut executor) = (0, NULL);
    let code = plan(&mut size, &mut executor);
    if code != 0 {
        return code;
    }
    let workspace = if size > 0 { malloc(size as usize) } else { NULL };
    // SAFETY: handles are looked up.
    let code = unsafe { launch(workspace, size, executor, NULL) };
    let code = if code == 0 { sync(NULL) } else { code };
    if size > 0 {
        // SAFETY: handles are looked up.
        ok(unsafe { aclrtFree(workspace) });
    }
    code
}

/// Runs both phases of `aclnn…` with arguments and answers the code.
#[macro_export]
macro_rules! op {
    ($module:ident, $plan:ident, $launch:ident, $($arg:expr),*) => {
        $crate::common::try_run(
            // SAFETY: handles are looked up, the out-pointers are writable.
            |size, executor| unsafe { belay_ascend_sim::ops::$module::$plan($($arg,)* size, executor) },
            belay_ascend_sim::ops::$module::$launch,
        )
    };
}

/// Numbers that look random, between −1 and 1.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

/// Expects values near others.
#[track_caller]
pub fn near(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "at {i}: {a}, expected {b}");
    }
}

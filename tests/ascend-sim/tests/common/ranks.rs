//! Several ranks in one process, each a thread with a device of its own.

use std::ffi::CStr;

use super::*;

pub use belay_ascend_sim::api::hccl::*;

pub const ROOT_INFO_BYTES: usize = 4108;

/// Types of HCCL.
pub trait Sent: Element + PartialEq + std::fmt::Debug {
    /// Its `HcclDataType`.
    const HCCL: i32;
    /// From a small integer.
    fn small(value: i64) -> Self;
}

macro_rules! sent {
    ($($ty:ty = $code:literal, $from:expr);*) => {$(
        impl Sent for $ty {
            const HCCL: i32 = $code;
            fn small(value: i64) -> Self {
                $from(value)
            }
        }
    )*};
}
sent!(
    f32 = 4, |x| x as f32;
    f16 = 3, |x| f16::from_f32(x as f32);
    bf16 = 11, |x| bf16::from_f32(x as f32);
    i8 = 0, |x| x as i8;
    i32 = 2, |x| x as i32;
    u8 = 7, |x| x as u8;
    i64 = 5, |x| x
);

/// Device memory that is freed at the end.
pub struct Memory {
    pub pointer: Handle,
    len: usize,
}

impl Memory {
    /// Memory that holds values.
    pub fn of<E: Element>(values: &[E]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.bytes()).collect();
        let memory = Self::new::<E>(values.len());
        if !bytes.is_empty() {
            upload(memory.pointer, &bytes);
        }
        memory
    }

    /// Memory of poison.
    pub fn new<E: Element>(count: usize) -> Self {
        let len = count * size_of::<E>();
        Self { pointer: malloc(len.max(1)), len }
    }

    /// What it holds.
    pub fn values<E: Element>(&self) -> Vec<E> {
        if self.len == 0 {
            return Vec::new();
        }
        download(self.pointer, self.len).chunks_exact(size_of::<E>()).map(E::of).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: handles are looked up.
        unsafe { aclrtFree(self.pointer) };
    }
}

/// A rank, on the thread that uses it.
pub struct Rank {
    pub rank: usize,
    pub size: usize,
    pub comm: Handle,
    pub stream: Handle,
}

impl Rank {
    /// Waits for the stream.
    pub fn sync(&self) -> i32 {
        sync(self.stream)
    }

    /// `HcclAllReduce` of one number, waited for.
    pub fn sum(&self, value: i32) -> Result<i32, i32> {
        sum_on(self.comm, self.stream, value)
    }

    /// What `HcclGetCommAsyncError` tells.
    pub fn async_error(&self) -> i32 {
        let mut error = -1;
        // SAFETY: the pointer is writable.
        ok(unsafe { HcclGetCommAsyncError(self.comm, &mut error) });
        error
    }
}

/// `HcclAllReduce` of one number on a communicator, waited for.
pub fn sum_on(comm: Handle, stream: Handle, value: i32) -> Result<i32, i32> {
    let (from, to) = (Memory::of(&[value]), Memory::new::<i32>(1));
    // SAFETY: handles are looked up.
    let code = unsafe { HcclAllReduce(from.pointer, to.pointer, 1, i32::HCCL, 0, comm, stream) };
    let code = if code == 0 { sync(stream) } else { code };
    if code == 0 { Ok(to.values()[0]) } else { Err(code) }
}

/// A root info, of the current device.
pub fn root() -> Vec<u8> {
    let mut info = vec![0; ROOT_INFO_BYTES];
    // SAFETY: the bytes are writable.
    ok(unsafe { HcclGetRootInfo(info.as_mut_ptr().cast()) });
    info
}

/// Joins on the current device.
pub fn join(size: usize, info: &[u8], rank: usize) -> Result<Handle, i32> {
    let mut comm = NULL;
    // SAFETY: the bytes are readable and the pointer writable.
    let code = unsafe { HcclCommInitRootInfo(size as u32, info.as_ptr().cast(), rank as u32, &mut comm) };
    if code == 0 { Ok(comm) } else { Err(code) }
}

/// Runs ranks, each on a thread and a device of its own, without communicators.
pub fn devices<T: Send>(size: usize, body: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = (0..size)
            .map(|rank| {
                scope.spawn(move || {
                    // SAFETY: takes a number.
                    ok(unsafe { aclrtSetDevice(rank as i32) });
                    let answer = body(rank);
                    // SAFETY: takes a number.
                    unsafe { aclrtResetDevice(rank as i32) };
                    answer
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Runs the ranks of a new communicator.
pub fn group<T: Send>(size: usize, body: impl Fn(&Rank) -> T + Sync) -> Vec<T> {
    let info = root();
    devices(size, |rank| {
        let comm = join(size, &info, rank).unwrap_or_else(|code| panic!("{code}: {}", message()));
        let rank = Rank { rank, size, comm, stream: stream() };
        let answer = body(&rank);
        // SAFETY: handles are looked up.
        unsafe {
            ok(HcclCommDestroy(rank.comm));
            ok(aclrtDestroyStreamForce(rank.stream));
        }
        answer
    })
}

/// The name of a communicator.
pub fn name(comm: Handle) -> String {
    let mut name = [1; 128];
    // SAFETY: the buffer has 128 bytes.
    unsafe {
        ok(HcclGetCommName(comm, name.as_mut_ptr()));
        CStr::from_ptr(name.as_ptr()).to_str().unwrap().to_owned()
    }
}

/// An `HcclCommConfig` of version 3: buffer in megabytes, and a name.
pub fn config(buffer_mb: u32, name: &str) -> Vec<u8> {
    let mut bytes = 160u64.to_le_bytes().to_vec();
    bytes.extend(0xf0f0_f0f0u32.to_le_bytes());
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(buffer_mb.to_le_bytes());
    bytes.extend(u32::MAX.to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes.resize(160, 0);
    bytes
}

/// Joins with a configuration.
pub fn join_with(size: usize, info: &[u8], rank: usize, config: &[u8]) -> Result<Handle, i32> {
    let mut comm = NULL;
    let (info, config) = (info.as_ptr().cast(), config.as_ptr().cast());
    // SAFETY: the bytes are readable and the pointer writable.
    let code = unsafe { HcclCommInitRootInfoConfig(size as u32, info, rank as u32, config, &mut comm) };
    if code == 0 { Ok(comm) } else { Err(code) }
}

/// Environment variables for as long as it lives; the test holds the turn of its binary.
pub struct Variables(Vec<&'static str>);

impl Variables {
    /// Sets them.
    pub fn set(all: &[(&'static str, &str)]) -> Self {
        for (name, value) in all {
            // SAFETY: tests that read or write the environment hold the turn of their binary.
            unsafe { std::env::set_var(name, value) };
        }
        Self(all.iter().map(|(name, _)| *name).collect())
    }
}

impl Drop for Variables {
    fn drop(&mut self) {
        for name in &self.0 {
            // SAFETY: as above.
            unsafe { std::env::remove_var(name) };
        }
    }
}

/// Random numbers.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next, below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}

/// Open files and threads of this process.
pub fn resources() -> (usize, usize) {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

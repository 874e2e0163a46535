//! The simulator as tests see it: a library with CANN's interface, and a few functions to make it misbehave.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, reason = "test code; each program uses a part")]

use std::ffi::{CString, c_char};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use belay_ascend::{
    Context, Current, DataType, Device, DeviceLimits, Layout, Library, Region, Runtime, Search, Staging,
    Stream, View,
};
use libloading::os::unix::{Library as File, RTLD_NOW};

/// Ample for whatever has to happen.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Kinds of objects that the simulator counts.
pub const KINDS: [&str; 12] = [
    "context",
    "stream",
    "event",
    "notify",
    "device_memory",
    "host_memory",
    "tensor",
    "scalar",
    "int_array",
    "tensor_list",
    "executor",
    "comm",
];

/// Faults and counters are those of the process, so tests of a program take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The simulator's library, which cargo builds beside the test programs.
pub fn library_file() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folders = program.ancestors().skip(1).take(2);
    let files = folders.map(|folder| folder.join("libbelay_ascend_sim.so"));
    files.into_iter().find(|file| file.exists()).expect("the simulator is built beside the tests")
}

/// One for the program, as in a worker.
pub fn library() -> Arc<Library> {
    static LIBRARY: OnceLock<Arc<Library>> = OnceLock::new();
    Arc::clone(LIBRARY.get_or_init(open_library))
}

pub fn open_library() -> Arc<Library> {
    Library::open(&Search::file(library_file())).unwrap()
}

/// Control of the simulator, and the turn of this test.
pub struct Sim {
    file: File,
    _turn: MutexGuard<'static, ()>,
}

impl Sim {
    pub fn take() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the simulator's initialisers ask for nothing.
        let file = unsafe { File::open(Some(library_file()), RTLD_NOW) }.unwrap();
        let sim = Self { file, _turn: turn };
        sim.clear();
        sim
    }

    fn function<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the callers below name the signatures of the simulator's contract.
        unsafe { *self.file.get::<F>(name.as_bytes()).unwrap() }
    }

    pub fn clear(&self) {
        let call: unsafe extern "C" fn() = self.function("belaySimFailClear");
        // SAFETY: takes nothing.
        unsafe { call() };
    }

    /// The `nth` call of a symbol from now on fails.
    pub fn fail(&self, symbol: &str, nth: u64, code: i32) {
        let call: unsafe extern "C" fn(*const c_char, u64, i32) -> i32 = self.function("belaySimFail");
        let symbol = CString::new(symbol).unwrap();
        // SAFETY: a string that lives during the call.
        assert_eq!(unsafe { call(symbol.as_ptr(), nth, code) }, 0, "{symbol:?} is not simulated");
    }

    pub fn calls(&self, symbol: &str) -> u64 {
        let call: unsafe extern "C" fn(*const c_char) -> u64 = self.function("belaySimCalls");
        let symbol = CString::new(symbol).unwrap();
        // SAFETY: a string that lives during the call.
        unsafe { call(symbol.as_ptr()) }
    }

    pub fn symbols(&self) -> Vec<String> {
        let call: unsafe extern "C" fn(*mut c_char, u64) -> u64 = self.function("belaySimSymbols");
        // SAFETY: no room is written to.
        let needed = unsafe { call(std::ptr::null_mut(), 0) } as usize;
        let mut text = vec![0u8; needed + 1];
        // SAFETY: as much room as is said.
        unsafe { call(text.as_mut_ptr().cast(), text.len() as u64) };
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(needed);
        String::from_utf8(text[..end].to_vec()).unwrap().lines().map(str::to_owned).collect()
    }

    pub fn live(&self, kind: &str) -> u64 {
        let call: unsafe extern "C" fn(*const c_char) -> u64 = self.function("belaySimLive");
        let kind = CString::new(kind).unwrap();
        // SAFETY: a string that lives during the call.
        unsafe { call(kind.as_ptr()) }
    }

    pub fn live_all(&self) -> [u64; KINDS.len()] {
        KINDS.map(|kind| self.live(kind))
    }

    pub fn lose(&self, device: i32, code: i32) {
        let call: unsafe extern "C" fn(i32, i32) -> i32 = self.function("belaySimLoseDevice");
        // SAFETY: two numbers.
        assert_eq!(unsafe { call(device, code) }, 0);
    }

    pub fn hang(&self, device: i32, limit: Duration) {
        let call: unsafe extern "C" fn(i32, u64) -> i32 = self.function("belaySimHangDevice");
        // SAFETY: two numbers.
        assert_eq!(unsafe { call(device, limit.as_millis() as u64) }, 0);
    }

    pub fn heal(&self, device: i32) {
        let call: unsafe extern "C" fn(i32) -> i32 = self.function("belaySimHealDevice");
        // SAFETY: a number.
        assert_eq!(unsafe { call(device) }, 0);
    }
}

/// A context on a device, ready for work.
pub struct Rig {
    pub runtime: Runtime,
    pub device: Device,
    pub context: Context,
}

impl Rig {
    pub fn on(device: u32) -> Self {
        let runtime = Runtime::start(library()).unwrap();
        let device = Device::open(&runtime, device, DeviceLimits::default()).unwrap();
        let context = Context::new(&device).unwrap();
        Self { runtime, device, context }
    }
}

pub fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Nearest bf16 bits of finite values, ties to even.
pub fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Puts values into a region as `dtype` (f32 or bf16) and describes them.
pub fn put(
    current: &Current,
    stream: &Stream,
    staging: &mut Staging,
    region: Region,
    (dtype, dims): (DataType, &[usize]),
    values: &[f32],
) -> View {
    let bytes = match dtype {
        DataType::F32 => bytes_of(values),
        DataType::Bf16 => values.iter().flat_map(|value| to_bf16(*value).to_le_bytes()).collect(),
        other => panic!("{other:?}"),
    };
    staging.write(current, stream, &bytes, &region, LIMIT).unwrap();
    View::new(region, Layout::contiguous(dtype, dims).unwrap()).unwrap()
}

/// The values of a contiguous view.
pub fn get(current: &Current, stream: &Stream, staging: &mut Staging, view: &View) -> Vec<f32> {
    let mut bytes = vec![0; view.layout().bytes()];
    staging.read(current, stream, view.region(), &mut bytes, LIMIT).unwrap();
    match view.layout().dtype() {
        DataType::F32 => floats_of(&bytes),
        DataType::Bf16 => {
            bytes.as_chunks::<2>().0.iter().map(|bytes| from_bf16(u16::from_le_bytes(*bytes))).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Values that are neither all alike nor all small, the same each time.
pub fn some_values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 * 2.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

//! What a communicator is made with: the environment and `HcclCommConfig`.

use std::ffi::c_void;
use std::time::Duration;

use crate::failure::{Outcome, fail};
use crate::hccl::codes;

const MAGIC: u32 = 0xf0f0_f0f0;
const UNSET: u32 = u32::MAX;
const INFO_BYTES: usize = 24;
/// Bytes of a communicator's name with its zero byte.
pub const NAME_BYTES: usize = 128;

/// The settings of a communicator.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Megabytes of the buffer that data goes through.
    pub buffer_mb: u32,
    /// The name; none = one is made up.
    pub name: Option<String>,
    /// How long the set-up may take.
    pub connect: Duration,
    /// How long a collective may stand still; none = for ever.
    pub exec: Option<Duration>,
}

fn variable<T: std::str::FromStr>(name: &str, default: T, fits: impl Fn(&T) -> bool) -> Outcome<T> {
    let Ok(text) = std::env::var(name) else { return Ok(default) };
    match text.trim().parse() {
        Ok(value) if fits(&value) => Ok(value),
        _ => fail(codes::PARA, format!("{name}: {text:?} is out of range")),
    }
}

fn seconds(name: &str, default: f64, least: f64, most: f64) -> Outcome<Duration> {
    let seconds = variable(name, default, |seconds| (least..=most).contains(seconds))?;
    Ok(Duration::from_secs_f64(seconds))
}

impl Settings {
    /// The settings of the environment.
    pub fn from_env() -> Outcome<Self> {
        // documented: 120 at least. Smaller values are taken so that tests need not wait.
        let connect = seconds("HCCL_CONNECT_TIMEOUT", 120.0, 0.01, 7200.0)?;
        let exec = seconds("HCCL_EXEC_TIMEOUT", 1836.0, 0.0, f64::from(i32::MAX))?;
        let buffer_mb = variable("HCCL_BUFFSIZE", 200, |size| *size >= 1)?;
        Ok(Self { buffer_mb, name: None, connect, exec: (!exec.is_zero()).then_some(exec) })
    }

    /// The settings of the environment and of an `HcclCommConfig`: its size says how much of it there is,
    /// its version which fields. Those behind the name are not looked at.
    ///
    /// # Safety
    /// A pointer that is not null is readable for 24 bytes, and for the size that those state.
    pub unsafe fn with_config(config: *const c_void) -> Outcome<Self> {
        let mut settings = Self::from_env()?;
        if config.is_null() {
            return fail(codes::PTR, "config is null");
        }
        let config = config.cast::<u8>();
        // SAFETY: promised by the caller.
        let info = unsafe { config.cast::<[u8; INFO_BYTES]>().read() };
        let word = |at: usize| u32::from_le_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
        let size = (u64::from(word(4)) << 32 | u64::from(word(0))) as usize;
        let (magic, version) = (word(8), word(12));
        if magic != MAGIC || version == 0 || size < INFO_BYTES {
            let text = format!("config of size {size}, magic {magic:#x}, version {version}: not initialised");
            return fail(codes::PARA, text);
        }
        // what lies beyond the name is not looked at, whatever the size says
        let size = size.min(32 + NAME_BYTES);
        // SAFETY: the config has the size that it states, promised by the caller.
        let bytes = (0..size).map(|at| unsafe { *config.add(at) }).collect::<Vec<u8>>();
        let field = |at: usize, since: u32| {
            let bytes = bytes.get(at..at + 4).filter(|_| version >= since)?;
            Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).filter(|value| *value != UNSET)
        };
        if let Some(buffer_mb) = field(24, 1) {
            if buffer_mb == 0 {
                return fail(codes::PARA, "hcclBufferSize is 0");
            }
            settings.buffer_mb = buffer_mb;
        }
        if let Some(deterministic @ 3..) = field(28, 2) {
            return fail(codes::PARA, format!("hcclDeterministic {deterministic}"));
        }
        if let Some(name) = bytes.get(32..32 + NAME_BYTES).filter(|_| version >= 3) {
            let Some(end) = name.iter().position(|byte| *byte == 0) else {
                return fail(codes::PARA, "hcclCommName does not end");
            };
            match std::str::from_utf8(&name[..end]) {
                Ok("") => {}
                Ok(name) => settings.name = Some(name.into()),
                Err(_) => return fail(codes::PARA, "hcclCommName is no text"),
            }
        }
        Ok(settings)
    }

    /// Bytes of the buffer.
    pub fn buffer_bytes(&self) -> u64 {
        u64::from(self.buffer_mb) << 20
    }
}

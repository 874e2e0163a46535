//! The machine that is simulated: environment variable `BELAY_ASCEND_SIM`, JSON, and the SoC profiles.

use std::path::PathBuf;

use serde::Deserialize;

use crate::codes;
use crate::failure::{Outcome, fail};

/// The simulated machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The SoC's name as `aclrtGetSocName` answers it.
    pub soc: String,
    /// Devices of the machine.
    pub devices: u32,
    /// Memory of each device in bytes.
    pub memory_bytes: u64,
    /// Seed of the jitter on `op_delay_us`.
    pub seed: u64,
    /// Mean time that a stream waits before each task, in microseconds.
    pub op_delay_us: u64,
    /// File with commands to this process.
    pub control: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        let soc = "Ascend910B3".into();
        Self { soc, devices: 8, memory_bytes: 1 << 30, seed: 1, op_delay_us: 0, control: None }
    }
}

impl Config {
    /// Reads the environment.
    pub fn from_env() -> Outcome<Self> {
        let config: Self = match std::env::var("BELAY_ASCEND_SIM") {
            Err(_) => Self::default(),
            Ok(json) => serde_json::from_str(&json)
                .or_else(|error| fail(codes::INVALID_PARAM, format!("BELAY_ASCEND_SIM: {error}")))?,
        };
        if Chip::of(&config.soc).is_none() {
            return fail(codes::INVALID_PARAM, format!("BELAY_ASCEND_SIM: unknown soc {:?}", config.soc));
        }
        Ok(config)
    }
}

/// A family of chips: decides which ops and types there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chip {
    /// Atlas A2: Ascend910B.
    A2,
    /// Atlas A3: Ascend910_93xx (910C), two dies a card, each its own device.
    A3,
    /// Ascend 950PR.
    Pr950,
    /// Ascend 950DT.
    Dt950,
}

impl Chip {
    /// The family of a SoC name; none when the name is of no family that is simulated.
    pub fn of(soc: &str) -> Option<Self> {
        if soc.starts_with("Ascend910B") {
            Some(Self::A2)
        } else if soc.starts_with("Ascend910_93") {
            Some(Self::A3)
        } else if soc.starts_with("Ascend950PR_95") {
            Some(Self::Pr950)
        } else if soc.starts_with("Ascend950DT_95") {
            Some(Self::Dt950)
        } else {
            None
        }
    }

    /// Whether it is of the 950 generation.
    pub fn is_950(self) -> bool {
        matches!(self, Self::Pr950 | Self::Dt950)
    }

    /// `NPU_ARCH` of `aclrtGetDeviceInfo`.
    pub fn arch(self) -> i64 {
        if self.is_950() { 3510 } else { 2201 }
    }

    /// Cube cores of one device. For 950 the smallest of the documented range.
    pub fn cube_cores(self, soc: &str) -> i64 {
        match self {
            Self::A2 if matches!(soc, "Ascend910B1" | "Ascend910B2" | "Ascend910B2C") => 24,
            Self::A2 | Self::A3 => 20,
            Self::Pr950 | Self::Dt950 => 28,
        }
    }
}

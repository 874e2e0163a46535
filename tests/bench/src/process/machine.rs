//! What the measurements ran on.

use std::fs;

use std::time::Instant;

use anyhow::{Context, Result};

use super::proc_status::{TICKS_PER_SECOND, cpu_seconds};

/// The class of a machine, not its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// As the processor calls itself.
    pub processor: String,
    /// Threads that this process may use.
    pub cores: usize,
    /// Memory in GiB, rounded.
    pub memory_gib: u64,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub fn this() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kilobytes: u64 = field(&meminfo, "MemTotal")
            .and_then(|text| text.trim_end_matches("kB").trim().parse().ok())
            .context("/proc/meminfo has no MemTotal")?;
        Ok(Self {
            processor: field(&cpuinfo, "model name").unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (kilobytes + (1 << 19)) >> 20,
        })
    }
}

/// What processes other than one do from now on.
#[derive(Clone, Copy, Debug)]
pub struct Others {
    pid: u32,
    own: f64,
    busy: f64,
    began: Instant,
}

impl Others {
    /// Than the one with this number.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub fn than(pid: u32) -> Result<Self> {
        Ok(Self { pid, own: cpu_seconds(pid)?, busy: busy_seconds()?, began: Instant::now() })
    }

    /// Their share of the machine until now, percent.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub fn percent(&self) -> Result<f64> {
        let seconds = self.began.elapsed().as_secs_f64();
        let own = cpu_seconds(self.pid)? - self.own;
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        Ok((busy_seconds()? - self.busy - own).max(0.0) / (seconds * cores) * 100.0)
    }
}

/// Seconds that all processors together have worked since the machine started.
///
/// # Errors
/// `/proc` can't be read.
pub fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is part of user time already
    anyhow::ensure!(fields.len() >= 8, "/proc/stat can't be read");
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().map(|&field| fields[field]).sum();
    Ok(busy as f64 / TICKS_PER_SECOND)
}

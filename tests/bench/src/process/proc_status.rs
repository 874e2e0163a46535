//! `/proc/PID`: memory and processor time of a process.

use std::fs;

use anyhow::{Context, Result};

/// Clock ticks of `/proc` in a second: a constant of Linux' interface, whatever the kernel's own tick.
pub const TICKS_PER_SECOND: f64 = 100.0;

/// Resident memory in bytes.
///
/// # Errors
/// The process is gone.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(|rest| {
        let number: &str = rest.trim().strip_suffix("kB")?;
        number.trim().parse::<u64>().ok()
    });
    Ok(kilobytes.with_context(|| format!("{path} has no VmRSS"))? * 1024)
}

/// Processor time of all threads so far, in seconds.
///
/// # Errors
/// The process is gone.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    // the name in brackets may hold anything; user and system time are the 12th and 13th field after it
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let ticks: Vec<u64> =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    anyhow::ensure!(ticks.len() == 2, "{path} can't be read: {stat}");
    Ok(ticks.iter().sum::<u64>() as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_uses_time() {
        let pid = std::process::id();
        assert!(resident_bytes(pid).unwrap() > 1 << 20);
        let before = cpu_seconds(pid).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 200 {
            std::hint::spin_loop();
        }
        assert!(cpu_seconds(pid).unwrap() > before);
        assert!(resident_bytes(u32::MAX).is_err() && cpu_seconds(u32::MAX).is_err());
    }
}

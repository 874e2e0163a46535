//! What a process of this machine takes.
use std::fs;

/// What it has taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time in seconds, since it began.
    pub cpu_seconds: f64,
    /// Resident memory in MB (1,000,000 bytes).
    pub rss_mb: f64,
    /// The most of it, since it began.
    pub peak_mb: f64,
}

/// Of a process that runs.
pub fn usage(pid: u32) -> Usage {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // the name in parentheses may have spaces; utime and stime are the 14th and 15th word of the line, in ticks of 10 ms
    let words: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = words[11..13].iter().map(|word| word.parse::<f64>().unwrap()).sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kb = |name: &str| -> f64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    Usage { cpu_seconds: ticks / 100.0, rss_mb: kb("VmRSS:") * 1.024e-3, peak_mb: kb("VmHWM:") * 1.024e-3 }
}

/// Processor time of the machine in seconds: all of it, and what was idle.
pub fn machine() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let ticks: Vec<f64> =
        stat.lines().next().unwrap().split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
    // guest time is part of user time already
    (ticks[..8].iter().sum::<f64>() / 100.0, (ticks[3] + ticks[4]) / 100.0)
}

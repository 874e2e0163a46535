//! A line for each phase: CSV, and a table for docs/performance.md.
use std::{fs, io::Write as _, path::Path, process::Command};

use crate::histogram::Histogram;

/// What was measured in a phase.
#[derive(Debug, Default)]
pub struct Phase {
    /// Which.
    pub name: &'static str,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Reconciles in it.
    pub reconciles: Histogram,
    /// Calls to the API server but for watches and leases.
    pub calls: u64,
    /// Those of them that write.
    pub writes: u64,
    /// Calls to workers.
    pub worker_calls: u64,
    /// Processor time of the operator, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory of the operator at the end, and the most so far, in MB.
    pub rss_mb: (f64, f64),
    /// From apply to the last pod of a deployment, in seconds: median and the 99th of 100, where pods are made.
    pub apply_to_pods: Option<(f64, f64)>,
    /// Share of the machine that was used, by the operator and all others.
    pub machine_percent: f64,
}

const HEADER: &str = "date,commit,deployments,pods,phase,seconds,reconciles,reconcile_p50_ms,reconcile_p99_ms,\
    api_calls,api_writes,worker_calls,operator_cpu_s,operator_rss_mb,operator_peak_mb,apply_to_pods_p50_s,\
    apply_to_pods_p99_s,machine_percent";

/// Appends the phases to a CSV file and prints their table.
pub fn publish(path: &Path, deployments: usize, pods: usize, phases: &[Phase]) {
    let words = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let date = words("date", &["-u", "+%F"]);
    let commit = words("git", &["describe", "--always", "--dirty", "--exclude=*"]);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let is_new = !path.exists();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    if is_new {
        writeln!(file, "{HEADER}").unwrap();
    }
    println!(
        "\n| phase | time | reconciles | p50, p99 | API calls per reconcile | writes | calls to workers | CPU of the operator | RSS, most | apply to pods p50, p99 | machine used |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for phase in phases {
        let (count, p50, p99) =
            (phase.reconciles.count(), phase.reconciles.quantile_ms(0.5), phase.reconciles.quantile_ms(0.99));
        let pods_seconds =
            phase.apply_to_pods.map_or(",".to_owned(), |(p50, p99)| format!("{p50:.2},{p99:.2}"));
        writeln!(
            file,
            "{date},{commit},{deployments},{pods},{},{:.1},{count},{p50:.1},{p99:.1},{},{},{},{:.2},{:.0},{:.0},{pods_seconds},{:.0}",
            phase.name, phase.seconds, phase.calls, phase.writes, phase.worker_calls, phase.cpu_seconds,
            phase.rss_mb.0, phase.rss_mb.1, phase.machine_percent,
        )
        .unwrap();
        println!(
            "| {} | {:.1} s | {count} | {p50:.1}, {p99:.1} ms | {:.2} | {} | {} | {:.2} s ({:.1} %) | {:.0}, {:.0} MB | {} | {:.0} % |",
            phase.name,
            phase.seconds,
            phase.calls as f64 / count.max(1.0),
            phase.writes,
            phase.worker_calls,
            phase.cpu_seconds,
            100.0 * phase.cpu_seconds / phase.seconds,
            phase.rss_mb.0,
            phase.rss_mb.1,
            phase.apply_to_pods.map_or("–".to_owned(), |(p50, p99)| format!("{p50:.2}, {p99:.2} s")),
            phase.machine_percent,
        );
    }
}

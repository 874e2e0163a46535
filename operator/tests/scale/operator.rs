//! The operator's program, and what it takes.
use std::{
    path::PathBuf,
    process::{Child, Command},
    time::Instant,
};

use crate::{
    audit::{self, AuditLog},
    control_plane::{ControlPlane, OPERATOR, free_port},
    histogram::Histogram,
    metrics, process,
    report::Phase,
    until,
    workers::Workers,
};

/// The program while it runs.
pub struct Operator {
    process: Child,
    metrics: u16,
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Operator {
    /// Starts it.
    pub fn start(plane: &ControlPlane) -> Self {
        let metrics = free_port();
        let program = std::env::var_os("BELAY_OPERATOR")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_belay-operator")), PathBuf::from);
        let process = Command::new(program)
            .args(["run", "--worker-image", "worker:1", "--log", "warn", "--lease-seconds", "15"])
            .args(["--metrics-address", &format!("127.0.0.1:{metrics}")])
            .env("KUBECONFIG", plane.kubeconfig(OPERATOR))
            .spawn()
            .unwrap();
        Self { process, metrics }
    }

    /// As a crash would.
    pub fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Waits until it has the lease.
    pub async fn until_it_leads(&self) {
        until("it leads", 120, async || metrics::value(&self.text().await, "belay_operator_leader") == 1)
            .await;
    }

    /// Reconciles so far.
    pub async fn reconciles(&self) -> u64 {
        metrics::value(&self.text().await, "belay_operator_reconciles_total")
    }

    async fn text(&self) -> String {
        metrics::text(self.metrics).await
    }

    async fn histogram(&self) -> Histogram {
        Histogram::read(&self.text().await, "belay_operator_reconcile_seconds")
    }
}

/// How things were when a phase began.
pub struct Measured {
    began: Instant,
    cpu_seconds: f64,
    machine: (f64, f64),
    reconciles: Histogram,
    worker_calls: u64,
}

impl Measured {
    /// A phase begins.
    pub async fn begin(operator: &Operator, audit: &mut AuditLog, workers: &Workers) -> Self {
        let reconciles = operator.histogram().await;
        drop(audit.calls());
        Self {
            cpu_seconds: process::usage(operator.process.id()).cpu_seconds,
            reconciles,
            ..Self::begin_anew(audit, workers)
        }
    }

    /// A phase begins with a process that has just begun. What it has asked so far counts.
    pub fn begin_anew(_: &mut AuditLog, workers: &Workers) -> Self {
        Self {
            began: Instant::now(),
            cpu_seconds: 0.0,
            machine: process::machine(),
            reconciles: Histogram::default(),
            worker_calls: workers.calls(),
        }
    }

    /// It ends.
    pub async fn end(
        self,
        name: &'static str,
        operator: &Operator,
        audit: &mut AuditLog,
        workers: &Workers,
    ) -> Phase {
        let seconds = self.began.elapsed().as_secs_f64();
        let usage = process::usage(operator.process.id());
        let (all, idle) = process::machine();
        let calls = audit::asked(&audit.calls());
        eprintln!("{name}: {calls:?}");
        let (all, idle) = (all - self.machine.0, idle - self.machine.1);
        let phase = Phase {
            name,
            seconds,
            reconciles: operator.histogram().await.since(&self.reconciles),
            calls: calls.values().sum(),
            writes: audit::writes(&calls).values().sum(),
            worker_calls: workers.calls() - self.worker_calls,
            cpu_seconds: usage.cpu_seconds - self.cpu_seconds,
            rss_mb: (usage.rss_mb, usage.peak_mb),
            apply_to_pods: None,
            machine_percent: 100.0 * (all - idle) / all,
        };
        eprintln!("{phase:?}");
        phase
    }
}

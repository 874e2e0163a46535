//! Our kernels, the machine's limits and other engines' kernels in turn, round by round.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use super::case::{CASES, Case};
use super::peer::Peer;
use super::report::{BESIDE, KernelRow};
use super::work::Timing;
use crate::process::Others;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rounds of each case.
    pub rounds: usize,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Most tokens of a case.
    pub most: usize,
    /// What the names of cases have in them; all of them without.
    pub only: Option<String>,
    /// Where `peers.sh` has built other engines; none are measured without.
    pub peers: Option<PathBuf>,
    /// Further options of our process.
    pub options: Vec<String>,
    /// Day, commit and machine, for every row.
    pub stamp: KernelRow,
}

impl Plan {
    fn has(&self, case: &Case) -> bool {
        tokens(case) <= self.most && self.only.as_ref().is_none_or(|only| case.name.contains(only.as_str()))
    }
}

/// Measures; `on_row` gets each row as it comes.
///
/// # Errors
/// A process can't be started, or ends.
pub fn run(plan: &Plan, mut on_row: impl FnMut(KernelRow)) -> Result<()> {
    for &threads in &plan.threads {
        let mut ours = Command::new(std::env::current_exe()?);
        ours.args(["kernels", "--work", "--threads", &threads.to_string()]).args(&plan.options);
        let mut ours = Peer::start("belay", ours)?;
        let mut others = match &plan.peers {
            Some(peers) => others(peers, threads),
            None => Vec::new(),
        };
        for round in 0..plan.rounds {
            for case in CASES.iter().filter(|case| plan.has(case)) {
                let mut take = |peer: &mut Peer, by: String, command: &str| {
                    let mut row = measure(peer, command)?;
                    case.name.clone_into(&mut row.case);
                    (row.threads, row.round, row.by) = (threads, round, by);
                    let KernelRow { date, commit, machine, .. } = plan.stamp.clone();
                    on_row(KernelRow { date, commit, machine, ..row });
                    anyhow::Ok(())
                };
                let mut all = |beside: &str| {
                    take(&mut ours, format!("belay{beside}"), &format!("{} {}", case.ours, case.times))?;
                    for (name, command) in case.others {
                        if let Some(peer) = others.iter_mut().find(|peer| peer.name() == *name) {
                            take(peer, format!("{name}{beside}"), &format!("{command} {}", case.times))?;
                        }
                    }
                    anyhow::Ok(())
                };
                all("")?;
                if case.beside && threads > 1 {
                    let _neighbour = Neighbour::start();
                    all(BESIDE)?;
                }
                take(&mut ours, "limit".to_owned(), &case.limit.command(threads))?;
            }
            eprintln!("{threads} threads: round {} of {}", round + 1, plan.rounds);
        }
    }
    Ok(())
}

/// A thread that wants a whole core, as long as this lives.
struct Neighbour(Arc<AtomicBool>);

impl Neighbour {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self(stop)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The last number of its command.
fn tokens(case: &Case) -> usize {
    case.ours.split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Those that start. One that does not is missing in the table, and said so here.
fn others(peers: &Path, threads: usize) -> Vec<Peer> {
    let path = |name: &str| peers.join(name);
    let python = |script: &str, before: &[&str]| {
        let mut command = Command::new(path("venv/bin/python"));
        command.arg(path(script)).args(before).arg(threads.to_string()).arg(path("ids"));
        command
    };
    let mut llama = Command::new(path("llama_moe"));
    llama.args(["mxfp4", &threads.to_string()]).arg(path("ids")).arg("1");
    let mut candle = Command::new(path("candle-peer"));
    candle.arg(path("ids"));
    let all = [
        ("llama.cpp", llama),
        ("candle", candle),
        ("kt-kernel", python("kt_moe.py", &["MXFP4"])),
        ("torch", python("torch_moe.py", &[])),
    ];
    let start = |(name, mut command): (&str, Command)| {
        for threading in ["OMP_NUM_THREADS", "RAYON_NUM_THREADS"] {
            command.env(threading, threads.to_string());
        }
        Peer::start(name, command).map_err(|error| eprintln!("{name} is not measured: {error:#}")).ok()
    };
    all.into_iter().filter_map(start).collect()
}

fn measure(peer: &mut Peer, command: &str) -> Result<KernelRow> {
    let others = Others::than(peer.pid())?;
    let Timing { mut ms, bytes, flops } = peer.ask(command)?;
    let cpu_others_percent = others.percent()?;
    let rates = ms.iter().zip(&bytes).map(|(ms, bytes)| bytes / ms * 1e-6);
    let gigabytes = rates.fold(0.0, f64::max);
    ms.sort_by(f64::total_cmp);
    let min_ms = *ms.first().context("nothing was measured")?;
    Ok(KernelRow {
        min_ms,
        median_ms: ms[ms.len() / 2],
        gigabytes,
        gigaflops: flops / min_ms * 1e-6,
        cpu_others_percent,
        ..KernelRow::default()
    })
}

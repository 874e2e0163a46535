//! When, with what, and on what kind of machine something was measured.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::csv;
use crate::{env::Env, kubectl::run};

/// What a measurement depends on.
const PRODUCT: [&str; 8] =
    ["Cargo.lock", "charts", "crds", "epoch", "gateway", "operator", "proto", "worker"];

/// Where a row comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Day, UTC.
    pub date: String,
    /// The last commit that changed the product (not its tests or documents), with `-dirty` if files differ from it.
    pub commit: String,
    /// Class of the machine.
    pub machine: String,
}

impl Provenance {
    /// Of a line of a file.
    ///
    /// # Errors
    /// If a column is missing.
    pub fn parse(columns: &[&str], values: &[&str]) -> Result<Self> {
        let text = |name| csv::value(columns, values, name);
        Ok(Self { date: text("date")?, commit: text("commit")?, machine: text("machine")? })
    }

    /// Of this moment and machine.
    ///
    /// # Errors
    /// If git or `/proc` don't tell.
    pub fn of(env: &Env) -> Result<Self> {
        let git = |args: &[&str]| -> Result<String> {
            let root = env.root.to_string_lossy();
            let all = ["-C", root.as_ref()].into_iter().chain(args.iter().copied());
            let ran = run(Path::new("git"), all.chain(["--"]).chain(PRODUCT), None)?;
            ensure!(ran.ok, "git {}: {}", args.join(" "), ran.stderr);
            Ok(ran.stdout.trim().to_owned())
        };
        let commit = git(&["log", "-1", "--format=%h"])?;
        let dirty = if git(&["status", "--porcelain"])?.is_empty() { "" } else { "-dirty" };
        let date = run(Path::new("date"), ["-u", "+%F"], None)?.stdout.trim().to_owned();
        Ok(Self { date, commit: format!("{commit}{dirty}"), machine: machine()? })
    }
}

/// Processor, threads and memory.
fn machine() -> Result<String> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processor =
        field(&read("/proc/cpuinfo")?, "model name").unwrap_or_else(|| "unknown processor".into());
    let kilobytes: u64 = field(&read("/proc/meminfo")?, "MemTotal")
        .and_then(|text| text.trim_end_matches("kB").trim().parse().ok())
        .context("/proc/meminfo has no MemTotal")?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(format!("{processor}; {threads} threads; {} GiB", (kilobytes + (1 << 19)) >> 20))
}

//! `belay-bench serving`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, builder::PossibleValuesParser};

use super::{MODELS, Servers, root};
use crate::report;
use crate::serving::{self, Plan};

/// Options of `serving`.
#[derive(Debug, Args)]
pub struct ServingArgs {
    /// Models to serve: nano, which is trained, or random ones by size
    #[arg(long, value_delimiter = ',', default_value = "nano,1b",
          value_parser = PossibleValuesParser::new(MODELS))]
    models: Vec<String>,

    /// Clients at a time
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    clients: Vec<usize>,

    /// Requests of a run for each eight clients (at least one for each client)
    #[arg(long, default_value_t = 32)]
    requests: usize,

    /// Times that each run is repeated, in turn with the others
    #[arg(long, default_value_t = 3)]
    repetitions: usize,

    /// CSV file to write, a row for each run [default: by day and commit, in docs/operations/bench]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Where random models are kept
    #[arg(long, env = "BELAY_CACHE", value_name = "DIR")]
    cache: PathBuf,

    #[command(flatten)]
    servers: Servers,
}

/// Measures, writes the rows, and prints the table.
///
/// # Errors
/// Whatever stopped it; rows that were measured until then are in the file.
pub fn run(args: &ServingArgs) -> Result<()> {
    let logs = args.cache.join("logs/bench");
    std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    let (date, commit) = (jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(), commit()?);
    let out = match &args.out {
        Some(out) => out.clone(),
        None => root().join(format!("docs/operations/bench/serving-{date}-{commit}.csv")),
    };
    // clients share the machine with what they measure: one thread for all of them
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = Vec::new();
    for model in &args.models {
        let loads = args.clients.iter().map(|&clients| (clients, requests(args.requests, clients)));
        let plan = Plan {
            model: model.clone(),
            dir: super::model_directory(model, &args.cache)?,
            loads: loads.collect(),
            repetitions: args.repetitions,
            programs: args.servers.programs()?,
            date: date.clone(),
            commit: commit.clone(),
        };
        let mut written = Ok(());
        runtime.block_on(serving::run(&plan, &logs, |row| {
            eprintln!(
                "{} {} clients, {}, run {}: {:.1} s, {:.1} output tokens/s",
                row.model,
                row.concurrency,
                row.setup,
                row.repetition,
                row.seconds,
                row.token_rate()
            );
            rows.push(row);
            written = report::write(&out, &rows);
        }))?;
        written?;
    }
    print!("{}", report::markdown(&rows));
    Ok(())
}

/// A multiple of eight, as the mix repeats after eight.
fn requests(each_eight: usize, clients: usize) -> usize {
    (each_eight * clients.div_ceil(8)).max(clients).next_multiple_of(8)
}

/// The commit that is checked out.
fn commit() -> Result<String> {
    let git = |args: &[&str]| -> Result<String> {
        let output = Command::new("git").args(args).current_dir(root()).output()?;
        ensure!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    let differs = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(if differs { commit + "-dirty" } else { commit })
}

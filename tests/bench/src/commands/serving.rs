//! `belay-bench serving`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, builder::PossibleValuesParser};

use super::{MODELS, Servers, commit, root};
use crate::report;
use crate::serving::{self, Plan, Variant};

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
        let size = Size::of(model);
        let loads = args.clients.iter().map(|&clients| (clients, size.requests(clients)));
        let plan = Plan {
            model: model.clone(),
            dir: super::model_directory(model, &args.cache)?,
            variants: size.variants.to_vec(),
            loads: loads.collect(),
            shorter: size.shorter,
            repetitions: args.repetitions,
            programs: args.servers.programs()?,
            date: date.clone(),
            commit: commit.clone(),
        };
        let mut written = Ok(());
        runtime.block_on(serving::run(&plan, &logs, |row| {
            eprintln!(
                "{} {} clients, {} {}, run {}: {:.1} s, {:.1} output tokens/s",
                row.model,
                row.concurrency,
                row.setup,
                row.settings,
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

/// How much of the mix a model can do in reasonable time.
struct Size {
    variants: &'static [Variant],
    shorter: usize,
    /// Requests of a run for each client, if there are eight or more.
    each: usize,
}

impl Size {
    fn of(model: &str) -> Self {
        match model {
            "1b" => Self { variants: &[Variant::PLAIN, Variant::PREFIX], shorter: 2, each: 1 },
            _ => Self { variants: &[Variant::PLAIN, Variant::PREFIX, Variant::GUESS], shorter: 1, each: 8 },
        }
    }

    /// A multiple of eight, as the mix repeats after eight; with few clients at least sixteen for a small model.
    fn requests(&self, clients: usize) -> usize {
        (self.each * clients.max(2)).next_multiple_of(8)
    }
}

//! `belay-bench fabric`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{commit, root};
use crate::fabric::{self, FabricRow, Plan};
use crate::process::Machine;

/// Options of `fabric`.
#[derive(Debug, Args)]
pub struct FabricArgs {
    /// Times that each case is measured, in turn with bare TCP
    #[arg(long, default_value_t = 15)]
    rounds: usize,

    /// Messages of a round
    #[arg(long, default_value_t = 2000)]
    messages: usize,

    /// CSV file to write, a row for each round [default: by day and commit, in docs/operations/bench]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Be the other process
    #[arg(long, hide = true)]
    serve: bool,
}

/// Measures, writes the rows, and prints the table.
///
/// # Errors
/// Whatever stopped it; rows that were measured until then are in the file.
pub fn run(args: &FabricArgs) -> Result<()> {
    if args.serve {
        return fabric::serve();
    }
    let (date, commit) = (jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(), commit()?);
    let out = match &args.out {
        Some(out) => out.clone(),
        None => root().join(format!("docs/operations/bench/fabric-{date}-{commit}.csv")),
    };
    let Machine { processor, cores, memory_gib } = Machine::this()?;
    let machine = format!("{processor}; {cores} cores; {memory_gib} GiB");
    let stamp = FabricRow { date, commit, machine, ..FabricRow::default() };
    let plan = Plan { rounds: args.rounds, messages: args.messages, stamp };
    let mut rows = Vec::new();
    let mut written = Ok(());
    fabric::run(&plan, |row| {
        rows.push(row);
        written = fabric::write(&out, &rows);
    })?;
    written?;
    print!("{}", fabric::markdown(&rows));
    Ok(())
}

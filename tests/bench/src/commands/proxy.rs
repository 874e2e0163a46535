//! `belay-bench proxy`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::{commit, root};
use crate::process::{Machine, Programs};
use crate::proxy::{self, Plan, ProxyRow};

/// Options of `proxy`.
#[derive(Debug, Args)]
pub struct ProxyArgs {
    /// Times that each way is measured, in turn
    #[arg(long, default_value_t = 7)]
    rounds: usize,

    /// Requests of a round with one client
    #[arg(long, default_value_t = 2000)]
    alone: usize,

    /// Requests of a round with many clients
    #[arg(long, default_value_t = 20_000)]
    together: usize,

    /// How many those are
    #[arg(long, default_value_t = 64)]
    clients: usize,

    /// A belay-gateway to measure in place of the one in this program
    #[arg(long, value_name = "FILE")]
    gateway: Option<PathBuf>,

    /// CSV file to write, a row for each round [default: by day and commit, in docs/operations/bench]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Be the worker that computes nothing, at this address
    #[arg(long, hide = true)]
    serve: Option<SocketAddr>,

    /// Be the plain proxy before the worker at this address
    #[arg(long, hide = true, requires = "serve")]
    to: Option<SocketAddr>,
}

/// Measures, writes the rows, and prints the table.
///
/// # Errors
/// Whatever stopped it; rows that were measured until then are in the file.
pub fn run(args: &ProxyArgs) -> Result<()> {
    if let Some(listen) = args.serve {
        return proxy::serve(listen, args.to);
    }
    let (date, commit) = (jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(), commit()?);
    let out = match &args.out {
        Some(out) => out.clone(),
        None => root().join(format!("docs/operations/bench/gateway-{date}-{commit}.csv")),
    };
    let Machine { processor, cores, memory_gib } = Machine::this()?;
    let machine = format!("{processor}; {cores} cores; {memory_gib} GiB");
    let stamp = ProxyRow { date, commit, machine, ..ProxyRow::default() };
    let ProxyArgs { rounds, alone, together, clients, .. } = *args;
    let plan = Plan { rounds, alone, together, clients, stamp };
    let programs = Programs { gateway: args.gateway.clone(), ..Programs::own()? };
    let logs = std::env::temp_dir().join(format!("belay-bench-proxy-{}", std::process::id()));
    std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    let mut rows = Vec::new();
    let mut written = Ok(());
    proxy::run(&plan, &programs, &logs, |row| {
        rows.push(row);
        written = proxy::write(&out, &rows);
    })?;
    written?;
    std::fs::remove_dir_all(&logs).with_context(|| logs.display().to_string())?;
    print!("{}", proxy::markdown(&rows));
    Ok(())
}

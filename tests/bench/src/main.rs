//! belay-bench
#![forbid(unsafe_code)]

use belay_bench::commands::Cli;
use clap::Parser;

fn main() -> anyhow::Result<()> {
    Cli::parse().command.run()
}

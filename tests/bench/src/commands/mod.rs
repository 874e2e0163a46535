//! The subcommands, one file each.

pub mod make_model;
pub mod report;
pub mod serve;
pub mod serving;
pub mod soak;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::process::Programs;

/// Measures Belay, and makes the models that it measures.
#[derive(Debug, Parser)]
#[command(name = "belay-bench", version)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a model with random weights, and print its directory
    MakeModel(make_model::MakeModelArgs),
    /// Measure serving against the bare forward
    Serving(Box<serving::ServingArgs>),
    /// Send thousands of requests of every kind, and see what they leave behind
    Soak(soak::SoakArgs),
    /// Print a CSV file of `serving` as a table
    Report(report::ReportArgs),
    /// Be a belay-worker
    Worker(serve::ServeArgs),
    /// Be a belay-gateway
    Gateway(serve::ServeArgs),
}

/// Which programs serve.
#[derive(Clone, Debug, Args)]
pub struct Servers {
    /// A belay-worker to measure in place of the one in this program
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,

    /// A belay-gateway likewise
    #[arg(long, value_name = "FILE")]
    gateway: Option<PathBuf>,
}

impl Servers {
    fn programs(&self) -> anyhow::Result<Programs> {
        Ok(Programs { worker: self.worker.clone(), gateway: self.gateway.clone(), ..Programs::own()? })
    }
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever stopped it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::MakeModel(args) => make_model::run(&args),
            Self::Serving(args) => serving::run(&args),
            Self::Soak(args) => soak::run(&args),
            Self::Report(args) => report::run(&args),
            Self::Worker(args) => serve::worker(&args),
            Self::Gateway(args) => serve::gateway(&args),
        }
    }
}

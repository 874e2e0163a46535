//! The subcommands, one file each.

pub mod make_model;

use clap::{Parser, Subcommand};

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
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever stopped it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::MakeModel(args) => make_model::run(&args),
        }
    }
}

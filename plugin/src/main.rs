//! `kubectl belay`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use kubectl_belay::cli::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    cli::finish(Cli::parse().run().await)
}

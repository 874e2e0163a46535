//! belay-worker
#![forbid(unsafe_code)]

use belay_worker::commands::Cli;
use clap::Parser;

// musl's own allocator is slow under many threads
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    belay_worker::logs::start(cli.log_format, &cli.log)?;
    cli.command.run()
}

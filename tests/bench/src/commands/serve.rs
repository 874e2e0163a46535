//! `belay-bench worker` and `belay-bench gateway`: the servers themselves, so that this one program is all that a
//! benchmark or a test has to build.

use std::ffi::OsString;

use anyhow::Result;
use clap::{Args, Parser};

/// Options of the server.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// As the program itself takes them
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

impl ServeArgs {
    fn of(&self, program: &str) -> Vec<OsString> {
        std::iter::once(program.into()).chain(self.args.iter().cloned()).collect()
    }
}

/// Does what `belay-worker` does.
///
/// # Errors
/// As it.
pub fn worker(args: &ServeArgs) -> Result<()> {
    let cli = belay_worker::commands::Cli::parse_from(args.of("belay-worker"));
    belay_worker::logs::start(cli.log_format, &cli.log)?;
    cli.command.run()
}

/// Does what `belay-gateway` does.
///
/// # Errors
/// As it.
pub fn gateway(args: &ServeArgs) -> Result<()> {
    let config = belay_gateway::config::Config::parse_from(args.of("belay-gateway"));
    belay_gateway::telemetry::start(config.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(belay_gateway::run::run(config))
}

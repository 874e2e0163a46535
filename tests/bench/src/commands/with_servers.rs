//! `belay-bench with-servers`.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, builder::PossibleValuesParser};

use super::{MODELS, Servers};
use crate::process::{Stack, StackOptions};

/// Options of `with-servers`.
#[derive(Debug, Args)]
pub struct WithServersArgs {
    /// Model to serve
    #[arg(long, default_value = "nano", value_parser = PossibleValuesParser::new(MODELS))]
    model: String,

    /// Option of `belay-worker serve`; may be repeated
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    worker_arg: Vec<String>,

    /// Where random models and logs are kept
    #[arg(long, env = "BELAY_CACHE", value_name = "DIR")]
    cache: PathBuf,

    #[command(flatten)]
    servers: Servers,

    /// Command; finds BELAY_URL, BELAY_WORKER (gRPC address), BELAY_MODEL and BELAY_MODEL_DIR in its environment
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command, and ends the servers after it.
///
/// # Errors
/// The servers do not start, or the command fails.
pub fn run(args: &WithServersArgs) -> Result<()> {
    let logs = args.cache.join("logs/with-servers");
    std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    let options = StackOptions {
        programs: args.servers.programs()?,
        model_dir: super::model_directory(&args.model, &args.cache)?,
        model: args.model.clone(),
        worker_args: args.worker_arg.clone(),
        logs,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stack = runtime.block_on(Stack::start(&options))?;
    let (program, rest) = args.command.split_first().context("no command is given")?;
    let status = std::process::Command::new(program)
        .args(rest)
        .env("BELAY_URL", format!("http://{}", stack.api))
        .env("BELAY_WORKER", stack.worker_grpc.to_string())
        .env("BELAY_MODEL", &options.model)
        .env("BELAY_MODEL_DIR", &options.model_dir)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(status.success(), "the command ended with {status}");
    Ok(())
}

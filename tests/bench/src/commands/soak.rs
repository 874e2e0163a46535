//! `belay-bench soak`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use super::Servers;
use crate::process::{Stack, StackOptions};
use crate::soak::{Kind, Soak, WORKER_ARGS};

/// The smallest one: what is looked for is not in the model.
const MODEL: &str = "tiny";

/// Options of `soak`.
#[derive(Debug, Args)]
pub struct SoakArgs {
    /// Requests in all; memory after two fifths of them is compared with memory at the end
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..))]
    requests: u32,

    /// Requests at a time
    #[arg(long, default_value_t = 24)]
    clients: usize,

    /// The same seed makes the same requests
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Send requests of one kind, to find out which one leaves something behind
    #[arg(long, value_enum)]
    only: Option<Kind>,

    /// Where the random model and logs are kept
    #[arg(long, env = "BELAY_CACHE", value_name = "DIR")]
    cache: PathBuf,

    #[command(flatten)]
    servers: Servers,
}

/// Soaks a worker and a gateway.
///
/// # Errors
/// What was left behind, or a request that ended as it must not.
pub fn run(args: &SoakArgs) -> Result<()> {
    let logs = args.cache.join("logs/soak");
    std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    let options = StackOptions {
        programs: args.servers.programs()?,
        model_dir: super::model_directory(MODEL, &args.cache)?,
        model: MODEL.into(),
        worker_args: WORKER_ARGS.map(str::to_owned).to_vec(),
        logs,
    };
    let soak =
        Soak { requests: args.requests as usize, clients: args.clients, seed: args.seed, only: args.only };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stack = Stack::start(&options).await?;
        let begin = Instant::now();
        let report = soak.run(&stack, &options.model).await?;
        for ((kind, outcome), count) in &report.outcomes {
            println!("{count:6} {kind:?}: {outcome:?}");
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        for memory in &report.memory {
            println!("worker {:.1} MiB, gateway {:.1} MiB", mib(memory.worker), mib(memory.gateway));
        }
        println!("{} requests in {:.1} s", soak.requests, begin.elapsed().as_secs_f64());
        report.is_flat()
    })
}

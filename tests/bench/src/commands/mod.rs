//! The subcommands, one file each.

pub mod fabric;
pub mod forward;
pub mod kernels;
pub mod make_model;
pub mod proxy;
pub mod report;
pub mod serve;
pub mod serving;
pub mod soak;
pub mod with_servers;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::model::{self, Preset};
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
    /// Measure exchanges between two processes against bare TCP
    Fabric(fabric::FabricArgs),
    /// Measure kernels against what the machine can do, and against other engines
    Kernels(kernels::KernelsArgs),
    /// Measure the whole forward of a model, against llama.cpp's
    Forward(forward::ForwardArgs),
    /// Measure the gateway as a proxy, against one that only forwards bytes
    Proxy(proxy::ProxyArgs),
    /// Measure serving against the bare forward
    Serving(Box<serving::ServingArgs>),
    /// Send thousands of requests of every kind, and see what they leave behind
    Soak(soak::SoakArgs),
    /// Run a command beside a worker and a gateway
    WithServers(with_servers::WithServersArgs),
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
    fn programs(&self) -> Result<Programs> {
        Ok(Programs { worker: self.worker.clone(), gateway: self.gateway.clone(), ..Programs::own()? })
    }
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever stopped it.
    pub fn run(self) -> Result<()> {
        match self {
            Self::MakeModel(args) => make_model::run(&args),
            Self::Fabric(args) => fabric::run(&args),
            Self::Kernels(args) => kernels::run(&args),
            Self::Proxy(args) => proxy::run(&args),
            Self::Serving(args) => serving::run(&args),
            Self::Forward(args) => forward::run(&args),
            Self::Soak(args) => soak::run(&args),
            Self::WithServers(args) => with_servers::run(&args),
            Self::Report(args) => report::run(&args),
            Self::Worker(args) => serve::worker(&args),
            Self::Gateway(args) => serve::gateway(&args),
        }
    }
}

/// What can be served: nano, which is trained, and random models by size.
const MODELS: [&str; 5] = ["nano", "tiny", "100m", "1b", "7b"];

/// Directory of one of [`MODELS`]; a random one is made if it is not there.
fn model_directory(name: &str, cache: &Path) -> Result<PathBuf> {
    match Preset::named(name) {
        Some(preset) => model::cached(&preset, 0, cache),
        None => {
            let nano = root().join("tests/fixtures/models/nano/fp4");
            nano.canonicalize().with_context(|| nano.display().to_string())
        }
    }
}

/// The checkout that this program was built from.
fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// The commit that is checked out.
fn commit() -> Result<String> {
    let git = |args: &[&str]| -> Result<String> {
        let output = std::process::Command::new("git").args(args).current_dir(root()).output()?;
        ensure!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    let differs = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(if differs { commit + "-dirty" } else { commit })
}

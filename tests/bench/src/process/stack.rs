//! A worker that stands alone, and a gateway in front of it.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Metrics, Server};
use crate::load::Http;

/// Longest time until a process is ready.
const START: Duration = Duration::from_secs(120);

/// Which programs run as worker and gateway.
#[derive(Clone, Debug)]
pub struct Programs {
    /// This program, which holds both servers.
    pub own: PathBuf,
    /// A `belay-worker` to run in its place.
    pub worker: Option<PathBuf>,
    /// A `belay-gateway` to run in its place.
    pub gateway: Option<PathBuf>,
}

impl Programs {
    /// Both from this program.
    ///
    /// # Errors
    /// The system does not say where it is.
    pub fn own() -> Result<Self> {
        let own = std::env::current_exe().context("this program's file")?;
        Ok(Self { own, worker: None, gateway: None })
    }

    fn command(&self, other: Option<&Path>, subcommand: &str) -> Command {
        match other {
            Some(program) => Command::new(program),
            None => {
                let mut command = Command::new(&self.own);
                command.args([subcommand, "--"]);
                command
            }
        }
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// Programs.
    pub programs: Programs,
    /// Checkpoint.
    pub model_dir: PathBuf,
    /// Name that clients ask for.
    pub model: String,
    /// More options of `belay-worker serve`.
    pub worker_args: Vec<String>,
    /// Where logs go.
    pub logs: PathBuf,
}

/// The two processes, ready.
#[derive(Debug)]
pub struct Stack {
    /// The worker.
    pub worker: Server,
    /// The gateway.
    pub gateway: Server,
    /// The worker's gRPC.
    pub worker_grpc: SocketAddr,
    /// The gateway's API.
    pub api: SocketAddr,
    worker_http: SocketAddr,
    gateway_http: SocketAddr,
    http: Http,
}

impl Stack {
    /// Starts both and waits until they are ready.
    ///
    /// # Errors
    /// What a process logged last, if it ended or did not get ready.
    pub async fn start(options: &StackOptions) -> Result<Self> {
        let [worker_grpc, worker_http, api, gateway_http] = free_addresses()?;
        let nowhere = "127.0.0.1:0";
        let StackOptions { programs, model_dir, model, worker_args, logs } = options;
        let mut command = programs.command(programs.worker.as_deref(), "worker");
        command
            .args(["serve", "--model-name", model, "--admin-listen", nowhere, "--fabric-listen", nowhere])
            .args(["--grpc-listen", &worker_grpc.to_string(), "--http-listen", &worker_http.to_string()])
            .arg("--model-dir")
            .arg(model_dir)
            .args(worker_args);
        let worker = Server::start(command, &logs.join("worker.log"))?;
        let mut command = programs.command(programs.gateway.as_deref(), "gateway");
        command
            .args(["--listen", &api.to_string(), "--metrics-listen", &gateway_http.to_string()])
            .args(["--worker", &format!("{model}={worker_grpc}")]);
        let gateway = Server::start(command, &logs.join("gateway.log"))?;
        let http = Http::new();
        let mut stack = Self { worker, gateway, worker_grpc, api, worker_http, gateway_http, http };
        stack.wait().await?;
        Ok(stack)
    }

    async fn wait(&mut self) -> Result<()> {
        let begin = Instant::now();
        for (name, at) in [("worker", self.worker_http), ("gateway", self.gateway_http)] {
            loop {
                let server = if name == "worker" { &mut self.worker } else { &mut self.gateway };
                server.check().with_context(|| format!("the {name}"))?;
                if self.http.get(at, "/readyz").await.is_ok_and(|answer| answer.status == 200) {
                    break;
                }
                anyhow::ensure!(begin.elapsed() < START, "the {name} is not ready:\n{}", server.log_tail());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// The worker's metrics.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn worker_metrics(&self) -> Result<Metrics> {
        Metrics::parse(&self.http.get(self.worker_http, "/metrics").await?.text()?)
    }

    /// The gateway's metrics.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn gateway_metrics(&self) -> Result<Metrics> {
        Metrics::parse(&self.http.get(self.gateway_http, "/metrics").await?.text()?)
    }
}

/// Addresses that nobody listened on a moment ago, all different.
///
/// # Errors
/// None is free.
pub fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let listeners: Vec<TcpListener> =
        (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
    let mut addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr()?;
    }
    Ok(addresses)
}

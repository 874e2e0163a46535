//! What the gateway costs as a proxy: short streamed requests to a worker that computes nothing, asked directly, through a
//! proxy that only forwards bytes, and through the gateway. All in turn, round by round, between the same processes.

mod null;
mod plain;
mod report;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use belay_proto::inference::inference_client::InferenceClient;
use belay_proto::inference::{GenerateRequest, Sampling, generate_request::Prompt};
use bytes::Bytes;
use http::Method;
use tonic::transport::{Channel, Endpoint};

pub use null::TOKENS;
pub use report::{ProxyRow, markdown, write};

use crate::load::{Events, Http};
use crate::process::{Programs, Server, busy_seconds, cpu_seconds, free_addresses};

/// Name of the model that is asked for.
pub const MODEL: &str = "null";

/// Connections of the clients: as many as a few callers' pods would have.
const CONNECTIONS: usize = 8;

/// Longest time until a process is ready.
const START: Duration = Duration::from_secs(30);

/// Who is between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nobody.
    Direct,
    /// A proxy that forwards bytes.
    Plain,
    /// The gateway, by gRPC.
    Gateway,
    /// The gateway, by OpenAI's API.
    OpenAi,
}

impl Way {
    /// All, in the order of a round.
    pub const ALL: [Self; 4] = [Self::Direct, Self::Plain, Self::Gateway, Self::OpenAi];

    /// In files and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Plain => "plain proxy",
            Self::Gateway => "gateway",
            Self::OpenAi => "gateway, OpenAI",
        }
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rounds.
    pub rounds: usize,
    /// Requests of a round with one client.
    pub alone: usize,
    /// Requests of a round with many.
    pub together: usize,
    /// Clients of those.
    pub clients: usize,
    /// Day, commit and machine, for every row.
    pub stamp: ProxyRow,
}

/// Body of the processes that this one starts: `null`, or `plain` before a worker.
///
/// # Errors
/// It can't listen.
pub fn serve(listen: SocketAddr, worker: Option<SocketAddr>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match worker {
        Some(worker) => runtime.block_on(plain::serve(listen, worker)),
        None => runtime.block_on(null::serve(listen)),
    }
}

/// The processes, ready.
struct Processes {
    worker: SocketAddr,
    plain: (Server, SocketAddr),
    gateway: (Server, SocketAddr),
    _worker: Server,
}

impl Processes {
    async fn start(programs: &Programs, logs: &Path) -> Result<Self> {
        let [worker, plain, api, metrics] = free_addresses()?;
        let own = |args: &[&str]| {
            let mut command = Command::new(&programs.own);
            command.args(args);
            command
        };
        let (at_worker, at_plain) = (worker.to_string(), plain.to_string());
        let null = Server::start(own(&["proxy", "--serve", &at_worker]), &logs.join("null.log"))?;
        let plain_args = ["proxy", "--serve", &at_plain, "--to", &at_worker];
        let plain = (Server::start(own(&plain_args), &logs.join("plain.log"))?, plain);
        let mut command = match &programs.gateway {
            Some(program) => Command::new(program),
            None => own(&["gateway", "--"]),
        };
        command
            .args(["--listen", &api.to_string(), "--metrics-listen", &metrics.to_string()])
            .args(["--worker", &format!("{MODEL}={worker}")])
            // a line for each request would be what is measured
            .env("RUST_LOG", "warn");
        let gateway = (Server::start(command, &logs.join("gateway.log"))?, api);
        let mut all = Self { worker, plain, gateway, _worker: null };
        for at in [worker, plain_at(&all), api] {
            all.wait(at).await?;
        }
        Ok(all)
    }

    async fn wait(&mut self, at: SocketAddr) -> Result<()> {
        let begin = Instant::now();
        while tokio::net::TcpStream::connect(at).await.is_err() {
            self.plain.0.check()?;
            self.gateway.0.check()?;
            ensure!(begin.elapsed() < START, "nobody listens on {at}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Address, and the process between.
    fn of(&self, way: Way) -> (SocketAddr, Option<u32>) {
        match way {
            Way::Direct => (self.worker, None),
            Way::Plain => (self.plain.1, Some(self.plain.0.pid())),
            Way::Gateway | Way::OpenAi => (self.gateway.1, Some(self.gateway.0.pid())),
        }
    }
}

fn plain_at(all: &Processes) -> SocketAddr {
    all.plain.1
}

/// Asks by one way.
#[derive(Clone)]
enum Asker {
    Grpc(Channel),
    Http(Http, SocketAddr),
}

impl Asker {
    async fn connect(way: Way, at: SocketAddr) -> Result<Self> {
        if way == Way::OpenAi {
            return Ok(Self::Http(Http::new(), at));
        }
        let endpoint = Endpoint::from_shared(format!("http://{at}"))?.tcp_nodelay(true);
        Ok(Self::Grpc(endpoint.connect().await?))
    }

    /// One request. Time to the first token, microseconds; fails unless all tokens came.
    async fn ask(&self) -> Result<f64> {
        let sent = Instant::now();
        let mut first = None;
        let mut tokens = 0;
        match self {
            Self::Grpc(channel) => {
                let request = GenerateRequest {
                    model: MODEL.into(),
                    prompt: Some(Prompt::Text("a short prompt of a few words".into())),
                    sampling: Some(Sampling { max_tokens: Some(TOKENS), ..Sampling::default() }),
                    ..GenerateRequest::default()
                };
                let mut pieces = InferenceClient::new(channel.clone()).generate(request).await?.into_inner();
                while let Some(piece) = pieces.message().await? {
                    if !piece.ids.is_empty() {
                        first.get_or_insert_with(|| sent.elapsed());
                        tokens += piece.ids.len();
                    }
                }
            }
            Self::Http(http, at) => {
                let body = format!(
                    r#"{{"model":"{MODEL}","prompt":"a short prompt of a few words","max_tokens":{TOKENS},"stream":true}}"#
                );
                let answer = http.open(*at, Method::POST, "/v1/completions", Bytes::from(body)).await?;
                ensure!(answer.status() == 200, "{}", answer.status());
                let mut events = Events::new(answer.into_body());
                while let Some(piece) = events.next().await? {
                    if piece.has_text {
                        first.get_or_insert_with(|| sent.elapsed());
                        tokens += 1;
                    }
                }
            }
        }
        ensure!(tokens == TOKENS as usize, "{tokens} tokens came, not {TOKENS}");
        Ok(first.context("no token came")?.as_secs_f64() * 1e6)
    }
}

/// Measures; `on_row` gets each row as it comes.
///
/// # Errors
/// A process can't be started, or a request fails.
pub fn run(plan: &Plan, programs: &Programs, logs: &Path, mut on_row: impl FnMut(ProxyRow)) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let processes = Processes::start(programs, logs).await?;
        let mut askers = Vec::new();
        for way in Way::ALL {
            let mut own = Vec::new();
            for _ in 0..CONNECTIONS {
                own.push(Asker::connect(way, processes.of(way).0).await?);
            }
            askers.push(own);
        }
        for round in 0..plan.rounds {
            for (clients, requests) in [(1, plan.alone), (plan.clients, plan.together)] {
                for (way, askers) in Way::ALL.into_iter().zip(&askers) {
                    let row = measure(askers, clients, requests, processes.of(way).1).await?;
                    let ProxyRow { date, commit, machine, .. } = plan.stamp.clone();
                    on_row(ProxyRow { date, commit, machine, way: way.name().into(), round, ..row });
                }
            }
        }
        Ok(())
    })
}

async fn measure(
    askers: &[Asker],
    clients: usize,
    requests: usize,
    between: Option<u32>,
) -> Result<ProxyRow> {
    run_clients(askers, clients, requests / 10).await?;
    let cpu = || between.map_or(Ok(0.0), cpu_seconds);
    let (cpu_before, began) = (cpu()?, Instant::now());
    let busy_before = busy_seconds()?;
    let mut micros = run_clients(askers, clients, requests).await?;
    let seconds = began.elapsed().as_secs_f64();
    let used = cpu()? - cpu_before;
    micros.sort_by(f64::total_cmp);
    let at = |share: f64| micros[((micros.len() - 1) as f64 * share) as usize];
    Ok(ProxyRow {
        clients,
        requests: micros.len(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        rate: micros.len() as f64 / seconds,
        cpu_us: used * 1e6 / micros.len() as f64,
        busy_cores: (busy_seconds()? - busy_before) / seconds,
        ..ProxyRow::default()
    })
}

/// Each client sends its next request when the last one is answered.
async fn run_clients(askers: &[Asker], clients: usize, requests: usize) -> Result<Vec<f64>> {
    let left = Arc::new(AtomicUsize::new(requests.max(clients)));
    let mut running = tokio::task::JoinSet::new();
    for client in 0..clients {
        let (asker, left) = (askers[client % askers.len()].clone(), left.clone());
        running.spawn(async move {
            let mut micros = Vec::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                micros.push(asker.ask().await?);
            }
            anyhow::Ok(micros)
        });
    }
    let mut all = Vec::new();
    while let Some(done) = running.join_next().await {
        all.extend(done.context("a client died")??);
    }
    Ok(all)
}

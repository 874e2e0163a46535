//! Workers with the nano model on ephemeral ports, real clients, and the reference's answers.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

pub mod group;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use belay_cpu::CpuBackend;
use belay_proto::admin::admin_client::AdminClient;
use belay_proto::admin::{GetStatusRequest, Phase, WorkerStatus};
use belay_proto::inference::generate_request::Prompt;
use belay_proto::inference::inference_client::InferenceClient;
use belay_proto::inference::{FinishReason, GenerateRequest, GenerateResponse, Sampling, TokenIds, Usage};
use belay_worker::config::ServeConfig;
use belay_worker::devices::Devices;
use belay_worker::server::Worker;
use clap::Parser;
use futures::TryStreamExt;
use serde::Deserialize;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// One line of the nano model's `eval.jsonl`.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    pub id: String,
    pub skill: String,
    pub thinking: bool,
    pub messages: Vec<Message>,
    pub prompt: String,
    pub prompt_ids: Vec<u32>,
    pub greedy_ids: Vec<u32>,
    pub greedy_text: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Message {
    pub role: String,
    #[serde(default)]
    pub content: String,
}

pub fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/nano")
}

/// The first `count` cases of a skill.
pub fn cases(skill: &str, count: usize) -> Vec<Case> {
    let text = std::fs::read_to_string(nano().join("eval.jsonl")).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Case>(line).unwrap());
    let found: Vec<Case> = all.filter(|case| case.skill == skill).take(count).collect();
    assert_eq!(found.len(), count, "cases of {skill}");
    found
}

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    config: ServeConfig,
}

/// Options with ephemeral ports on loopback.
pub fn options(model_dir: &Path, extra: &[&str]) -> ServeConfig {
    let mut args = vec!["test".to_owned(), "--model-dir".to_owned(), model_dir.to_str().unwrap().to_owned()];
    for listen in ["--grpc-listen", "--admin-listen", "--fabric-listen", "--http-listen"] {
        args.extend([listen.to_owned(), "127.0.0.1:0".to_owned()]);
    }
    args.extend(extra.iter().map(|text| (*text).to_owned()));
    Options::parse_from(args).config
}

/// A stand-alone worker of this process that serves nano, ready.
pub async fn stand_alone(extra: &[&str]) -> Worker {
    let worker = started(&nano().join("bf16"), extra).await;
    wait_phase(&mut admin(worker.addresses().admin).await, Phase::Ready).await;
    worker
}

pub async fn started(model_dir: &Path, extra: &[&str]) -> Worker {
    let mut all = vec!["--model-name", "nano"];
    all.extend(extra);
    Worker::start(options(model_dir, &all), Devices::one(CpuBackend::detect())).await.unwrap()
}

pub async fn channel(address: impl std::fmt::Display) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

pub async fn admin(address: impl std::fmt::Display) -> AdminClient<Channel> {
    AdminClient::new(channel(address).await)
}

pub async fn inference(worker: &Worker) -> InferenceClient<Channel> {
    InferenceClient::new(channel(worker.addresses().grpc).await)
}

pub async fn status(admin: &mut AdminClient<Channel>) -> WorkerStatus {
    admin.get_status(GetStatusRequest {}).await.unwrap().into_inner()
}

/// Waits until a worker is in a phase.
pub async fn wait_phase(admin: &mut AdminClient<Channel>, phase: Phase) -> WorkerStatus {
    wait_status(admin, phase.as_str_name(), |status| status.phase() == phase).await
}

pub async fn wait_status(
    admin: &mut AdminClient<Channel>,
    what: &str,
    holds: impl Fn(&WorkerStatus) -> bool,
) -> WorkerStatus {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = status(admin).await;
        if holds(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "never {what}: {found:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for something that is not in the status.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A GET over plain HTTP/1: `(status code, body)`.
pub async fn http_get(address: impl std::fmt::Display, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(address.to_string()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

pub fn greedy(max_tokens: u32) -> Sampling {
    Sampling { temperature: Some(0.0), max_tokens: Some(max_tokens), ..Sampling::default() }
}

/// A greedy request for at most 128 tokens, as the reference made its answers.
pub fn ask(prompt: Prompt) -> GenerateRequest {
    GenerateRequest { prompt: Some(prompt), sampling: Some(greedy(128)), ..GenerateRequest::default() }
}

pub fn ids(ids: &[u32]) -> Prompt {
    Prompt::Ids(TokenIds { ids: ids.to_vec() })
}

/// Never ends by itself before the context is full.
pub fn endless(prompt: &[u32]) -> GenerateRequest {
    let sampling = Sampling { ignore_eos: true, ..greedy(3500) };
    GenerateRequest { prompt: Some(ids(prompt)), sampling: Some(sampling), ..GenerateRequest::default() }
}

/// A whole stream, put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub ids: Vec<u32>,
    pub text: String,
    pub reasoning: String,
    pub finish: FinishReason,
    pub usage: Usage,
    pub first_usage: Option<Usage>,
}

pub async fn collect(mut stream: Streaming<GenerateResponse>) -> Result<Answer, Status> {
    let mut answer = Answer::default();
    let mut is_first = true;
    while let Some(piece) = stream.try_next().await? {
        assert_eq!(answer.finish, FinishReason::Unspecified, "nothing comes after the finish reason");
        answer.finish = piece.finish_reason();
        if std::mem::take(&mut is_first) {
            answer.first_usage = piece.usage;
        }
        answer.usage = piece.usage.unwrap_or(answer.usage);
        answer.ids.extend(piece.ids);
        answer.text.push_str(&piece.text);
        answer.reasoning.push_str(&piece.reasoning);
    }
    Ok(answer)
}

pub async fn generate(
    client: &mut InferenceClient<Channel>,
    request: GenerateRequest,
) -> Result<Answer, Status> {
    collect(client.generate(request).await?.into_inner()).await
}

pub fn retry_hint(status: &Status) -> Option<&str> {
    status.metadata().get("belay-retry").and_then(|value| value.to_str().ok())
}

/// A worker process of the built binary.
pub struct Process {
    pub child: Child,
    pub grpc: String,
    pub admin: String,
    pub fabric: String,
    pub http: String,
    logs: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    /// Starts `belay-worker serve` for nano and waits until it listens.
    pub fn start(extra: &[&str]) -> Self {
        Self::start_with(&[], extra)
    }

    /// The same with more environment.
    pub fn start_with(environment: &[(&str, &str)], extra: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_belay-worker"));
        command.envs(environment.iter().copied());
        command.args(["--log-format", "json", "serve", "--model-name", "nano", "--model-dir"]);
        command.arg(nano().join("bf16"));
        // by environment, so that a test can still give one as a flag
        for listen in ["BELAY_GRPC_LISTEN", "BELAY_ADMIN_LISTEN", "BELAY_FABRIC_LISTEN", "BELAY_HTTP_LISTEN"]
        {
            command.env(listen, "127.0.0.1:0");
        }
        let mut child = command.args(extra).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let listening = lines
            .by_ref()
            .map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap_or_else(|_| panic!("{line}")))
            .find(|line| line["fields"]["message"] == "listening")
            .expect("the worker says where it listens");
        let address = |name: &str| listening["fields"][name].as_str().unwrap().to_owned();
        Self {
            grpc: address("grpc"),
            admin: address("admin"),
            fabric: address("fabric"),
            http: address("http"),
            // a full pipe would block the worker
            logs: Some(std::thread::spawn(move || lines.for_each(|line| println!("{line}")))),
            child,
        }
    }

    /// Sends a signal by its name without SIG.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // it may be gone already
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(logs) = self.logs.take() {
            let _ = logs.join();
        }
    }
}

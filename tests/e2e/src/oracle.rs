//! The right tokens: the reference's own for the eval prompts, and a lone worker process for longer streams.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use belay_proto::admin::{GetExpertLoadRequest, admin_client::AdminClient};
use serde::Deserialize;
use tonic::transport::{Channel, Endpoint};

use crate::{
    client::{self, Length},
    env::Env,
    routing::Load,
    wait,
};

/// One prompt of `eval.jsonl` with the reference's greedy answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// Name in the file.
    pub id: String,
    /// Kind of question.
    pub skill: String,
    /// Whether the prompt asks for reasoning.
    pub thinking: bool,
    /// The conversation.
    pub messages: Vec<serde_json::Value>,
    /// Final prompt text.
    pub prompt: String,
    /// Its tokens.
    pub prompt_ids: Vec<u32>,
    /// The reference's greedy answer, end-of-sequence included.
    pub greedy_ids: Vec<u32>,
    /// Its text.
    pub greedy_text: String,
}

/// Every eval prompt.
///
/// # Errors
/// If the file can't be read.
pub fn cases(env: &Env) -> Result<Vec<Case>> {
    let path = env.root.join("tests/fixtures/models/nano/eval.jsonl");
    fs::read_to_string(&path)
        .with_context(|| path.display().to_string())?
        .lines()
        .map(|line| serde_json::from_str(line).context("eval.jsonl"))
        .collect()
}

/// A prompt and the tokens that must come.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens of the stream.
    pub ids: Vec<u32>,
    /// Its text.
    pub text: String,
}

/// A lone worker process on this machine: one rank, every expert, no cluster.
#[derive(Debug)]
pub struct LoneWorker {
    child: Child,
    channel: Channel,
    admin: Channel,
}

impl LoneWorker {
    /// Starts one on loopback and waits until it is ready.
    ///
    /// # Errors
    /// If it doesn't become ready within a minute.
    pub async fn start(env: &Env) -> Result<Self> {
        Self::run(env, &mut Command::new(&env.worker)).await
    }

    /// The same on a simulated NPU: products in bf16 give a few other tokens than a processor's in f32.
    ///
    /// # Errors
    /// If it doesn't become ready within a minute.
    pub async fn on_npu(env: &Env) -> Result<Self> {
        let mut command = Command::new(env.npu.join("belay-worker"));
        command.env("BELAY_CANN_LIBRARY", env.npu.join("libbelay_ascend_sim.so"));
        command.envs([("BELAY_DEVICE", "Ascend"), ("BELAY_KV_MEMORY", "16Mi")]);
        Self::run(env, &mut command).await
    }

    async fn run(env: &Env, command: &mut Command) -> Result<Self> {
        let (port, admin) = (free_port()?, free_port()?);
        let listen = |port: u16| format!("127.0.0.1:{port}");
        let program = command.get_program().to_owned();
        let child = command
            .args(["serve", "--model-dir"])
            .arg(env.nano())
            .args(["--grpc-listen", &listen(port), "--admin-listen", &listen(admin)])
            .args(["--fabric-listen", &listen(0), "--http-listen", &listen(0)])
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| program.display().to_string())?;
        let local = |port: u16| Endpoint::from_shared(format!("http://127.0.0.1:{port}"));
        let worker =
            Self { child, channel: local(port)?.connect_lazy(), admin: local(admin)?.connect_lazy() };
        for _ in 0..240 {
            let probe = client::generate(&worker.channel, "", &[0], Length::Exactly(1)).await;
            if probe.is_ok() {
                return Ok(worker);
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        anyhow::bail!("the lone worker is not ready after a minute")
    }

    /// The next `count` greedy tokens after each prompt, past the end of the answer.
    ///
    /// # Errors
    /// If it can't answer.
    pub async fn long_streams(&self, prompts: &[Case], count: u32) -> Result<Vec<Expected>> {
        let mut expected = Vec::new();
        for case in prompts {
            let answer =
                client::generate(&self.channel, "", &case.prompt_ids, Length::Exactly(count)).await?;
            expected.push(Expected { prompt: case.prompt_ids.clone(), ids: answer.ids, text: answer.text });
        }
        Ok(expected)
    }

    /// Where the tokens went since the worker started, of late more than long ago.
    ///
    /// # Errors
    /// If it does not say.
    pub async fn load(&self) -> Result<Load> {
        let answer = AdminClient::new(self.admin.clone()).get_expert_load(GetExpertLoadRequest {}).await?;
        Ok(Load::of(&answer.into_inner()))
    }
}

impl Drop for LoneWorker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Waits for a gateway to answer `/v1/models` with this model.
///
/// # Errors
/// If it doesn't within `limit`.
pub async fn served(url: &str, model: &str, limit: Duration) -> Result<()> {
    let client = reqwest::Client::new();
    let start = std::time::Instant::now();
    while start.elapsed() < limit {
        if let Ok(response) = client.get(format!("{url}/v1/models/{model}")).send().await
            && response.status().is_success()
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    wait::until(&format!("{url} serves {model}"), Duration::ZERO, || Ok(None)).await
}

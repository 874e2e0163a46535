//! Sends one request of a kind.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use belay_proto::inference::inference_client::InferenceClient;
use belay_proto::inference::{GenerateRequest, Sampling, TokenIds, generate_request::Prompt as Source};
use http::Method;
use http_body_util::BodyExt;
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint as Address};
use tonic::{Code, Status};

use super::kind::Kind;
use crate::load::{Endpoint, Events, Http, Prompt};
use crate::process::Stack;

/// Longest time a request of any kind may take: beyond it, it hangs.
const HANGS: Duration = Duration::from_secs(60);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// To the end, with a finish reason.
    Answered,
    /// The client left.
    Left,
    /// With a status that says what is wrong with it.
    Refused,
    /// Its time was over.
    OutOfTime,
}

/// The clients' connections.
#[derive(Debug)]
pub struct Clients {
    http: Http,
    api: SocketAddr,
    worker: Channel,
    model: String,
    conversations: Vec<Prompt>,
}

impl Clients {
    /// To these servers.
    ///
    /// # Errors
    /// The fixture can't be read.
    pub fn new(stack: &Stack, model: &str) -> Result<Self> {
        let worker = Address::from_shared(format!("http://{}", stack.worker_grpc))?.connect_lazy();
        let conversations = Prompt::conversations(64)?;
        Ok(Self { http: Http::new(), api: stack.api, worker, model: model.to_owned(), conversations })
    }

    /// Sends request `number` of a seed, of a given kind or of any.
    ///
    /// # Errors
    /// It ended as a request of its kind must not.
    pub async fn ask(&self, seed: u64, number: usize, only: Option<Kind>) -> Result<(Kind, Outcome)> {
        let mut random = Pcg64Mcg::seed_from_u64(seed.wrapping_mul(1 << 32).wrapping_add(number as u64));
        let picked = Kind::pick(below(&mut random, 100));
        let kind = only.unwrap_or(picked);
        let outcome = tokio::time::timeout(HANGS, self.send(kind, &mut random))
            .await
            .with_context(|| format!("{kind:?} hangs"))?
            .with_context(|| format!("{kind:?}"))?;
        ensure!(kind.may(outcome), "{kind:?} ended as {outcome:?}");
        Ok((kind, outcome))
    }

    async fn send(&self, kind: Kind, random: &mut Pcg64Mcg) -> Result<Outcome> {
        match kind {
            Kind::Chat => self.stream(Endpoint::Chat, self.chat(random), u32::MAX).await,
            Kind::Completion => self.stream(Endpoint::Completions, self.completion(random), u32::MAX).await,
            Kind::Whole => self.whole(random).await,
            Kind::Message => self.message(random).await,
            Kind::Left => {
                let events = below(random, 12);
                let (endpoint, body) = match below(random, 2) {
                    0 => (Endpoint::Chat, self.chat(random)),
                    _ => (Endpoint::Completions, self.completion(random)),
                };
                self.stream(endpoint, body, events).await
            }
            Kind::LeftEarly => {
                let patience = Duration::from_micros(u64::from(below(random, 20_000)));
                let answer = self.stream(Endpoint::Chat, self.chat(random), u32::MAX);
                tokio::time::timeout(patience, answer).await.unwrap_or(Ok(Outcome::Left))
            }
            Kind::Invalid => self.invalid(random).await,
            Kind::GrpcCancelled => {
                let pieces = below(random, 6);
                self.grpc(random, pieces, None).await
            }
            Kind::GrpcDeadline => {
                let time = Duration::from_millis(1 + u64::from(below(random, 40)));
                self.grpc(random, u32::MAX, Some(time)).await
            }
        }
    }

    fn options(&self, random: &mut Pcg64Mcg) -> Value {
        json!({
            "model": self.model, "stream": true, "max_tokens": 1 + below(random, 40), "seed": random.next_u32(),
            "temperature": f64::from(below(random, 15)) / 10.0, "ignore_eos": below(random, 2) == 0,
        })
    }

    fn chat(&self, random: &mut Pcg64Mcg) -> Value {
        let mut body = self.options(random);
        let prompt = &self.conversations[below(random, self.conversations.len() as u32) as usize];
        body["messages"] = prompt.messages.clone().into();
        body["stream_options"] = json!({ "include_usage": below(random, 2) == 0 });
        body
    }

    fn completion(&self, random: &mut Pcg64Mcg) -> Value {
        let mut body = self.options(random);
        body["prompt"] = json!(ids(random));
        body
    }

    /// Reads so many events, then leaves.
    async fn stream(&self, endpoint: Endpoint, body: Value, events: u32) -> Result<Outcome> {
        let body = body.to_string().into();
        let response = self.http.open(self.api, Method::POST, endpoint.path(), body).await?;
        let status = response.status();
        if !status.is_success() {
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{status}: {}", String::from_utf8_lossy(&body));
        }
        let mut stream = Events::new(response.into_body());
        let mut finished = false;
        let mut left = events;
        while left > 0 {
            left -= 1;
            match stream.next().await? {
                Some(piece) => finished |= piece.finish_reason.is_some(),
                None if finished => return Ok(Outcome::Answered),
                None => bail!("the answer has no finish reason"),
            }
        }
        Ok(Outcome::Left)
    }

    async fn whole(&self, random: &mut Pcg64Mcg) -> Result<Outcome> {
        let mut body = self.chat(random);
        let fields = body.as_object_mut().context("a body is an object")?;
        fields.remove("stream");
        fields.remove("stream_options");
        match below(random, 3) {
            0 => {
                let stop = ["e", "th", " a ", "."][below(random, 4) as usize];
                fields.insert("stop".into(), json!([stop]));
            }
            1 => {
                fields.insert("n".into(), json!(1 + below(random, 3)));
                fields.insert("logprobs".into(), true.into());
                fields.insert("top_logprobs".into(), json!(below(random, 4)));
            }
            _ => {
                fields.insert("response_format".into(), json!({ "type": "json_object" }));
            }
        }
        let answer = self.http.post(self.api, Endpoint::Chat.path(), body.to_string().into()).await?;
        let text = answer.text()?;
        ensure!(answer.status == 200, "{}: {text}", answer.status);
        let answer: Value = serde_json::from_str(&text)?;
        ensure!(answer["choices"][0]["finish_reason"].is_string(), "no finish reason: {text}");
        Ok(Outcome::Answered)
    }

    async fn message(&self, random: &mut Pcg64Mcg) -> Result<Outcome> {
        let prompt = &self.conversations[below(random, self.conversations.len() as u32) as usize];
        let body = json!({
            "model": self.model, "max_tokens": 1 + below(random, 40), "stream": true, "messages": prompt.messages,
        });
        let answer = self.http.post(self.api, "/v1/messages", body.to_string().into()).await?;
        let text = answer.text()?;
        ensure!(answer.status == 200 && text.contains("event: message_stop"), "{}: {text}", answer.status);
        Ok(Outcome::Answered)
    }

    async fn invalid(&self, random: &mut Pcg64Mcg) -> Result<Outcome> {
        let mut body = self.chat(random);
        let text = match below(random, 8) {
            0 => "{\"model\": ".to_owned(),
            which => {
                let (field, value) = match which {
                    1 => ("temperature", json!(-1)),
                    2 => ("model", json!("another")),
                    3 => ("messages", json!([])),
                    4 => ("max_tokens", json!(-5)),
                    5 => ("top_p", json!(2)),
                    6 => ("stop", json!([1])),
                    _ => ("messages", json!([{ "role": "user", "content": "word ".repeat(8000) }])),
                };
                body[field] = value;
                body.to_string()
            }
        };
        let shown = text[..text.len().min(200)].to_owned();
        let answer = self.http.post(self.api, Endpoint::Chat.path(), text.into()).await?;
        let error = answer.text()?;
        ensure!((400..500).contains(&answer.status), "{}: {error} to {shown}", answer.status);
        let error: Value = serde_json::from_str(&error)?;
        ensure!(error["error"]["message"].is_string(), "an error without a message: {error}");
        Ok(Outcome::Refused)
    }

    async fn grpc(&self, random: &mut Pcg64Mcg, pieces: u32, time: Option<Duration>) -> Result<Outcome> {
        let message = GenerateRequest {
            model: self.model.clone(),
            prompt: Some(Source::Ids(TokenIds { ids: ids(random) })),
            sampling: Some(Sampling { max_tokens: Some(40), ignore_eos: true, ..Sampling::default() }),
            ..GenerateRequest::default()
        };
        let mut request = tonic::Request::new(message);
        if let Some(time) = time {
            request.set_timeout(time);
        }
        let ended = |status: Status| match status.code() {
            // tonic's own client says Cancelled when its timer runs out first
            Code::DeadlineExceeded | Code::Cancelled if time.is_some() => Ok(Outcome::OutOfTime),
            _ => Err(anyhow::Error::new(status)),
        };
        let mut stream = match InferenceClient::new(self.worker.clone()).generate(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return ended(status),
        };
        for _ in 0..pieces {
            match stream.message().await {
                Ok(Some(piece)) if piece.finish_reason != 0 => return Ok(Outcome::Answered),
                Ok(Some(_)) => {}
                Ok(None) => bail!("the stream ended without a finish reason"),
                Err(status) => return ended(status),
            }
        }
        Ok(Outcome::Left)
    }
}

/// A number below `limit`.
fn below(random: &mut Pcg64Mcg, limit: u32) -> u32 {
    random.next_u32() % limit
}

/// Tokens of text (special ones come first in the vocabulary). Half of these prompts begin with one of a few long
/// texts, so that the prefix cache has something to keep.
fn ids(random: &mut Pcg64Mcg) -> Vec<u32> {
    let own: Vec<u32> = (0..1 + below(random, 80)).map(|_| 15 + below(random, 2000)).collect();
    if below(random, 2) == 0 {
        return own;
    }
    let text = below(random, 8);
    (0..150).map(|place| 15 + (text * 150 + place) * 7 % 2000).chain(own).collect()
}

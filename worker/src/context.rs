//! What the services of one worker share.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use belay_engine::chat::{self, Conversation, ReplyParser};
use belay_engine::{Engine, Output, Request, Sampling, Stop, Tokenizer};
use belay_fabric::{Group, Stats};
use belay_proto::inference::TokenizeResponse;
use belay_proto::{admin, inference};
use tokio::sync::watch;
use tonic::Status;

use crate::config::ServeConfig;
use crate::grpc::errors;
use crate::metrics::{Reading, RequestMetrics, Source};
use crate::placement::Slot;
use crate::reply_stream::{ReplyStream, reply_stream};
use crate::state::{Refusal, Shared};

/// One worker: its options, its state, and what it serves with once that is loaded.
pub struct Context {
    /// Options.
    pub config: ServeConfig,
    /// Name that clients ask for.
    pub model_name: String,
    /// UID of this life.
    pub uid: String,
    /// Life cycle and requests in flight.
    pub shared: Arc<Shared>,
    /// Metrics of requests.
    pub requests: Arc<RequestMetrics>,
    /// Set when the weights are there.
    pub engine: ArcSwapOption<Engine>,
    /// Set from the start in a group; `None` stand-alone.
    pub group: ArcSwapOption<Group>,
    /// Counters of the fabric in use.
    pub fabric_stats: ArcSwapOption<Stats>,
    /// Newest placement that was accepted; the life cycle follows it.
    pub placement: watch::Sender<Option<Arc<admin::Placement>>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("model_name", &self.model_name).finish_non_exhaustive()
    }
}

impl Context {
    /// A worker that has not begun.
    #[must_use]
    pub fn new(config: ServeConfig, model_name: String) -> Self {
        let uid = config.pod_uid.clone().filter(|uid| !uid.is_empty());
        Self {
            uid: uid.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
            config,
            model_name,
            shared: Arc::default(),
            requests: Arc::default(),
            engine: ArcSwapOption::empty(),
            group: ArcSwapOption::empty(),
            fabric_stats: ArcSwapOption::empty(),
            placement: watch::Sender::new(None),
        }
    }

    /// Place of this worker in its group; `None` stand-alone.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        Some(Slot {
            group: self.config.group_name()?.to_owned(),
            revision: self.config.revision.clone(),
            worker: self.config.worker_index,
            workers: self.config.group_workers,
            uid: self.uid.clone(),
            ranks: self.config.devices_per_worker,
        })
    }

    /// What stopped the engine, if it has stopped by itself.
    #[must_use]
    pub fn engine_stopped(&self) -> Option<String> {
        // whoever stops it on purpose takes it out of here first
        self.engine.load().as_ref()?.stats().stopped
    }

    /// Refuses another model's name; an empty one means "the one you serve".
    ///
    /// # Errors
    /// NOT_FOUND naming both.
    pub fn check_model(&self, asked: &str) -> Result<(), Status> {
        if asked.is_empty() || asked == self.model_name {
            Ok(())
        } else {
            Err(errors::unknown_model(asked, &self.model_name))
        }
    }

    /// Takes a request in and gives back its stream.
    ///
    /// # Errors
    /// A status as in [`errors`].
    pub async fn begin(&self, ask: Ask) -> Result<ReplyStream, Status> {
        let begun = self.try_begin(ask).await;
        if let Err(status) = &begun {
            self.requests.refused(status.code());
        }
        begun
    }

    async fn try_begin(&self, ask: Ask) -> Result<ReplyStream, Status> {
        self.check_model(&ask.model)?;
        let timer = Arc::clone(&self.requests).start();
        let ticket = self.shared.admit().map_err(errors::refused)?;
        let engine = self.serving(&ask.model)?;
        let (prompt, mut reply) = encode(&engine, ask.prompt, &ask.request_id).await?;
        let (sampling, stop) = sampling(ask.sampling);
        if let Some(reply) = &mut reply {
            // what it says is with the client already
            reply.push(&replayed(engine.tokenizer(), &stop, &ask.resume));
        }
        let prompt_tokens = prompt.len() as u32;
        let request =
            Request { id: ask.request_id, prompt, resume: ask.resume, sampling, stop, ..Request::default() };
        tracing::debug!(id = request.id, prompt_tokens, resumed = request.resume.len(), "request");
        let (sink, mut stream) = reply_stream(Arc::clone(&self.shared), ticket, timer, prompt_tokens, reply);
        match engine.submit(request, sink) {
            Ok(key) => {
                stream.on_cancel(move || engine.cancel(key));
                Ok(stream)
            }
            Err(error) => {
                stream.discard();
                Err(errors::not_submitted(error))
            }
        }
    }
}

impl Context {
    /// Token ids of a text or a conversation, as [`Self::begin`] would feed them.
    ///
    /// # Errors
    /// A status as in [`errors`].
    pub async fn tokenize(&self, model: &str, prompt: Prompt) -> Result<TokenizeResponse, Status> {
        let engine = self.serving(model)?;
        let (ids, _) = encode(&engine, prompt, "").await?;
        let tokens = ids.iter().map(|&id| engine.tokenizer().spelling(id)).collect();
        Ok(TokenizeResponse { ids, tokens, max_context_tokens: engine.max_context() as u32 })
    }

    /// Text of token ids, special tokens written out.
    ///
    /// # Errors
    /// A status as in [`errors`]: `ids` with one that the vocabulary does not have.
    pub fn detokenize(&self, model: &str, ids: &[u32]) -> Result<String, Status> {
        let engine = self.serving(model)?;
        let tokenizer = engine.tokenizer();
        if let Some((index, id)) =
            ids.iter().enumerate().find(|(_, id)| **id as usize >= tokenizer.vocab_size())
        {
            let last = tokenizer.vocab_size() - 1;
            return Err(errors::invalid(
                "ids",
                format!("token {index} is {id}, but the vocabulary ends at {last}"),
            ));
        }
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.spelling(id)).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The engine, if the model is the one served.
    fn serving(&self, model: &str) -> Result<Arc<Engine>, Status> {
        self.check_model(model)?;
        self.engine.load_full().ok_or_else(|| errors::refused(Refusal::NotReady("no engine yet".into())))
    }
}

impl Source for Context {
    fn read(&self) -> Reading {
        let group = self.group.load();
        Reading {
            state: self.shared.get(),
            in_flight: self.shared.in_flight(),
            loaded: self.shared.loaded(),
            engine: self.engine.load().as_ref().map(|engine| engine.stats()),
            fabric: self.fabric_stats.load().as_ref().map(|stats| stats.snapshot()),
            peers: group.as_ref().map_or_else(Vec::new, |group| group.peers()),
        }
    }
}

/// A request from any of the services.
pub struct Ask {
    /// Model asked for, or empty.
    pub model: String,
    /// For logs; empty: one is made.
    pub request_id: String,
    /// What to go on with.
    pub prompt: Prompt,
    /// Sampling and stop conditions.
    pub sampling: inference::Sampling,
    /// Tokens already produced elsewhere.
    pub resume: Vec<u32>,
}

/// What to go on with.
pub enum Prompt {
    /// Token ids.
    Ids(Vec<u32>),
    /// Text; special tokens written out, nothing is added.
    Text(String),
    /// A conversation, to be written in the model's chat format.
    Chat(Conversation),
}

/// Token ids of a prompt, off the async threads: a long text takes milliseconds.
async fn encode(
    engine: &Engine,
    prompt: Prompt,
    request_id: &str,
) -> Result<(Vec<u32>, Option<ReplyParser>), Status> {
    let (field, text, reply) = match prompt {
        Prompt::Ids(ids) => return Ok((ids, None)),
        Prompt::Text(text) => ("prompt", text, None),
        Prompt::Chat(conversation) => {
            let text =
                chat::encode(&conversation).map_err(|error| Status::invalid_argument(error.to_string()))?;
            let tools = conversation.callable_tools();
            let reply = ReplyParser::new(chat::ends_in_reasoning(&text), &tools, request_id);
            ("messages", text, Some(reply))
        }
    };
    let tokenizer = Arc::clone(engine.tokenizer());
    match tokio::task::spawn_blocking(move || tokenizer.encode(&text)).await {
        Ok(Ok(ids)) => Ok((ids, reply)),
        Ok(Err(error)) => Err(errors::invalid(field, error)),
        Err(error) => Err(Status::internal(format!("{field}: the tokenizer failed: {error}"))),
    }
}

/// Text that has been sent with tokens already produced.
fn replayed(tokenizer: &Arc<Tokenizer>, stop: &Stop, ids: &[u32]) -> String {
    let mut output = Output::new(Arc::clone(tokenizer), stop, usize::MAX);
    let mut text = String::new();
    for &id in ids {
        output.push(id, &mut text);
    }
    text
}

/// The engine's terms for what the proto leaves open.
fn sampling(sampling: inference::Sampling) -> (Sampling, Stop) {
    let random_seed = || uuid::Uuid::new_v4().as_u64_pair().0;
    (
        Sampling {
            temperature: sampling.temperature.unwrap_or(1.0),
            top_p: sampling.top_p.unwrap_or(1.0),
            top_k: sampling.top_k.unwrap_or(0),
            seed: sampling.seed.unwrap_or_else(random_seed),
            ..Sampling::default()
        },
        Stop {
            max_tokens: sampling.max_tokens,
            strings: sampling.stop,
            ids: sampling.stop_ids,
            ignore_eos: sampling.ignore_eos,
            ..Stop::default()
        },
    )
}

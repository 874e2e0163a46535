//! What the services of one worker share.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::ArcSwapOption;
use belay_engine::chat::{self, ReplyParser};
use belay_engine::{Constraint, Engine, Grammar, Request};
use belay_fabric::{Group, InProcess, Stats};
use belay_proto::inference::TokenizeResponse;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::ask::{Ask, Chat, MAX_ANSWERS, Prompt};
use crate::config::{ServeConfig, Switch};
use crate::grpc::errors;
use crate::metrics::{Reading, RequestMetrics, Source};
use crate::placement::Membership;
use crate::ranks::RankView;
use crate::reply::{Opening, Parts, ReplyStream};
use crate::state::{Refusal, Shared};
use crate::translate;

/// One worker: its options, its state, and what it serves with once that is loaded.
pub struct Context {
    /// Options.
    pub config: ServeConfig,
    /// Name that clients ask for.
    pub model_name: String,
    /// UID of the pod.
    pub uid: String,
    /// Name of this process, which no other has.
    pub process: String,
    /// Fused operators of the devices, and whether they are used.
    pub fused: Vec<(&'static str, bool)>,
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
    /// The fabric of a worker that stands alone, once it is loaded.
    pub alone: ArcSwapOption<InProcess>,
    /// The experts of this worker's ranks, once the checkpoint was opened.
    pub ranks: ArcSwapOption<Arc<dyn RankView>>,
    /// What the operator asked for; the life cycle follows it.
    pub membership: Membership,
    /// Faults that were injected so far.
    pub faults: AtomicU64,
    /// Requests that are being read: one a processor, so that long prompts don't crowd out the engine.
    readers: Arc<Semaphore>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("model_name", &self.model_name).finish_non_exhaustive()
    }
}

impl Context {
    /// A worker that has not begun.
    #[must_use]
    pub fn new(config: ServeConfig, model_name: String, fused: Vec<(&'static str, bool)>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let uid = config.pod_uid.clone().filter(|uid| !uid.is_empty());
        Self {
            uid: uid.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
            process: uuid::Uuid::new_v4().to_string(),
            config,
            model_name,
            fused,
            shared: Arc::default(),
            requests: Arc::default(),
            engine: ArcSwapOption::empty(),
            group: ArcSwapOption::empty(),
            fabric_stats: ArcSwapOption::empty(),
            alone: ArcSwapOption::empty(),
            ranks: ArcSwapOption::empty(),
            membership: Membership::default(),
            faults: AtomicU64::new(0),
            readers: Arc::new(Semaphore::new(processors)),
        }
    }

    /// What stopped the engine, if it has stopped by itself.
    #[must_use]
    pub fn engine_stopped(&self) -> Option<String> {
        // whoever stops it on purpose takes it out of here first
        self.engine_stats()?.stopped
    }

    /// What the engine counts, if there is one.
    #[must_use]
    pub fn engine_stats(&self) -> Option<belay_engine::Stats> {
        self.engine.load().as_ref().map(|engine| engine.stats())
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

    /// What chat requests that don't say get.
    #[must_use]
    pub fn chat_defaults(&self) -> chat::Defaults {
        chat::Defaults {
            encoding: self.config.chat_encoding,
            thinking: self.config.default_thinking == Switch::On,
        }
    }

    /// Takes a request in, if it could be read, and gives back its stream.
    ///
    /// # Errors
    /// A status as in [`errors`].
    pub async fn begin(&self, ask: Result<Ask, Status>) -> Result<ReplyStream, Status> {
        let begun = match ask {
            Ok(ask) => self.try_begin(ask).await,
            Err(status) => Err(status),
        };
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
        let answers = ask.answers(MAX_ANSWERS.min(self.config.max_queued.max(1)))?;
        let tokenizer = Arc::clone(engine.tokenizer());
        let span = ask.span.clone();
        if span.is_recording() {
            span.set("gen_ai.request.model", self.model_name.clone());
            span.set("belay.request_id", ask.request_id.clone());
        }
        let stream = ReplyStream::new(answers, Arc::clone(&self.shared), ticket, timer, tokenizer, span);
        let log_prompts = self.config.log_prompts == Switch::On;
        self.blocking(move || submit(&engine, ask, stream, log_prompts)).await?
    }
}

/// Puts a request into the engine's terms, and its answers into the engine's queue. Takes milliseconds: a long text
/// is split into tokens, a grammar is compiled.
fn submit(
    engine: &Arc<Engine>,
    ask: Ask,
    mut stream: ReplyStream,
    log_prompts: bool,
) -> Result<ReplyStream, Status> {
    match try_submit(engine, ask, &mut stream, log_prompts) {
        Ok(()) => Ok(stream),
        Err(status) => {
            stream.discard();
            Err(status)
        }
    }
}

fn try_submit(
    engine: &Arc<Engine>,
    ask: Ask,
    stream: &mut ReplyStream,
    log_prompts: bool,
) -> Result<(), Status> {
    let Ask { request_id, prompt, sampling, options, resume, deadline, .. } = ask;
    let answers = sampling.n.unwrap_or(1);
    let encoded = encode(engine, prompt)?;
    let in_reasoning = encoded.chat.as_ref().is_some_and(|chat| chat.in_reasoning);
    let after = engine.tokenizer().think_end().filter(|_| in_reasoning);
    let mut stop = translate::stop(&sampling);
    let mut constraint = translate::constraint(&options, after)?;
    if let Some(chat) = &encoded.chat {
        if chat.single_call {
            stop.strings.push(chat::CALL_END.into());
        }
        if let Some(grammar) = &chat.forced_calls {
            // the answer's form is that of a later turn, without calls
            constraint = Some(Constraint { grammar: Grammar::Lark(grammar.clone()), after });
        }
    }
    if log_prompts {
        let text = encoded.text.clone().unwrap_or_else(|| spelt(engine, &encoded.ids));
        tracing::info!(id = request_id, text, "prompt");
    }
    let opening = Opening {
        prompt_tokens: encoded.ids.len() as u32,
        prompt_text: options.echo.then(|| encoded.text.unwrap_or_else(|| spelt(engine, &encoded.ids))),
        scored: options.prompt_logprobs.and_then(|_| encoded.ids.first().copied()),
    };
    let random_seed = uuid::Uuid::new_v4().as_u64_pair().0;
    let request = Request {
        constraint,
        sampling: translate::sampling(&sampling, random_seed),
        stop,
        id: request_id,
        prompt: encoded.ids,
        resume,
        logprobs: options.logprobs,
        prompt_logprobs: options.prompt_logprobs,
        priority: options.priority,
        deadline,
        cache_salt: options.cache_salt,
    };
    tracing::debug!(
        id = request.id,
        prompt_tokens = request.prompt.len(),
        resumed = request.resume.len(),
        answers,
        "request"
    );
    for index in 0..answers {
        let mut request = request.clone();
        request.sampling.seed = request.sampling.seed.wrapping_add(u64::from(index));
        if index > 0 {
            // the same for all
            request.prompt_logprobs = None;
        }
        let mut parts = match &encoded.chat {
            None => Parts::Plain,
            Some(chat) => Parts::chat(chat.parser(&request.id, index)),
        };
        parts.resume(engine.tokenizer(), &request.stop, &request.resume);
        let sink = stream.open(index, parts, &opening);
        let key = engine.submit(request, sink).map_err(errors::not_submitted)?;
        let engine = Arc::clone(engine);
        stream.on_cancel(move || engine.cancel(key));
    }
    Ok(())
}

impl Context {
    /// Token ids of a text or a conversation, as [`Self::begin`] would feed them.
    ///
    /// # Errors
    /// A status as in [`errors`].
    pub async fn tokenize(&self, model: &str, prompt: Prompt) -> Result<TokenizeResponse, Status> {
        let engine = self.serving(model)?;
        self.blocking(move || {
            let ids = encode(&engine, prompt)?.ids;
            let tokens = ids.iter().map(|&id| engine.tokenizer().spelling(id)).collect();
            Ok(TokenizeResponse { ids, tokens, max_context_tokens: engine.max_context() as u32 })
        })
        .await?
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
        Ok(spelt(&engine, ids))
    }

    /// Runs work of milliseconds off the async threads; as much at a time as there are processors.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let failed =
            |error: &dyn std::fmt::Display| Status::internal(format!("reading the request failed: {error}"));
        let permit = Arc::clone(&self.readers).acquire_owned().await.map_err(|error| failed(&error))?;
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        work.await.map_err(|error| failed(&error))
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
            fused: self.fused.clone(),
            engine: self.engine_stats(),
            fabric: self.fabric_stats.load().as_ref().map(|stats| stats.snapshot()),
            peers: group.as_ref().map_or_else(Vec::new, |group| group.peers()),
            circle: group.as_ref().and_then(|group| group.circle()),
            coverage: group.as_ref().map(|group| group.coverage()),
        }
    }
}

/// A prompt, ready for the engine.
struct Encoded {
    ids: Vec<u32>,
    /// Unless ids were given.
    text: Option<String>,
    /// Of a conversation.
    chat: Option<EncodedChat>,
}

/// What the reply's text is taken apart by.
struct EncodedChat {
    in_reasoning: bool,
    tools: Vec<serde_json::Value>,
    /// Grammar of the calls that there must be.
    forced_calls: Option<String>,
    /// One call at most.
    single_call: bool,
}

impl EncodedChat {
    /// Calls of different answers have different ids.
    fn parser(&self, request_id: &str, index: u32) -> ReplyParser {
        let tools: Vec<&serde_json::Value> = self.tools.iter().collect();
        match index {
            0 => ReplyParser::new(self.in_reasoning, &tools, request_id),
            _ => ReplyParser::new(self.in_reasoning, &tools, &format!("{request_id}-{index}")),
        }
    }
}

fn encode(engine: &Engine, prompt: Prompt) -> Result<Encoded, Status> {
    let (field, text, chat) = match prompt {
        Prompt::Ids(ids) => return Ok(Encoded { ids, text: None, chat: None }),
        Prompt::Text(text) => ("prompt", text, None),
        Prompt::Chat(chat) => {
            let invalid = |error: chat::ChatError| Status::invalid_argument(error.to_string());
            let Chat { conversation, single_call } = *chat;
            let text = chat::encode(&conversation).map_err(invalid)?;
            let tools = conversation.callable_tools();
            let forced_calls =
                chat::tool_grammar(&tools, &conversation.tool_choice, single_call).map_err(invalid)?;
            let chat = EncodedChat {
                in_reasoning: chat::ends_in_reasoning(&text),
                single_call: single_call && !tools.is_empty(),
                forced_calls,
                tools: tools.into_iter().cloned().collect(),
            };
            ("messages", text, Some(chat))
        }
    };
    let tokenizer = engine.tokenizer();
    let fewest = text.len() / tokenizer.longest();
    if fewest >= engine.max_context() {
        let message = format!(
            "{} bytes are at least {fewest} tokens, which do not fit: the context holds {}",
            text.len(),
            engine.max_context()
        );
        return Err(errors::invalid(field, message));
    }
    let ids = tokenizer.encode(&text).map_err(|error| errors::invalid(field, error))?;
    Ok(Encoded { ids, text: Some(text), chat })
}

fn spelt(engine: &Engine, ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| engine.tokenizer().spelling(id)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

//! The engine's handle: what the edges of the process call.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};

use crossbeam_channel::Sender;

use crate::chooser::Chooser;
use crate::observer::{Observer, Silent};
use crate::outlet::Outlet;
use crate::output::Output;
use crate::prefix_cache::Chain;
use crate::request::{Request, Sink, SubmitError};
use crate::session::{Record, Scores, Session};
use crate::stats::{Place, Shared, Stats};
use crate::step_loop::{self, Command};
use crate::step_model::StepModel;
use crate::tokenizer::Tokenizer;
use crate::validate;

/// Bounds of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Longest prompt + completion in tokens; `None`: the model's maximum. Never more than that, nor than the state of
    /// one sequence can be within the model's memory.
    pub max_context: Option<usize>,
    /// Requests that take part in a step at most; at least 1.
    pub max_sessions: usize,
    /// Requests that wait at most; more are refused.
    pub max_queued: usize,
    /// Rows of a step at most: the token of each request that decodes, guesses, and tokens of prompts. More, if so
    /// many requests decode; then a quarter of it is still for prompts. Bounds how long a step takes, and so how much a
    /// long prompt delays the tokens of others.
    pub step_tokens: usize,
    /// Tokens that are guessed ahead at most, if the model has a draft stage; never more than that gives.
    pub draft_tokens: usize,
    /// Whether states are kept for later requests that begin with the same tokens.
    pub prefix_cache: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_context: None,
            max_sessions: 32,
            max_queued: 256,
            step_tokens: 256,
            draft_tokens: 3,
            prefix_cache: true,
        }
    }
}

/// Generates tokens for many requests at once, on one thread of its own. All methods may be called from any thread;
/// none waits for a step, except [`Engine::shutdown`].
pub struct Engine {
    commands: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: ThreadId,
    tokenizer: Arc<Tokenizer>,
    shared: Arc<Shared>,
    config: EngineConfig,
    vocab_size: usize,
    /// Bytes for decode states.
    memory: usize,
    max_context: usize,
    /// What the model's caches are told apart by.
    cache_key: u64,
    block_tokens: usize,
    observer: Arc<dyn Observer>,
    next_key: AtomicU64,
}

/// Names a submitted request for [`Engine::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey(u64);

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the system says if it cannot start one.
    pub fn start<M: StepModel>(
        model: M,
        tokenizer: Arc<Tokenizer>,
        config: EngineConfig,
    ) -> std::io::Result<Self> {
        Self::start_observed(model, tokenizer, config, Arc::new(Silent))
    }

    /// Starts the thread; `observer` hears what it does.
    ///
    /// # Errors
    /// What the system says if it cannot start one.
    pub fn start_observed<M: StepModel>(
        model: M,
        tokenizer: Arc<Tokenizer>,
        config: EngineConfig,
        observer: Arc<dyn Observer>,
    ) -> std::io::Result<Self> {
        // With no place at all, requests would wait for ever.
        let config = EngineConfig { max_sessions: config.max_sessions.max(1), ..config };
        let asked = config.max_context.map_or(model.max_context(), |max| max.min(model.max_context()));
        let memory = model.memory().limit;
        let max_context = fitting_context(&model, asked, memory);
        if max_context < asked {
            tracing::warn!(asked, max_context, memory, "the memory for decode states limits the context");
        }
        let shared = Arc::new(Shared::new(model.max_drafts()));
        let (vocab_size, cache_key, block_tokens) =
            (model.vocab_size(), model.cache_key(), model.block_tokens().max(1));
        let (commands, receiver) = crossbeam_channel::unbounded();
        let thread = {
            let (config, shared, observer) = (config.clone(), shared.clone(), observer.clone());
            std::thread::Builder::new()
                .name("belay-engine".into())
                .spawn(move || step_loop::run(&model, &config, &receiver, &shared, &*observer))?
        };
        Ok(Self {
            commands,
            vocab_size,
            cache_key,
            block_tokens,
            observer,
            thread_id: thread.thread().id(),
            thread: Mutex::new(Some(thread)),
            tokenizer,
            shared,
            config,
            memory,
            max_context,
            next_key: AtomicU64::new(0),
        })
    }

    /// The tokenizer, for the edges to encode text with.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Longest prompt + completion in tokens.
    #[must_use]
    pub fn max_context(&self) -> usize {
        self.max_context
    }

    /// Queues a request. Its events go to `sink`, on the engine's thread: a sink must not block, or it holds up every
    /// request; it returns false to cancel its own.
    ///
    /// The text of resumed tokens is not sent again. Text that was held back when they were produced (half a
    /// character, the beginning of a stop string) is sent as soon as it is certain.
    ///
    /// # Errors
    /// [`SubmitError`]; the sink then hears nothing.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<SessionKey, SubmitError> {
        validate::request(&request, self.vocab_size, self.max_context)?;
        let place = Place::in_queue(&self.shared, self.config.max_queued).map_err(|queued| {
            SubmitError::Overloaded { queued, retry_after: self.shared.pace.retry_after() }
        })?;
        // After taking the place: either this sees the flag, or who set it sees the place (see `Stats`).
        if self.shared.draining.load(Ordering::SeqCst) {
            return Err(SubmitError::Unavailable("draining".into()));
        }
        if let Some(reason) = self.shared.stopped.get() {
            return Err(SubmitError::Unavailable(format!("the engine has stopped: {reason}")));
        }
        // Now that there is a place: a constraint takes a while to compile.
        let mut output =
            Output::new(self.tokenizer.clone(), &request.stop, self.max_context - request.prompt.len());
        let mut chooser = Chooser::new(&request, &self.tokenizer, self.vocab_size)?;
        let ended = validate::replay(&request.resume, &mut output, &mut chooser)?;

        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let prompt_len = request.prompt.len();
        let mut tokens = request.prompt;
        tokens.extend_from_slice(&request.resume);
        let mut chain = Chain::new(self.cache_key, &request.cache_salt, self.block_tokens);
        if self.config.prefix_cache {
            chain.extend(&tokens);
        }
        // They come before any token: of a resumed request, they are out.
        let scores = request.prompt_logprobs.filter(|_| request.resume.is_empty());
        let scores = scores.map(|top| Scores { top, found: Vec::new() });
        let session = Session {
            key,
            id: request.id,
            priority: request.priority,
            deadline: request.deadline,
            guesses: 0,
            prompt_len,
            given_len: tokens.len(),
            prefill_len: tokens.len(),
            tokens,
            fed: 0,
            cached: None,
            chain,
            last_kept: None,
            chooser,
            scores,
            output,
            outlet: Outlet::new(sink, place),
            ended,
            record: Record::new(self.observer.clone()),
        };
        // If the loop has just stopped, the session is dropped here, and its sink hears so.
        let _ = self.commands.send(Command::Submit(Box::new(session)));
        Ok(SessionKey(key))
    }

    /// Ends a request if it has not ended yet: its sink hears `Failed`, "cancelled".
    pub fn cancel(&self, key: SessionKey) {
        // A loop that has stopped has ended the request already.
        let _ = self.commands.send(Command::Cancel(key.0));
    }

    /// Refuses new requests (true) or takes them again (false). Requests that were taken go on: when [`Stats`] then
    /// shows none running and none queued, none will come.
    pub fn drain(&self, draining: bool) {
        self.shared.draining.store(draining, Ordering::SeqCst);
    }

    /// Forgets every cached prefix, after the current step.
    pub fn clear_prefix_cache(&self) {
        // A loop that has stopped has none.
        let _ = self.commands.send(Command::ClearPrefixCache);
    }

    /// What the engine is doing.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.snapshot(self.memory)
    }

    /// Stops after the current step and waits for the thread; requests under way end with a retryable `Failed`.
    /// From a sink it does not wait: that would be for itself.
    pub fn shutdown(&self) {
        let _ = self.commands.send(Command::Shutdown);
        if std::thread::current().id() == self.thread_id {
            return;
        }
        // Held while it waits, so that all callers do.
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // The loop catches its panics and has said what there is to say.
            let _ = thread.join();
        }
    }
}

/// The longest context, up to `asked`, whose state fits into `memory` bytes, and can be fed token by token.
fn fitting_context<M: StepModel>(model: &M, asked: usize, memory: usize) -> usize {
    let (mut fits, mut too_long) = (0, asked + 1);
    while fits + 1 < too_long {
        let middle = fits + (too_long - fits) / 2;
        // Rows that wait for their block's end make a shorter sequence larger than a longer one: every length of the
        // last block must fit, and then all shorter ones do.
        let first = middle.saturating_sub(model.block_tokens());
        if (first..middle).all(|tokens| model.step_bytes(tokens, 1) <= memory) {
            fits = middle;
        } else {
            too_long = middle;
        }
    }
    fits
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

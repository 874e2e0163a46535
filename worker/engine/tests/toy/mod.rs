//! A model of pure maths: the next token is a hash of the sequence. Its memory is counted in pages as a real one's, and
//! it can be held, made to fail and made to panic. It checks that the engine keeps to the rules of [`StepModel`].
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use belay_engine::{
    Choice, Chooser, Draft, Engine, EngineConfig, Event, FailureKind, FinishReason, Memory, Output, Request,
    Sampler, Sampling, Segment, StateError, StepError, StepModel, Stop, SubmitError, TokenLogprobs,
    Tokenizer, Usage, Wants, token_logprobs,
};

pub const VOCAB: usize = 2048;
pub const CONTEXT: usize = 120;
/// Tokens of a block, and of a page.
pub const BLOCK: usize = 8;
pub const PAGE_BYTES: usize = 80;

/// What the next step does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    Error { retryable: bool },
    Panic,
    NaN,
    WrongSize,
}

/// Shared with the test.
#[derive(Default)]
pub struct Controls {
    /// While held, a step does not end.
    pub gate: Mutex<()>,
    /// For the next steps, one each.
    pub faults: Mutex<VecDeque<Option<Fault>>>,
    /// The next state cannot be made.
    pub out_of_memory: AtomicBool,
    /// Making the next state panics, which no step is there to catch.
    pub broken: AtomicBool,
    /// Guessing fails.
    pub cannot_draft: AtomicBool,
    /// States alive.
    pub states: AtomicUsize,
    /// Pages alive, of states and snapshots.
    pub pages: AtomicUsize,
    /// Rows of the largest step so far, and sequences in it.
    pub largest: Mutex<(usize, usize)>,
    /// Of each step: the first token of each sequence in it, and how many it was fed.
    pub steps: Mutex<Vec<Vec<(u32, usize)>>>,
}

/// The model.
pub struct Toy {
    pub controls: Arc<Controls>,
    /// Pages there are.
    pub pages: usize,
    pub max_drafts: usize,
    /// Of 8 guesses, so many are right on average.
    pub right: u64,
}

/// Counts itself.
struct Page(Arc<Controls>);

impl Drop for Page {
    fn drop(&mut self) {
        self.0.pages.fetch_sub(1, Ordering::SeqCst);
    }
}

pub struct State {
    tokens: Vec<u32>,
    /// What `rewind` can go back to.
    floor: usize,
    poisoned: bool,
    pages: Vec<Arc<Page>>,
    controls: Arc<Controls>,
}

impl State {
    fn trim(&mut self) {
        self.pages.truncate(self.tokens.len().div_ceil(BLOCK));
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.controls.states.fetch_sub(1, Ordering::SeqCst);
    }
}

pub struct Snapshot {
    tokens: Vec<u32>,
    pages: Vec<Arc<Page>>,
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 31)).wrapping_mul(0x7FB5_D329_728E_A185);
    let x = (x ^ (x >> 27)).wrapping_mul(0x81DA_DEF4_BC2D_D44D);
    x ^ (x >> 33)
}

fn absorb(hash: u64, token: u32) -> u64 {
    mix(hash.wrapping_mul(31).wrapping_add(u64::from(token) + 1))
}

fn hash_of(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0, |hash, &token| absorb(hash, token))
}

/// Logits behind a sequence: a few likely tokens among all.
pub fn logits_of(hash: u64) -> Vec<f32> {
    (0..VOCAB as u64).map(|id| (mix(hash ^ id) >> 40) as f32 / (1 << 20) as f32).collect()
}

impl StepModel for Toy {
    type State = State;
    type Snapshot = Snapshot;

    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn max_context(&self) -> usize {
        CONTEXT
    }

    fn block_tokens(&self) -> usize {
        BLOCK
    }

    fn max_drafts(&self) -> usize {
        self.max_drafts
    }

    fn cache_key(&self) -> u64 {
        7
    }

    fn memory(&self) -> Memory {
        let used = self.controls.pages.load(Ordering::SeqCst) * PAGE_BYTES;
        Memory { limit: self.pages * PAGE_BYTES, used }
    }

    fn state_bytes(&self, tokens: usize) -> usize {
        tokens.div_ceil(BLOCK) * PAGE_BYTES
    }

    fn step_bytes(&self, tokens: usize, step: usize) -> usize {
        self.state_bytes(tokens + step)
    }

    fn new_state(&self) -> Result<State, StateError> {
        assert!(!self.controls.broken.load(Ordering::SeqCst), "a bug of the engine's");
        if self.controls.out_of_memory.swap(false, Ordering::SeqCst) {
            return Err(StepError { message: "no memory for a state".into(), retryable: true }.into());
        }
        self.controls.states.fetch_add(1, Ordering::SeqCst);
        let controls = self.controls.clone();
        Ok(State { tokens: Vec::new(), floor: 0, poisoned: false, pages: Vec::new(), controls })
    }

    fn reserve(&self, state: &mut State, tokens: usize) -> Result<(), StateError> {
        let wanted = (state.tokens.len() + tokens).div_ceil(BLOCK);
        let needed = wanted.saturating_sub(state.pages.len());
        let free = self.pages - self.controls.pages.load(Ordering::SeqCst);
        if needed > free {
            return Err(StateError::NoRoom { needed: needed * PAGE_BYTES, free: free * PAGE_BYTES });
        }
        state.floor = state.tokens.len();
        self.controls.pages.fetch_add(needed, Ordering::SeqCst);
        state.pages.extend((0..needed).map(|_| Arc::new(Page(self.controls.clone()))));
        state.pages.truncate(wanted);
        Ok(())
    }

    fn snapshot(&self, state: &State) -> Result<Snapshot, StateError> {
        assert!(!state.poisoned);
        assert_eq!(state.tokens.len() % BLOCK, 0, "a snapshot that is not at a block's end");
        let pages = state.pages[..state.tokens.len() / BLOCK].to_vec();
        Ok(Snapshot { tokens: state.tokens.clone(), pages })
    }

    fn restore(&self, snapshot: &Snapshot) -> Result<State, StateError> {
        let mut state = self.new_state()?;
        state.tokens.clone_from(&snapshot.tokens);
        state.floor = state.tokens.len();
        state.pages.clone_from(&snapshot.pages);
        Ok(state)
    }

    fn rewind(&self, state: &mut State, position: usize) -> Result<(), StateError> {
        assert!(!state.poisoned);
        assert!((state.floor..=state.tokens.len()).contains(&position), "rewound too far");
        state.tokens.truncate(position);
        state.floor = position;
        state.trim();
        Ok(())
    }

    fn forward(&self, segments: &mut [Segment<'_, State>], logits: &mut Vec<f32>) -> Result<(), StepError> {
        drop(self.controls.gate.lock().unwrap());
        assert!(!segments.is_empty());
        let rows = segments.iter().map(|segment| segment.tokens.len()).sum();
        {
            let mut largest = self.controls.largest.lock().unwrap();
            *largest = (largest.0.max(rows), largest.1.max(segments.len()));
        }
        let fault = self.controls.faults.lock().unwrap().pop_front().flatten();
        let mut fed = Vec::new();
        for Segment { state, tokens, wants, rewindable } in segments.iter_mut() {
            assert!(!tokens.is_empty());
            assert!(!state.poisoned, "a state of a failed step came back");
            assert!(!*rewindable || tokens.len() <= self.max_drafts + 1);
            let position = state.tokens.len();
            assert!(position + tokens.len() <= CONTEXT, "fed beyond the context");
            assert!(state.pages.len() >= (position + tokens.len()).div_ceil(BLOCK), "no room was reserved");
            let written = &state.pages[position / BLOCK..];
            assert!(written.iter().all(|page| Arc::strong_count(page) == 1), "a shared page is written to");
            state.poisoned = fault.is_some_and(|fault| fault != Fault::NaN);
            let mut hash = hash_of(&state.tokens);
            for (index, &token) in tokens.iter().enumerate() {
                hash = absorb(hash, token);
                if *wants == Wants::All || *wants == Wants::Last && index + 1 == tokens.len() {
                    logits.extend(logits_of(hash));
                }
            }
            state.tokens.extend_from_slice(tokens);
            if !*rewindable {
                state.floor = state.tokens.len();
            }
            state.trim();
            fed.push((state.tokens[0], tokens.len()));
        }
        self.controls.steps.lock().unwrap().push(fed);
        match fault {
            Some(Fault::Error { retryable }) => {
                return Err(StepError { message: "worker 3 is not reachable".into(), retryable });
            }
            Some(Fault::Panic) => panic!("index out of bounds"),
            Some(Fault::NaN) => logits.fill(f32::NAN),
            Some(Fault::WrongSize) => logits.push(0.0),
            None => {}
        }
        Ok(())
    }

    fn draft(&self, segments: &mut [Draft<'_, State>], drafts: &mut Vec<u32>) -> Result<(), StepError> {
        if self.controls.cannot_draft.load(Ordering::SeqCst) {
            return Err(StepError { message: "the draft stage is away".into(), retryable: true });
        }
        for Draft { state, token, count } in segments.iter_mut() {
            assert!((1..=self.max_drafts).contains(count));
            let end = state.tokens.len() + 1 + *count;
            assert!(end <= CONTEXT, "guesses beyond the context");
            assert!(state.pages.len() >= end.div_ceil(BLOCK), "no room was reserved for guesses");
            state.floor = state.tokens.len();
            let mut hash = absorb(hash_of(&state.tokens), *token);
            for _ in 0..*count {
                let best = Sampler::default().sample(&logits_of(hash), &Sampling::greedy(), 0).unwrap();
                let guess = if mix(hash) % 8 < self.right { best } else { (best + 1) % VOCAB as u32 };
                drafts.push(guess);
                hash = absorb(hash, guess);
            }
        }
        Ok(())
    }
}

pub fn tokenizer() -> Arc<Tokenizer> {
    static ONCE: std::sync::OnceLock<Arc<Tokenizer>> = std::sync::OnceLock::new();
    ONCE.get_or_init(|| {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/nano/bf16");
        Arc::new(Tokenizer::load(&dir).unwrap())
    })
    .clone()
}

/// A model with room for ten sequences, and without a draft stage.
pub fn toy() -> Toy {
    Toy { controls: Arc::default(), pages: 10 * CONTEXT / BLOCK, max_drafts: 0, right: 0 }
}

pub fn engine(config: EngineConfig) -> (Engine, Arc<Controls>) {
    engine_of(toy(), config)
}

pub fn engine_of(toy: Toy, config: EngineConfig) -> (Engine, Arc<Controls>) {
    let controls = toy.controls.clone();
    (Engine::start(toy, tokenizer(), config).unwrap(), controls)
}

pub fn config() -> EngineConfig {
    EngineConfig {
        max_context: None,
        max_sessions: 4,
        max_queued: 100,
        step_tokens: 8,
        draft_tokens: 3,
        prefix_cache: true,
    }
}

pub fn request(prompt: &[u32], max_tokens: u32) -> Request {
    Request {
        id: "r".into(),
        prompt: prompt.to_vec(),
        sampling: Sampling::greedy(),
        stop: Stop { max_tokens: Some(max_tokens), ..Stop::default() },
        ..Request::default()
    }
}

/// Everything a sink heard.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub ids: Vec<u32>,
    pub text: String,
    /// Text of each event, by token.
    pub texts: Vec<String>,
    pub logprobs: Vec<TokenLogprobs>,
    pub prompt: Option<Vec<TokenLogprobs>>,
    pub end: Option<Event>,
    /// Tokens of the prompt found in the cache; not part of `end`, so that runs can be compared.
    pub cached: u32,
}

impl PartialEq for Heard {
    fn eq(&self, other: &Self) -> bool {
        (&self.ids, &self.texts, &self.logprobs) == (&other.ids, &other.texts, &other.logprobs)
            && (&self.prompt, &self.end) == (&other.prompt, &other.end)
    }
}

impl Heard {
    fn take(&mut self, event: Event) {
        assert_eq!(self.end, None, "an event after the last one");
        match event {
            Event::Prompt { logprobs } => {
                assert!(self.prompt.is_none() && self.ids.is_empty(), "the prompt comes first, and once");
                self.prompt = Some(logprobs);
            }
            Event::Tokens { ids, text, logprobs } => {
                self.ids.extend(ids);
                self.text.push_str(&text);
                self.texts.push(text);
                self.logprobs.extend(logprobs);
            }
            mut end => {
                if let Event::Finished { usage, .. } = &mut end {
                    self.cached = std::mem::take(&mut usage.cached_tokens);
                }
                self.end = Some(end);
            }
        }
    }

    pub fn reason(&self) -> Option<FinishReason> {
        match &self.end {
            Some(Event::Finished { reason, .. }) => Some(reason.clone()),
            _ => None,
        }
    }

    pub fn failure(&self) -> (&str, bool) {
        match &self.end {
            Some(Event::Failed { message, kind }) => (message, *kind == FailureKind::Lost),
            other => panic!("expected a failure, found {other:?}"),
        }
    }
}

/// Events of one submitted request.
pub struct Listener(pub Receiver<Event>);

impl Listener {
    /// Waits for the last event.
    pub fn hear(self) -> Heard {
        let mut heard = Heard::default();
        while heard.end.is_none() {
            heard.take(self.0.recv_timeout(Duration::from_secs(60)).expect("an event within a minute"));
        }
        // The sink goes with its request, and nothing follows.
        assert!(self.0.recv_timeout(Duration::from_secs(60)).is_err());
        heard
    }
}

pub fn submit(engine: &Engine, request: Request) -> Result<Listener, SubmitError> {
    let (sender, receiver) = channel();
    engine.submit(request, Box::new(move |event| sender.send(event).is_ok()))?;
    Ok(Listener(receiver))
}

pub fn run(engine: &Engine, request: Request) -> Heard {
    submit(engine, request).unwrap().hear()
}

/// What a request gets, by its definition: no engine, no batch, no chunks, no guesses.
pub fn reference(request: &Request) -> Heard {
    let mut output = Output::new(tokenizer(), &request.stop, CONTEXT - request.prompt.len());
    let mut chooser = Chooser::new(request, &tokenizer(), VOCAB).unwrap();
    let mut sampler = Sampler::default();
    let mut heard = Heard::default();
    if let Some(top) = request.prompt_logprobs {
        let scores = (1..request.prompt.len()).map(|next| {
            let logits = logits_of(hash_of(&request.prompt[..next]));
            token_logprobs(&logits, request.prompt[next], top).unwrap()
        });
        heard.take(Event::Prompt { logprobs: scores.collect() });
    }
    let mut hash = hash_of(&request.prompt);
    let mut reason = (request.stop.max_tokens == Some(0)).then_some(FinishReason::Length);
    while reason.is_none() {
        let index = heard.ids.len() as u32;
        let Choice { token, logprobs } = chooser.choose(&logits_of(hash), index, &mut sampler).unwrap();
        chooser.accept(token).unwrap();
        hash = absorb(hash, token);
        let mut text = String::new();
        reason = output.push(token, &mut text);
        if reason.is_none() && chooser.is_complete() {
            reason = Some(output.complete(&mut text));
        }
        heard.take(Event::Tokens { ids: vec![token], text, logprobs: logprobs.into_iter().collect() });
    }
    let usage = Usage {
        prompt_tokens: request.prompt.len() as u32,
        completion_tokens: heard.ids.len() as u32,
        cached_tokens: 0,
    };
    heard.take(Event::Finished { reason: reason.unwrap(), usage });
    heard
}

/// What is left of it for an engine that goes on behind the first `cut` tokens.
pub fn rest_of(whole: &Heard, cut: usize) -> Heard {
    let mut rest = whole.clone();
    rest.ids.drain(..cut);
    rest.texts.drain(..cut);
    rest.logprobs.drain(..cut.min(whole.logprobs.len()));
    if cut > 0 {
        rest.prompt = None;
    }
    rest
}

/// No request, no state, no memory counted for one: all that is held is the cache's.
pub fn is_empty(engine: &Engine, controls: &Controls) -> bool {
    let stats = engine.stats();
    let pages = controls.pages.load(Ordering::SeqCst);
    stats.running + stats.queued + controls.states.load(Ordering::SeqCst) + stats.kv_bytes == 0
        && stats.prefix_cache_bytes == pages * PAGE_BYTES
}

/// Waits until a condition of the engine's holds.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not within a minute: {what}");
}

//! A model of pure maths: the next token is a hash of the sequence. It can be held, made to fail and made to panic.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use belay_engine::{
    Engine, EngineConfig, Event, FailureKind, FinishReason, Output, Request, Sampler, Sampling, Segment,
    StepError, StepModel, Stop, SubmitError, Tokenizer, Usage,
};

pub const VOCAB: usize = 2048;
pub const CONTEXT: usize = 120;
pub const BYTES_PER_TOKEN: usize = 10;

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
    /// States alive.
    pub states: AtomicUsize,
    /// Rows of the largest step so far, and sequences in it.
    pub largest: Mutex<(usize, usize)>,
}

pub struct Toy(pub Arc<Controls>);

pub struct State {
    hash: u64,
    poisoned: bool,
    controls: Arc<Controls>,
}

impl Drop for State {
    fn drop(&mut self) {
        self.controls.states.fetch_sub(1, Ordering::SeqCst);
    }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 31)).wrapping_mul(0x7FB5_D329_728E_A185);
    let x = (x ^ (x >> 27)).wrapping_mul(0x81DA_DEF4_BC2D_D44D);
    x ^ (x >> 33)
}

fn absorb(hash: u64, token: u32) -> u64 {
    mix(hash.wrapping_mul(31).wrapping_add(u64::from(token) + 1))
}

/// Logits behind a sequence: a few likely tokens among all.
fn logits_of(hash: u64) -> Vec<f32> {
    (0..VOCAB as u64).map(|id| (mix(hash ^ id) >> 40) as f32 / (1 << 20) as f32).collect()
}

impl StepModel for Toy {
    type State = State;

    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn max_context(&self) -> usize {
        CONTEXT
    }

    fn new_state(&self) -> Result<State, StepError> {
        assert!(!self.0.broken.load(Ordering::SeqCst), "a bug of the engine's");
        if self.0.out_of_memory.swap(false, Ordering::SeqCst) {
            return Err(StepError { message: "no memory for a state".into(), retryable: true });
        }
        self.0.states.fetch_add(1, Ordering::SeqCst);
        Ok(State { hash: 0, poisoned: false, controls: self.0.clone() })
    }

    fn state_bytes(&self, tokens: usize) -> usize {
        tokens * BYTES_PER_TOKEN
    }

    fn forward(&self, segments: &mut [Segment<'_, State>], logits: &mut Vec<f32>) -> Result<(), StepError> {
        drop(self.0.gate.lock().unwrap());
        assert!(!segments.is_empty());
        let rows = segments.iter().map(|segment| segment.tokens.len()).sum();
        {
            let mut largest = self.0.largest.lock().unwrap();
            *largest = (largest.0.max(rows), largest.1.max(segments.len()));
        }
        let fault = self.0.faults.lock().unwrap().pop_front().flatten();
        for segment in segments.iter_mut() {
            assert!(!segment.tokens.is_empty());
            assert!(!segment.state.poisoned, "a state of a failed step came back");
            segment.state.poisoned = fault.is_some_and(|fault| fault != Fault::NaN);
            segment.state.hash = segment.tokens.iter().fold(segment.state.hash, |h, &t| absorb(h, t));
            if segment.wants_logits {
                logits.extend(logits_of(segment.state.hash));
            }
        }
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
}

pub fn tokenizer() -> Arc<Tokenizer> {
    static ONCE: std::sync::OnceLock<Arc<Tokenizer>> = std::sync::OnceLock::new();
    ONCE.get_or_init(|| {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/nano/bf16");
        Arc::new(Tokenizer::load(&dir).unwrap())
    })
    .clone()
}

pub fn engine(config: EngineConfig) -> (Engine, Arc<Controls>) {
    let controls = Arc::new(Controls::default());
    (Engine::start(Toy(controls.clone()), tokenizer(), config).unwrap(), controls)
}

pub fn config() -> EngineConfig {
    EngineConfig {
        max_context: None,
        max_sessions: 4,
        max_queued: 100,
        prefill_tokens: 8,
        kv_bytes: 10 * CONTEXT * BYTES_PER_TOKEN,
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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    pub ids: Vec<u32>,
    pub text: String,
    /// Text of each event, by token.
    pub texts: Vec<String>,
    pub end: Option<Event>,
}

impl Heard {
    fn take(&mut self, event: Event) {
        assert_eq!(self.end, None, "an event after the last one");
        match event {
            Event::Tokens { ids, text, .. } => {
                self.ids.extend(ids);
                self.text.push_str(&text);
                self.texts.push(text);
            }
            end => self.end = Some(end),
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

/// What a request gets, by its definition: no engine, no batch, no chunks.
pub fn reference(request: &Request) -> Heard {
    let mut output = Output::new(tokenizer(), &request.stop, CONTEXT - request.prompt.len());
    let mut sampler = Sampler::default();
    let mut hash = request.prompt.iter().fold(0, |hash, &token| absorb(hash, token));
    let mut heard = Heard::default();
    for index in 0.. {
        let token = sampler.sample(&logits_of(hash), &request.sampling, index).unwrap();
        hash = absorb(hash, token);
        let mut text = String::new();
        let ended = output.push(token, &mut text);
        heard.take(Event::Tokens { ids: vec![token], text, logprobs: Vec::new() });
        if let Some(reason) = ended {
            heard.take(Event::Finished {
                reason,
                usage: Usage {
                    prompt_tokens: request.prompt.len() as u32,
                    completion_tokens: heard.ids.len() as u32,
                    cached_tokens: 0,
                },
            });
            break;
        }
    }
    heard
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

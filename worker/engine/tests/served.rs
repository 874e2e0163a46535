//! The engine with the trained nano model: text in, the reference's tokens out, whatever the batch.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use belay_backend::{ExpertCompute, Fabric, FabricError, Route};
use belay_cpu::CpuBackend;
use belay_engine::{
    Draft, Engine, EngineConfig, Event, FailureKind, FinishReason, Memory, Request, Sampling, Segment,
    ServedModel, StateError, StepError, StepModel, Stop, Tokenizer,
};
use belay_model::{CacheOptions, Checkpoint, ExpertBank, LocalExperts, Model, Numerics};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Clone, Deserialize)]
struct Item {
    id: String,
    prompt: String,
    greedy_ids: Vec<u32>,
    greedy_text: String,
    finish: String,
}

fn nano() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/nano")
}

fn items() -> Vec<Item> {
    let text = std::fs::read_to_string(nano().join("eval.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A fabric that loses one exchange, once `left` others went well.
struct Lossy {
    experts: LocalExperts,
    left: Arc<AtomicI64>,
}

impl Fabric for Lossy {
    fn exchange(
        &self,
        layer: u32,
        x: &[f32],
        routes: &[Route],
        y: &mut [f32],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(), FabricError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            return Err(FabricError::PeerLost { worker: 1, cause: "connection reset".into() });
        }
        self.experts.exchange(layer, x, routes, y, meanwhile)
    }
}

fn engine(config: EngineConfig) -> (Engine, Arc<AtomicI64>) {
    let (model, left) = model();
    (Engine::start(model, tokenizer(), config).unwrap(), left)
}

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::load(&nano().join("bf16")).unwrap())
}

fn model() -> (ServedModel<CpuBackend>, Arc<AtomicI64>) {
    let dir = nano().join("bf16");
    let backend = Arc::new(CpuBackend::detect());
    let checkpoint = Arc::new(Checkpoint::open(&dir).unwrap());
    let cache = CacheOptions::default();
    let model = Model::load(backend.clone(), &checkpoint, Numerics::EXACT, cache, &mut |_, _| {}).unwrap();
    let bank = Arc::new(ExpertBank::new(backend, checkpoint.clone(), Numerics::EXACT));
    let card = checkpoint.card();
    let all = (0..card.layers).flat_map(|layer| (0..card.experts).map(move |expert| (layer, expert)));
    bank.load(all, &mut |_, _| {}).unwrap();
    let left = Arc::new(AtomicI64::new(-1));
    let experts = LocalExperts::new(bank as Arc<dyn ExpertCompute>);
    let fabric = Arc::new(Lossy { experts, left: left.clone() });
    (ServedModel::new(model, fabric), left)
}

/// Notes every row of logits that the engine sees, by its bits.
struct Noting(ServedModel<CpuBackend>, Arc<Mutex<HashSet<Vec<u32>>>>);

impl StepModel for Noting {
    type State = <ServedModel<CpuBackend> as StepModel>::State;
    type Snapshot = <ServedModel<CpuBackend> as StepModel>::Snapshot;

    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn max_context(&self) -> usize {
        self.0.max_context()
    }

    fn block_tokens(&self) -> usize {
        self.0.block_tokens()
    }

    fn max_drafts(&self) -> usize {
        self.0.max_drafts()
    }

    fn cache_key(&self) -> u64 {
        self.0.cache_key()
    }

    fn memory(&self) -> Memory {
        self.0.memory()
    }

    fn state_bytes(&self, tokens: usize) -> usize {
        self.0.state_bytes(tokens)
    }

    fn step_bytes(&self, tokens: usize, step: usize) -> usize {
        self.0.step_bytes(tokens, step)
    }

    fn new_state(&self) -> Result<Self::State, StateError> {
        self.0.new_state()
    }

    fn reserve(&self, state: &mut Self::State, tokens: usize) -> Result<(), StateError> {
        self.0.reserve(state, tokens)
    }

    fn snapshot(&self, state: &Self::State) -> Result<Self::Snapshot, StateError> {
        self.0.snapshot(state)
    }

    fn restore(&self, snapshot: &Self::Snapshot) -> Result<Self::State, StateError> {
        self.0.restore(snapshot)
    }

    fn rewind(&self, state: &mut Self::State, position: usize) -> Result<(), StateError> {
        self.0.rewind(state, position)
    }

    fn draft(&self, segments: &mut [Draft<'_, Self::State>], drafts: &mut Vec<u32>) -> Result<(), StepError> {
        self.0.draft(segments, drafts)
    }

    fn forward(
        &self,
        segments: &mut [Segment<'_, Self::State>],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError> {
        self.0.forward(segments, logits)?;
        let rows = logits.chunks_exact(self.vocab_size());
        self.1.lock().unwrap().extend(rows.map(|row| row.iter().map(|logit| logit.to_bits()).collect()));
        Ok(())
    }
}

fn noting_engine(config: EngineConfig) -> (Engine, Arc<Mutex<HashSet<Vec<u32>>>>) {
    let rows = Arc::new(Mutex::default());
    (Engine::start(Noting(model().0, Arc::clone(&rows)), tokenizer(), config).unwrap(), rows)
}

fn greedy(engine: &Engine, prompt: &str) -> Request {
    Request {
        id: String::new(),
        prompt: engine.tokenizer().encode(prompt).unwrap(),
        sampling: Sampling::greedy(),
        stop: Stop { max_tokens: Some(128), ..Stop::default() },
        ..Request::default()
    }
}

fn submit(engine: &Engine, request: Request) -> Receiver<Event> {
    let (sender, receiver) = channel();
    engine.submit(request, Box::new(move |event| sender.send(event).is_ok())).unwrap();
    receiver
}

/// Ids and text of one request, and its last event.
fn hear(events: &Receiver<Event>) -> (Vec<u32>, String, Event) {
    let (mut all, mut written) = (Vec::new(), String::new());
    loop {
        match events.recv_timeout(Duration::from_secs(120)).expect("an event within two minutes") {
            Event::Tokens { ids, text, .. } => {
                all.extend(ids);
                written.push_str(&text);
            }
            end => return (all, written, end),
        }
    }
}

fn reason(end: &Event) -> Option<FinishReason> {
    match end {
        Event::Finished { reason, .. } => Some(reason.clone()),
        _ => None,
    }
}

#[test]
fn every_evaluation_prompt_gets_the_reference_tokens_in_a_full_batch() {
    let (engine, _) = engine(EngineConfig { max_sessions: 24, step_tokens: 300, ..EngineConfig::default() });
    let items = items();
    assert_eq!(items.len(), 220);
    let answers: Vec<_> = items.iter().map(|item| submit(&engine, greedy(&engine, &item.prompt))).collect();
    let mut equal = 0;
    for (item, events) in items.iter().zip(&answers) {
        let (ids, text, end) = hear(events);
        let finish = reason(&end).unwrap_or_else(|| panic!("{}: {end:?}", item.id)).as_str();
        if (&ids, &text, finish) == (&item.greedy_ids, &item.greedy_text, item.finish.as_str()) {
            equal += 1;
        } else {
            eprintln!("{}: {ids:?}\ninstead of {:?}", item.id, item.greedy_ids);
        }
    }
    println!("{equal} of {} answers equal the reference's", items.len());
    assert_eq!(equal, items.len());
    // a request's last event goes out just before its place is given back
    let emptied = Instant::now() + Duration::from_secs(60);
    while engine.stats().running + engine.stats().kv_bytes > 0 && Instant::now() < emptied {
        std::thread::yield_now();
    }
    let stats = engine.stats();
    println!("{stats:?}");
    assert_eq!((stats.running, stats.queued, stats.failed_steps), (0, 0, 0));
    assert!(stats.steps * 2 < stats.generated_tokens, "requests share steps");
    assert_eq!(stats.kv_bytes, 0);
    assert!(stats.prefix_cache_bytes > 0 && stats.prefix_hit_tokens > 0);
    engine.clear_prefix_cache();
    while engine.stats().prefix_cache_bytes > 0 && Instant::now() < emptied {
        std::thread::yield_now();
    }
    assert_eq!(engine.stats().prefix_cache_bytes, 0, "all memory comes back");
}

#[test]
fn a_request_continues_after_a_lost_step_with_the_same_tokens() {
    let (engine, left) = engine(EngineConfig::default());
    for item in items().iter().step_by(40) {
        // Five exchanges a step: this loses a later step of the decode.
        left.store(5 * 6 + 2, Ordering::SeqCst);
        let request = greedy(&engine, &item.prompt);
        let (mut ids, mut text, end) = hear(&submit(&engine, request.clone()));
        let lost = Event::Failed {
            message: "layer 2: worker 1 is not reachable: connection reset".into(),
            kind: FailureKind::Lost,
        };
        assert_eq!(end, lost, "{}", item.id);
        assert!(ids.len() < item.greedy_ids.len());
        let rest = hear(&submit(&engine, Request { resume: ids.clone(), ..request }));
        ids.extend(rest.0);
        text.push_str(&rest.1);
        assert_eq!((&ids, &text), (&item.greedy_ids, &item.greedy_text), "{}", item.id);
        let Event::Finished { usage: belay_engine::Usage { completion_tokens, .. }, .. } = rest.2 else {
            panic!("{:?}", rest.2)
        };
        assert_eq!(completion_tokens as usize, ids.len());
    }
    assert_eq!(engine.stats().failed_steps, 6);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 8, ..ProptestConfig::default() })]

    #[test]
    fn tokens_and_the_bits_of_logits_do_not_depend_on_what_else_is_in_the_batch(
        picks in prop::collection::vec((0usize..220, any::<u64>(), 0.0f32..1.5, 1u32..40, 0usize..30), 2..10),
        max_sessions in 2usize..8,
        step_tokens in 1usize..200,
    ) {
        let (alone, rows_alone) = noting_engine(EngineConfig {
            max_sessions: 1, step_tokens: 4096, prefix_cache: false, ..EngineConfig::default()
        });
        let (busy, rows_busy) = noting_engine(EngineConfig { max_sessions, step_tokens, ..EngineConfig::default() });
        let items = items();
        let requests: Vec<(Request, usize)> = picks
            .into_iter()
            .map(|(item, seed, temperature, max_tokens, cut)| {
                let sampling = Sampling { temperature, top_p: 0.95, seed, ..Sampling::default() };
                let stop = Stop { max_tokens: Some(max_tokens), ignore_eos: true, ..Stop::default() };
                (Request { sampling, stop, ..greedy(&alone, &items[item].prompt) }, cut)
            })
            .collect();
        let expected: Vec<_> =
            requests.iter().map(|(request, _)| hear(&submit(&alone, request.clone()))).collect();
        let found: Vec<_> = requests
            .into_iter()
            .zip(&expected)
            .map(|((request, cut), expected)| {
                let cut = cut.min(expected.0.len() - 1);
                (cut, submit(&busy, Request { resume: expected.0[..cut].to_vec(), ..request }))
            })
            .collect();
        for ((cut, events), expected) in found.iter().zip(&expected) {
            let (ids, _, end) = hear(events);
            prop_assert_eq!(&ids, &expected.0[*cut..]);
            // How many tokens were found in the cache may differ.
            prop_assert!(reason(&end).is_some());
            prop_assert_eq!(reason(&end), reason(&expected.2));
        }
        let (rows_alone, rows_busy) = (rows_alone.lock().unwrap(), rows_busy.lock().unwrap());
        prop_assert!(!rows_busy.is_empty());
        prop_assert!(rows_busy.is_subset(&rows_alone), "the same tokens from other bits");
    }
}

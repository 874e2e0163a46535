//! What the tests of whole models share: fixtures, a loaded model, and a recording trace.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod edit;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use belay_backend::{Backend, ExpertCompute, Fabric, FabricError, Route};
use belay_cpu::{CpuBackend, Level};
use belay_model::{
    CacheOptions, Checkpoint, Drafting, ExpertBank, LocalExperts, Logits, Model, Numerics, Scratch, Segment,
    State, Trace,
};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

pub const CASES: [&str; 3] = ["public_sliding_hash", "public_hybrid", "public_fp"];

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

pub fn golden_dir(case: &str) -> PathBuf {
    fixtures().join("golden").join(case)
}

pub fn nano_dir(layout: &str) -> PathBuf {
    fixtures().join("models/nano").join(layout)
}

/// A model with all of its experts in one bank.
pub struct Loaded<B: Backend = CpuBackend> {
    pub model: Model<B>,
    pub bank: Arc<ExpertBank<B>>,
    pub checkpoint: Arc<Checkpoint>,
    pub fabric: Box<dyn Fabric>,
}

pub fn load(dir: &Path) -> Loaded {
    load_with(dir, CpuBackend::with(Level::detect(), 1).unwrap(), Numerics::EXACT)
}

pub fn load_with(dir: &Path, backend: CpuBackend, numerics: Numerics) -> Loaded {
    load_drafting(dir, backend, numerics, 0)
}

/// With the draft stage, if `draft_tokens` is not 0.
pub fn load_drafting(dir: &Path, backend: CpuBackend, numerics: Numerics, draft_tokens: usize) -> Loaded {
    load_cached(dir, backend, numerics, draft_tokens, CacheOptions::default())
}

pub fn load_cached<B: Backend>(
    dir: &Path,
    backend: B,
    numerics: Numerics,
    draft_tokens: usize,
    cache: CacheOptions,
) -> Loaded<B> {
    let backend = Arc::new(backend);
    let drafting = Drafting::tokens(draft_tokens).unwrap();
    let checkpoint = Arc::new(Checkpoint::open_with(dir, drafting).unwrap());
    let model = Model::load(Arc::clone(&backend), &checkpoint, numerics, cache, &mut |_, _| {}).unwrap();
    let bank = Arc::new(ExpertBank::new(backend, Arc::clone(&checkpoint), numerics));
    bank.load(all_experts(&checkpoint), &mut |_, _| {}).unwrap();
    let fabric = Box::new(LocalExperts::new(Arc::clone(&bank) as Arc<dyn ExpertCompute>));
    Loaded { model, bank, checkpoint, fabric }
}

pub fn all_experts(checkpoint: &Checkpoint) -> Vec<(u32, u32)> {
    let card = checkpoint.card();
    (0..card.layers).flat_map(|layer| (0..card.experts).map(move |expert| (layer, expert))).collect()
}

/// Several banks, each with every n-th expert: what ranks would hold.
pub struct Split(pub Vec<ExpertBank<CpuBackend>>);

impl Split {
    pub fn new(checkpoint: &Arc<Checkpoint>, ranks: usize) -> Self {
        let banks = (0..ranks).map(|rank| {
            let backend = Arc::new(CpuBackend::with(Level::detect(), 1).unwrap());
            let bank = ExpertBank::new(backend, Arc::clone(checkpoint), Numerics::EXACT);
            let share = all_experts(checkpoint).into_iter().filter(|&(_, e)| e as usize % ranks == rank);
            bank.load(share, &mut |_, _| {}).unwrap();
            bank
        });
        Self(banks.collect())
    }
}

impl Fabric for Split {
    fn exchange(
        &self,
        layer: u32,
        x: &[f32],
        routes: &[Route],
        y: &mut [f32],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(), FabricError> {
        let width = y.len() / routes.len();
        for (rank, bank) in self.0.iter().enumerate() {
            let mine: Vec<usize> =
                (0..routes.len()).filter(|&i| routes[i].expert as usize % self.0.len() == rank).collect();
            let sent: Vec<Route> = mine.iter().map(|&i| routes[i]).collect();
            let mut back = vec![0.0; sent.len() * width];
            bank.compute(layer, x, &sent, &mut back)?;
            for (&i, back) in mine.iter().zip(back.chunks_exact(width)) {
                y[i * width..][..width].copy_from_slice(back);
            }
        }
        meanwhile();
        Ok(())
    }
}

/// Keeps what a sequence's steps decided, row after row.
#[derive(Default)]
pub struct Recorder {
    pub experts: BTreeMap<usize, Vec<i32>>,
    pub weights: BTreeMap<usize, Vec<f32>>,
    pub blocks: BTreeMap<usize, Vec<i32>>,
    pub streams: BTreeMap<usize, Vec<f32>>,
}

impl Trace for Recorder {
    fn routes(&mut self, layer: usize, routes: &[Route]) {
        self.experts.entry(layer).or_default().extend(routes.iter().map(|route| route.expert as i32));
        self.weights.entry(layer).or_default().extend(routes.iter().map(|route| route.weight));
    }
    fn wants_blocks(&self) -> bool {
        true
    }
    fn blocks(&mut self, layer: usize, _k: usize, chosen: &[i32]) {
        self.blocks.entry(layer).or_default().extend_from_slice(chosen);
    }
    fn wants_streams(&self) -> bool {
        true
    }
    fn streams(&mut self, layer: usize, streams: &[f32]) {
        self.streams.entry(layer).or_default().extend_from_slice(streams);
    }
}

/// Logits of every token, fed in chunks of at most `chunk`.
pub fn logits<B: Backend>(
    loaded: &Loaded<B>,
    fabric: &dyn Fabric,
    ids: &[u32],
    chunk: usize,
    trace: &mut dyn Trace,
) -> Vec<f32> {
    let mut state = loaded.model.new_state();
    let mut scratch = Scratch::default();
    let mut all = Vec::new();
    let mut out = Vec::new();
    for tokens in ids.chunks(chunk) {
        let mut segments = [Segment { state: &mut state, tokens, logits: Logits::All, rewindable: false }];
        loaded.model.forward_traced(&mut scratch, &mut segments, fabric, &mut out, trace).unwrap();
        all.extend_from_slice(&out);
    }
    all
}

/// One step of one sequence; logits of its last token.
pub fn step<B: Backend>(
    loaded: &Loaded<B>,
    scratch: &mut Scratch<B>,
    state: &mut State,
    tokens: &[u32],
) -> Vec<f32> {
    let mut out = Vec::new();
    let mut segments = [Segment { state, tokens, logits: Logits::Last, rewindable: false }];
    loaded.model.forward(scratch, &mut segments, &*loaded.fabric, &mut out).unwrap();
    out
}

/// Greedy continuation by cached decode: prompt in one step, then token by token.
pub fn greedy<B: Backend>(loaded: &Loaded<B>, prompt: &[u32], most: usize, stop: Option<u32>) -> Vec<u32> {
    let mut state = loaded.model.new_state();
    let mut scratch = Scratch::default();
    let mut ids = vec![argmax(&step(loaded, &mut scratch, &mut state, prompt))];
    while ids.len() < most && Some(ids[ids.len() - 1]) != stop {
        let last = ids[ids.len() - 1];
        ids.push(argmax(&step(loaded, &mut scratch, &mut state, &[last])));
    }
    ids
}

pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most, (a, b)| {
        assert!(a.is_finite() && b.is_finite());
        (a - b).abs().max(most)
    })
}

pub fn assert_same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differing = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert_eq!(differing, 0, "{what}: of {} values", a.len());
}

#[derive(Deserialize)]
pub struct Golden {
    pub sequences: Vec<GoldenSequence>,
}

#[derive(Deserialize)]
pub struct GoldenSequence {
    pub name: String,
    pub prompt: Vec<u32>,
    pub greedy: Vec<u32>,
}

impl GoldenSequence {
    pub fn ids(&self) -> Vec<u32> {
        [self.prompt.as_slice(), &self.greedy].concat()
    }
}

pub fn golden(case: &str) -> (Golden, Tensors) {
    let dir = golden_dir(case);
    let text = std::fs::read_to_string(dir.join("golden.json")).unwrap();
    (serde_json::from_str(&text).unwrap(), Tensors(std::fs::read(dir.join("golden.safetensors")).unwrap()))
}

/// An evaluation prompt of the trained model, and the reference's reply.
#[derive(Deserialize)]
pub struct Prompt {
    pub id: String,
    pub prompt_ids: Vec<u32>,
    pub greedy_ids: Vec<u32>,
    pub min_margin: f32,
}

pub fn prompts() -> Vec<Prompt> {
    let text = std::fs::read_to_string(fixtures().join("models/nano/eval.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A safetensors file in memory.
pub struct Tensors(pub Vec<u8>);

impl Tensors {
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.elements(name, Dtype::F32, f32::from_le_bytes).unwrap()
    }
    pub fn i32(&self, name: &str) -> Option<Vec<i32>> {
        self.elements(name, Dtype::I32, i32::from_le_bytes)
    }
    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }
    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().shape().to_vec()
    }
    fn elements<T>(&self, name: &str, dtype: Dtype, decode: fn([u8; 4]) -> T) -> Option<Vec<T>> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).ok()?;
        assert_eq!(tensor.dtype(), dtype, "{name}");
        Some(tensor.data().chunks_exact(4).map(|bytes| decode(bytes.try_into().unwrap())).collect())
    }
}

/// Tokens before the first one for which a layer chose other experts or entries than the reference.
pub fn first_other_choice(trace: &Recorder, tensors: &Tensors, name: &str, tokens: usize) -> usize {
    let mut first = tokens;
    for (layer, found) in &trace.experts {
        let expected = tensors.i32(&format!("{name}.router_experts.{layer}")).unwrap();
        let k = found.len() / tokens;
        first = first.min(equal_rows(found, expected.chunks_exact(k), k));
    }
    for (layer, found) in &trace.blocks {
        let tensor = format!("{name}.index_blocks.{layer}");
        let expected = tensors.i32(&tensor).unwrap();
        let width = tensors.shape(&tensor)[1];
        first = first.min(equal_rows(found, expected.chunks_exact(width), found.len() / tokens));
    }
    first
}

/// Rows at the beginning that are equal; what is not chosen is −1.
fn equal_rows<'a>(found: &[i32], expected: impl Iterator<Item = &'a [i32]>, width: usize) -> usize {
    let chosen = |row: &[i32]| row.iter().copied().filter(|choice| *choice >= 0).collect::<Vec<_>>();
    found.chunks_exact(width).zip(expected).take_while(|(a, b)| chosen(a) == chosen(b)).count()
}

/// Root mean square of the difference as a part of that of the expected values.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let squares =
        |values: &mut dyn Iterator<Item = f32>| -> f64 { values.map(|value| f64::from(value).powi(2)).sum() };
    let error = squares(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
    (error / squares(&mut expected.iter().copied())).sqrt()
}

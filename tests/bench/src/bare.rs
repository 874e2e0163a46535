//! The bare forward: the model stepped in a plain loop, with the batches that serving the same requests would have.
//!
//! It is what serving costs at least. There is no queue, no channel, no thread but the kernels' own, no text, no sampler
//! beyond the largest logit, and nobody who reads.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use belay_backend::ExpertCompute;
use belay_cpu::CpuBackend;
use belay_engine::schedule::{self, Candidate};
use belay_engine::{Segment, ServedModel, StepModel, Wants};
use belay_fabric::{InProcess, Table};
use belay_model::{CacheOptions, Checkpoint, ExpertBank, Model, Numerics};

use crate::load::{END_OF_SEQUENCE, Request};

/// A whole model in this process, on one rank, as in a worker that stands alone.
pub struct Bare {
    model: ServedModel<CpuBackend>,
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BareRun {
    /// Time of the whole run.
    pub seconds: f64,
    /// Forward passes.
    pub steps: usize,
}

/// A request that takes part in steps.
struct Running<'a, S> {
    state: S,
    request: &'a Request,
    /// Prompt, and what was produced.
    tokens: Vec<u32>,
    fed: usize,
}

impl Bare {
    /// Loads a checkpoint for this machine's CPUs.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_for(CpuBackend::detect(), dir)
    }

    /// Loads a checkpoint.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load_for(backend: CpuBackend, dir: &Path) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(dir)?);
        let backend = Arc::new(backend);
        let card = checkpoint.card();
        let table = Table::stand_alone(card.layers as usize, card.experts as usize, 1)?;
        let (numerics, cache) = (Numerics::EXACT, CacheOptions::default());
        let model = Model::load(Arc::clone(&backend), &checkpoint, numerics, cache, &mut |_, _| {})?;
        let bank = ExpertBank::new(backend, Arc::clone(&checkpoint), numerics);
        bank.load(table.of_rank(0), &mut |_, _| {})?;
        let ranks: Vec<Arc<dyn ExpertCompute>> = vec![Arc::new(bank)];
        let fabric = InProcess::new(table, ranks, checkpoint.config().hidden_size);
        Ok(Self { model: ServedModel::new(model, Arc::new(fabric)) })
    }

    /// Answers every request, `clients` at a time, in steps of at most `step_tokens` rows.
    ///
    /// # Errors
    /// What the model says.
    pub fn run(&self, requests: &[Request], clients: usize, step_tokens: usize) -> Result<BareRun> {
        // on a thread of its own, as in the engine: the allocator serves those otherwise than the first one
        std::thread::scope(|scope| {
            let run = scope.spawn(|| self.run_here(requests, clients, step_tokens));
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn run_here(&self, requests: &[Request], clients: usize, step_tokens: usize) -> Result<BareRun> {
        let begin = Instant::now();
        let mut waiting = requests.iter();
        let mut running = Vec::new();
        let mut steps = 0;
        let mut logits = Vec::new();
        loop {
            while running.len() < clients
                && let Some(request) = waiting.next()
            {
                let state = self.model.new_state()?;
                running.push(Running { state, request, tokens: request.prompt_ids.clone(), fed: 0 });
            }
            if running.is_empty() {
                return Ok(BareRun { seconds: begin.elapsed().as_secs_f64(), steps });
            }
            self.step(&mut running, step_tokens, &mut logits)?;
            steps += 1;
        }
    }

    /// One forward over what the engine's own schedule says.
    fn step(
        &self,
        running: &mut Vec<Running<'_, <ServedModel<CpuBackend> as StepModel>::State>>,
        step_tokens: usize,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let candidates: Vec<Candidate> =
            running.iter().map(|one| candidate(one.tokens.len() - one.fed)).collect();
        let turns = schedule::plan(&candidates, step_tokens);
        let mut segments = Vec::with_capacity(running.len());
        for ((one, turn), candidate) in running.iter_mut().zip(&turns).zip(&candidates) {
            if turn.tokens > 0 {
                self.model.reserve(&mut one.state, turn.tokens)?;
                let tokens = &one.tokens[one.fed..one.fed + turn.tokens];
                let wants = if turn.tokens == candidate.pending { Wants::Last } else { Wants::Nothing };
                segments.push(Segment { state: &mut one.state, tokens, wants, rewindable: false });
            }
        }
        logits.clear();
        self.model.forward(&mut segments, logits)?;
        let mut rows = logits.chunks_exact(self.model.vocab_size());
        let mut turns = turns.iter();
        running.retain_mut(|one| {
            one.fed += turns.next().map_or(0, |turn| turn.tokens);
            if one.fed == one.tokens.len()
                && let Some(row) = rows.next()
            {
                one.tokens.push(largest(row));
            }
            one.tokens.len() < one.request.prompt_ids.len() + one.request.output_tokens as usize
        });
        Ok(())
    }
}

/// One of equals, without guesses and without snapshots.
fn candidate(pending: usize) -> Candidate {
    Candidate { priority: 0, pending, most: usize::MAX, drafts: 0 }
}

/// The likeliest token that is not the end: answers have a given length, here as in a server.
fn largest(row: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in row.iter().enumerate() {
        if *logit > row[best] && token as u32 != END_OF_SEQUENCE {
            best = token;
        }
    }
    best as u32
}

//! The thread that owns every session: takes commands, admits, steps.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, TryRecvError};

use crate::engine::EngineConfig;
use crate::request::FailureKind;
use crate::sampler::Sampler;
use crate::schedule;
use crate::session::Session;
use crate::stats::Shared;
use crate::step_model::{Segment, StateError, StepError, StepModel, Wants};

/// What the handle asks of the thread.
pub enum Command {
    Submit(Box<Session>),
    Cancel(u64),
    Shutdown,
}

/// Runs until the handle says so or is gone. A panic outside a step ends the engine, and every session with it.
pub fn run<M: StepModel>(
    model: &M,
    config: &EngineConfig,
    commands: &Receiver<Command>,
    shared: &Arc<Shared>,
) {
    let mut steps = StepLoop {
        model,
        config,
        shared,
        waiting: VecDeque::new(),
        running: Vec::new(),
        sampler: Sampler::default(),
        logits: Vec::new(),
    };
    let reason = match catch_unwind(AssertUnwindSafe(|| steps.run(commands))) {
        Ok(()) => "shut down".to_owned(),
        Err(panic) => {
            let message = format!("the step loop panicked: {}", panic_message(&*panic));
            tracing::error!("{message}");
            message
        }
    };
    // Said before the sessions hear of it, so that a request sent again does not come back here.
    shared.stopped.get_or_init(|| reason);
}

/// A session and what the model keeps of it.
struct Running<S> {
    session: Session,
    state: S,
}

struct StepLoop<'a, M: StepModel> {
    model: &'a M,
    config: &'a EngineConfig,
    shared: &'a Arc<Shared>,
    waiting: VecDeque<Session>,
    running: Vec<Running<M::State>>,
    sampler: Sampler,
    /// `[sessions that sample in this step, vocab]`.
    logits: Vec<f32>,
}

impl<M: StepModel> StepLoop<'_, M> {
    fn run(&mut self, commands: &Receiver<Command>) {
        while self.obey(commands) {
            self.admit();
            self.count_memory();
            self.step();
            self.count_memory();
        }
    }

    /// Takes all commands that are there; waits for one if there is nothing else to do. Returns whether to go on.
    fn obey(&mut self, commands: &Receiver<Command>) -> bool {
        loop {
            let is_idle = self.running.is_empty() && self.waiting.is_empty();
            let command = if is_idle {
                match commands.recv() {
                    Ok(command) => command,
                    Err(_) => return false,
                }
            } else {
                match commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            };
            match command {
                Command::Submit(session) => self.take(*session),
                Command::Cancel(key) => self.cancel(key),
                Command::Shutdown => return false,
            }
        }
    }

    fn take(&mut self, mut session: Session) {
        match session.ended.take() {
            Some(reason) => session.finish(reason),
            None => self.waiting.push_back(session),
        }
    }

    fn cancel(&mut self, key: u64) {
        let keep = |session: &mut Session| {
            if session.key == key {
                session.fail("cancelled".into(), FailureKind::Cancelled);
            }
            session.key != key
        };
        self.waiting.retain_mut(keep);
        self.running.retain_mut(|running| keep(&mut running.session));
        // If it was the last one, no step follows.
        self.count_memory();
    }

    /// Moves sessions from the queue to the running ones, first come first served, while there is room. A single
    /// session always has room: the context is cut to what the memory holds.
    fn admit(&mut self) {
        while self.running.len() < self.config.max_sessions {
            let Some(next) = self.waiting.front() else { return };
            let fits = self.kv_bytes() + next.kv_bytes <= self.model.memory().limit;
            if !fits && !self.running.is_empty() {
                return;
            }
            if let Some(mut session) = self.waiting.pop_front() {
                match self.model.new_state() {
                    Ok(state) => {
                        session.outlet.run();
                        self.running.push(Running { session, state });
                    }
                    Err(error) => session.fail(error.to_string(), error.kind()),
                }
            }
        }
    }

    fn kv_bytes(&self) -> usize {
        self.running.iter().map(|running| running.session.kv_bytes).sum()
    }

    fn count_memory(&self) {
        self.shared.kv_bytes.store(self.kv_bytes(), Ordering::Relaxed);
    }

    fn step(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let pending: Vec<usize> = self.running.iter().map(|running| running.session.pending()).collect();
        let plan = schedule::plan(&pending, self.config.prefill_tokens);
        match self.forward(&plan) {
            Ok(()) => self.sample(&plan),
            Err(error) => self.lose(&plan, &error),
        }
    }

    /// One forward; a panic inside it is an error of the step.
    fn forward(&mut self, plan: &[usize]) -> Result<(), StepError> {
        let mut segments = Vec::with_capacity(plan.len());
        for (Running { session, state }, &count) in self.running.iter_mut().zip(plan) {
            if count == 0 {
                continue;
            }
            let wants = if count == session.pending() { Wants::Last } else { Wants::Nothing };
            let tokens = &session.tokens[session.fed..session.fed + count];
            self.model.reserve(state, count).map_err(|error| match error {
                StateError::NoRoom { .. } => StepError { message: error.to_string(), retryable: true },
                StateError::Failed(error) => error,
            })?;
            segments.push(Segment { state, tokens, wants, rewindable: false });
        }
        let expected =
            segments.iter().map(|s| s.wants.rows(s.tokens.len())).sum::<usize>() * self.model.vocab_size();
        self.logits.clear();
        let logits = &mut self.logits;
        let model = self.model;
        catch_unwind(AssertUnwindSafe(|| model.forward(&mut segments, logits))).unwrap_or_else(|panic| {
            let message = format!("the step panicked: {}", panic_message(&*panic));
            Err(StepError { message, retryable: true })
        })?;
        if self.logits.len() != expected {
            let message = format!("the step gave {} logits, expected {expected}", self.logits.len());
            return Err(StepError { message, retryable: true });
        }
        Ok(())
    }

    /// Gives each session that has fed all its tokens its next one; drops those that end.
    fn sample(&mut self, plan: &[usize]) {
        self.count(plan);
        let Self { running, sampler, logits, model, .. } = self;
        let mut rows = logits.chunks_exact(model.vocab_size());
        let mut counts = plan.iter();
        running.retain_mut(|Running { session, .. }| {
            let count = counts.next().copied().unwrap_or(0);
            session.fed += count;
            if count == 0 || session.pending() > 0 {
                return true;
            }
            rows.next().is_none_or(|row| session.advance(row, sampler))
        });
    }

    /// Before the events go out: whoever has seen a request end finds it counted.
    fn count(&self, plan: &[usize]) {
        let (mut prefilled, mut generated) = (0, 0);
        for (Running { session, .. }, &count) in self.running.iter().zip(plan) {
            prefilled += if session.fed < session.given_len { count as u64 } else { 0 };
            generated += u64::from(count == session.pending());
        }
        self.shared.prefilled_tokens.fetch_add(prefilled, Ordering::Relaxed);
        self.shared.generated_tokens.fetch_add(generated, Ordering::Relaxed);
        self.shared.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// The states that took part are undefined: their sessions end, the others stay.
    fn lose(&mut self, plan: &[usize], error: &StepError) {
        tracing::warn!(%error, "a step is lost");
        self.shared.failed_steps.fetch_add(1, Ordering::Relaxed);
        let mut counts = plan.iter();
        self.running.retain_mut(|Running { session, .. }| {
            let took_part = counts.next().is_some_and(|count| *count > 0);
            if took_part {
                tracing::debug!(id = session.id, "request lost with its step");
                session.fail(error.message.clone(), error.kind());
            }
            !took_part
        });
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

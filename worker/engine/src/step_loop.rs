//! The thread that owns every session: takes commands, admits, steps.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::{Receiver, TryRecvError};

use crate::engine::EngineConfig;
use crate::observer::Observer;
use crate::prefix_cache::PrefixCache;
use crate::request::FailureKind;
use crate::sampler::Sampler;
use crate::schedule::Turn;
use crate::session::Session;
use crate::stats::Shared;
use crate::step_model::StepModel;

/// What the handle asks of the thread.
pub enum Command {
    Submit(Box<Session>),
    Cancel(u64),
    ClearPrefixCache,
    Shutdown,
}

/// Runs until the handle says so or is gone. A panic outside a step ends the engine, and every session with it.
pub fn run<M: StepModel>(
    model: &M,
    config: &EngineConfig,
    commands: &Receiver<Command>,
    shared: &Arc<Shared>,
    observer: &dyn Observer,
) {
    let mut steps = StepLoop {
        model,
        config,
        shared,
        observer,
        waiting: BTreeMap::new(),
        running: Vec::new(),
        cache: PrefixCache::default(),
        sampler: Sampler::default(),
        logits: Vec::new(),
        drafts: Vec::new(),
        last_end: None,
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
pub struct Running<S> {
    pub session: Session,
    pub state: S,
    /// Its part of the step that is being made.
    pub turn: Turn,
}

/// Everything that the thread owns.
pub struct StepLoop<'a, M: StepModel> {
    pub model: &'a M,
    pub config: &'a EngineConfig,
    pub shared: &'a Arc<Shared>,
    pub observer: &'a dyn Observer,
    /// By rank, so that the first one is served next.
    pub waiting: BTreeMap<(i32, u64), Session>,
    /// By rank, so that the last one is preempted first.
    pub running: Vec<Running<M::State>>,
    pub cache: PrefixCache<M::Snapshot>,
    pub sampler: Sampler,
    /// `[rows wanted in this step, vocab]`.
    pub logits: Vec<f32>,
    /// Guesses of this step.
    pub drafts: Vec<u32>,
    /// When a request ended, if others have waited since.
    pub last_end: Option<Instant>,
}

impl<M: StepModel> StepLoop<'_, M> {
    fn run(&mut self, commands: &Receiver<Command>) {
        while self.obey(commands) {
            let began = Instant::now();
            self.expire(began);
            self.admit();
            self.count_memory();
            self.step(began);
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
                Command::Cancel(key) => {
                    self.end_where("cancelled", FailureKind::Cancelled, |session| session.key == key);
                }
                Command::ClearPrefixCache => {
                    self.cache.clear();
                    self.count_memory();
                }
                Command::Shutdown => return false,
            }
        }
    }

    fn take(&mut self, mut session: Session) {
        match session.ended.take() {
            Some(reason) => session.finish(reason),
            None => {
                self.waiting.insert(session.rank(), session);
            }
        }
    }

    /// Ends those whose time is over.
    fn expire(&mut self, now: Instant) {
        self.end_where("the deadline has passed", FailureKind::DeadlineExceeded, |session| {
            session.deadline.is_some_and(|deadline| deadline <= now)
        });
    }

    /// Ends some sessions between two steps, waiting and running ones.
    fn end_where(&mut self, message: &str, kind: FailureKind, is_meant: impl Fn(&Session) -> bool) {
        let keep = |session: &mut Session| {
            let ends = is_meant(session);
            if ends {
                session.fail(message.into(), kind);
            }
            !ends
        };
        let before = self.running.len();
        self.waiting.retain(|_, session| keep(session));
        self.running.retain_mut(|running| keep(&mut running.session));
        if self.running.len() < before {
            // If it was the last one, no step follows.
            self.count_memory();
        }
    }

    fn count_memory(&self) {
        let used = self.model.memory().used;
        let held =
            self.running.iter().map(|running| self.model.state_bytes(running.session.fed)).sum::<usize>();
        let held = if self.running.is_empty() { 0 } else { held.min(used) };
        self.shared.kv_bytes.store(held, Ordering::Relaxed);
        self.shared.prefix_cache_bytes.store(used - held, Ordering::Relaxed);
    }
}

pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

//! What the engine is doing, for metrics and for draining.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::pace::Pace;

/// A snapshot of the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that take part in steps.
    pub running: usize,
    /// Requests that wait for a place.
    pub queued: usize,
    /// Tokens of prompts fed so far; a resumed request's earlier tokens count again.
    pub prefilled_tokens: u64,
    /// Tokens produced so far.
    pub generated_tokens: u64,
    /// Steps that went well.
    pub steps: u64,
    /// Steps that were lost with their requests.
    pub failed_steps: u64,
    /// Times that a running request lost its state to another and went back to the queue.
    pub preemptions: u64,
    /// Bytes of decode state that running requests hold; what they share with the prefix cache counts here.
    pub kv_bytes: usize,
    /// Bytes of decode state that only the prefix cache holds.
    pub prefix_cache_bytes: usize,
    /// Upper bound of both together.
    pub kv_bytes_limit: usize,
    /// Tokens of requests that were looked up in the prefix cache.
    pub prefix_query_tokens: u64,
    /// Tokens of them that were found.
    pub prefix_hit_tokens: u64,
    /// Guesses that were checked, by their place behind the token that was certain.
    pub drafted: Vec<u64>,
    /// Guesses that were right, by place.
    pub accepted: Vec<u64>,
    /// Whether new requests are refused.
    pub draining: bool,
    /// Why the engine has stopped, if it has.
    pub stopped: Option<String>,
}

/// Counters shared by the handle, the step loop and every request.
pub struct Shared {
    running: AtomicUsize,
    queued: AtomicUsize,
    pub prefilled_tokens: AtomicU64,
    pub generated_tokens: AtomicU64,
    pub steps: AtomicU64,
    pub failed_steps: AtomicU64,
    pub preemptions: AtomicU64,
    pub kv_bytes: AtomicUsize,
    pub prefix_cache_bytes: AtomicUsize,
    pub prefix_query_tokens: AtomicU64,
    pub prefix_hit_tokens: AtomicU64,
    pub drafted: Box<[AtomicU64]>,
    pub accepted: Box<[AtomicU64]>,
    pub pace: Pace,
    pub draining: AtomicBool,
    pub stopped: OnceLock<String>,
}

impl Shared {
    /// Everything at zero, for up to `max_drafts` guesses.
    pub fn new(max_drafts: usize) -> Self {
        let counters = || (0..max_drafts).map(|_| AtomicU64::new(0)).collect();
        Self {
            running: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            prefilled_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            failed_steps: AtomicU64::new(0),
            preemptions: AtomicU64::new(0),
            kv_bytes: AtomicUsize::new(0),
            prefix_cache_bytes: AtomicUsize::new(0),
            prefix_query_tokens: AtomicU64::new(0),
            prefix_hit_tokens: AtomicU64::new(0),
            drafted: counters(),
            accepted: counters(),
            pace: Pace::default(),
            draining: AtomicBool::new(false),
            stopped: OnceLock::new(),
        }
    }

    pub fn snapshot(&self, kv_bytes_limit: usize) -> Stats {
        // One total order with `Place`: whoever drains and then reads zero can be sure that nothing comes after.
        let (running, queued) = (self.running.load(Ordering::SeqCst), self.queued.load(Ordering::SeqCst));
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            running,
            queued,
            prefilled_tokens: read(&self.prefilled_tokens),
            generated_tokens: read(&self.generated_tokens),
            steps: read(&self.steps),
            failed_steps: read(&self.failed_steps),
            preemptions: read(&self.preemptions),
            kv_bytes: self.kv_bytes.load(Ordering::Relaxed),
            prefix_cache_bytes: self.prefix_cache_bytes.load(Ordering::Relaxed),
            kv_bytes_limit,
            prefix_query_tokens: read(&self.prefix_query_tokens),
            prefix_hit_tokens: read(&self.prefix_hit_tokens),
            drafted: self.drafted.iter().map(read).collect(),
            accepted: self.accepted.iter().map(read).collect(),
            draining: self.draining.load(Ordering::SeqCst),
            stopped: self.stopped.get().cloned(),
        }
    }
}

/// A request's place, first in the queue, then among the running; given back by `Drop`.
pub struct Place {
    shared: Arc<Shared>,
    is_running: bool,
}

impl Place {
    /// A place in the queue, if fewer than `max_queued` wait.
    ///
    /// # Errors
    /// How many wait.
    pub fn in_queue(shared: &Arc<Shared>, max_queued: usize) -> Result<Self, usize> {
        shared.queued.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |queued| {
            (queued < max_queued).then_some(queued + 1)
        })?;
        Ok(Self { shared: shared.clone(), is_running: false })
    }

    /// Moves from the queue to the running.
    pub fn run(&mut self) {
        if !self.is_running {
            // In this order, the sum never dips.
            self.shared.running.fetch_add(1, Ordering::SeqCst);
            self.shared.queued.fetch_sub(1, Ordering::SeqCst);
            self.is_running = true;
        }
    }

    /// Moves back from the running to the queue, which may then hold more than it takes.
    pub fn wait(&mut self) {
        if self.is_running {
            self.shared.queued.fetch_add(1, Ordering::SeqCst);
            self.shared.running.fetch_sub(1, Ordering::SeqCst);
            self.is_running = false;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let counter = if self.is_running { &self.shared.running } else { &self.shared.queued };
        counter.fetch_sub(1, Ordering::SeqCst);
    }
}

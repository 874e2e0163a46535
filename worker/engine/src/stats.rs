//! What the engine is doing, for metrics and for draining.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

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
    /// Bytes of decode state that the running requests may come to need.
    pub kv_bytes: usize,
    /// Upper bound of [`Stats::kv_bytes`].
    pub kv_bytes_limit: usize,
    /// Whether new requests are refused.
    pub draining: bool,
    /// Why the engine has stopped, if it has.
    pub stopped: Option<String>,
}

/// Counters shared by the handle, the step loop and every request.
#[derive(Default)]
pub struct Shared {
    running: AtomicUsize,
    queued: AtomicUsize,
    pub prefilled_tokens: AtomicU64,
    pub generated_tokens: AtomicU64,
    pub steps: AtomicU64,
    pub failed_steps: AtomicU64,
    pub kv_bytes: AtomicUsize,
    pub draining: AtomicBool,
    pub stopped: OnceLock<String>,
}

impl Shared {
    pub fn snapshot(&self, kv_bytes_limit: usize) -> Stats {
        // One total order with `Place`: whoever drains and then reads zero can be sure that nothing comes after.
        let (running, queued) = (self.running.load(Ordering::SeqCst), self.queued.load(Ordering::SeqCst));
        Stats {
            running,
            queued,
            prefilled_tokens: self.prefilled_tokens.load(Ordering::Relaxed),
            generated_tokens: self.generated_tokens.load(Ordering::Relaxed),
            steps: self.steps.load(Ordering::Relaxed),
            failed_steps: self.failed_steps.load(Ordering::Relaxed),
            kv_bytes: self.kv_bytes.load(Ordering::Relaxed),
            kv_bytes_limit,
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
}

impl Drop for Place {
    fn drop(&mut self) {
        let counter = if self.is_running { &self.shared.running } else { &self.shared.queued };
        counter.fetch_sub(1, Ordering::SeqCst);
    }
}

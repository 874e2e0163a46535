//! Where a worker is in its life, and what follows from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use belay_proto::admin::{ModelCard, Phase, RankStatus};
use tokio::sync::watch;

/// What the rest of the process, the operator and people see of a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Step of the life cycle.
    pub phase: Phase,
    /// Why it is in this phase, for people.
    pub message: String,
    /// CamelCase cause when the phase is failed.
    pub reason: &'static str,
    /// Known once the checkpoint's headers were read.
    pub card: Option<ModelCard>,
    /// Epoch in use; 0 for none.
    pub epoch: u64,
    /// Epoch of the newest placement whose copies are all here and whose members were met; 0 for none.
    pub prepared: u64,
    /// Epoch of the newest placement that nothing but its copies is held for; 0 for none.
    pub retired: u64,
    /// Why the target can't be prepared; empty if it can.
    pub prepare_error: String,
    /// Whether new requests are refused.
    pub draining: bool,
    /// What each rank of this worker holds.
    pub ranks: Vec<RankStatus>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            phase: Phase::Starting,
            message: "starting".into(),
            reason: "",
            card: None,
            epoch: 0,
            prepared: 0,
            retired: 0,
            prepare_error: String::new(),
            draining: false,
            ranks: Vec::new(),
        }
    }
}

/// Why a request is not taken now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The worker is on its way out.
    Draining,
    /// It can't serve yet, or not at the moment.
    NotReady(String),
}

impl State {
    /// `None` if requests are taken.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        if self.draining {
            return Some(Refusal::Draining);
        }
        match self.phase {
            Phase::Ready => None,
            Phase::Failed => Some(Refusal::NotReady(format!("failed: {}: {}", self.reason, self.message))),
            phase => Some(Refusal::NotReady(format!("{}: {}", phase_name(phase), self.message))),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Draining => f.write_str("draining"),
            Self::NotReady(why) => f.write_str(why),
        }
    }
}

/// Name of a phase in logs, metrics and messages.
#[must_use]
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "unspecified",
        Phase::Starting => "starting",
        Phase::WaitingForPlacement => "waiting for placement",
        Phase::Loading => "loading",
        Phase::Connecting => "connecting",
        Phase::Ready => "ready",
        Phase::Failed => "failed",
    }
}

/// The state of the worker, shared; and the count of its requests.
#[derive(Debug)]
pub struct Shared {
    state: watch::Sender<State>,
    in_flight: watch::Sender<usize>,
    load: Progress,
    prepare: Progress,
}

/// Bytes done and to do.
#[derive(Debug, Default)]
struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    fn set(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            state: watch::Sender::new(State::default()),
            in_flight: watch::Sender::new(0),
            load: Progress::default(),
            prepare: Progress::default(),
        }
    }
}

impl Shared {
    /// The state now.
    #[must_use]
    pub fn get(&self) -> State {
        self.state.borrow().clone()
    }

    /// Follows the state.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Changes the state; watchers hear of it if it differs.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            let changed = *state != before;
            if changed && (state.phase != before.phase || state.reason != before.reason) {
                tracing::info!(
                    phase = phase_name(state.phase),
                    reason = state.reason,
                    epoch = state.epoch,
                    message = state.message,
                    "phase"
                );
            }
            changed
        });
    }

    /// Moves to a phase.
    pub fn enter(&self, phase: Phase, message: impl Into<String>) {
        let message = message.into();
        self.change(|state| {
            state.phase = phase;
            state.message = message;
            state.reason = "";
        });
    }

    /// Moves to the failed phase.
    pub fn fail(&self, reason: &'static str, message: impl Into<String>) {
        let message = message.into();
        self.change(|state| {
            state.phase = Phase::Failed;
            state.message = message;
            state.reason = reason;
        });
    }

    /// Sets how far loading is; cheap enough for every tensor.
    pub fn load_progress(&self, done: u64, total: u64) {
        self.load.set(done, total);
    }

    /// `(done, total)` bytes of the load.
    #[must_use]
    pub fn loaded(&self) -> (u64, u64) {
        self.load.get()
    }

    /// Sets how far the target is prepared.
    pub fn prepare_progress(&self, done: u64, total: u64) {
        self.prepare.set(done, total);
    }

    /// `(done, total)` bytes of preparing the target.
    #[must_use]
    pub fn prepared(&self) -> (u64, u64) {
        self.prepare.get()
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }

    /// Follows the number of requests in flight.
    #[must_use]
    pub fn watch_in_flight(&self) -> watch::Receiver<usize> {
        self.in_flight.subscribe()
    }

    /// Takes a request in, or says why not. It counts until the ticket is dropped.
    ///
    /// # Errors
    /// [`Refusal`] when draining or not ready.
    pub fn admit(self: &Arc<Self>) -> Result<Ticket, Refusal> {
        // count first: whoever drains and then sees zero knows that nobody comes in between
        self.in_flight.send_modify(|count| *count += 1);
        let ticket = Ticket { shared: Arc::clone(self) };
        match self.state.borrow().refusal() {
            Some(refusal) => Err(refusal),
            None => Ok(ticket),
        }
    }
}

/// One request in flight.
#[derive(Debug)]
pub struct Ticket {
    shared: Arc<Shared>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.in_flight.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ready_worker_that_does_not_drain_admits() {
        let shared = Arc::new(Shared::default());
        for phase in [Phase::Starting, Phase::WaitingForPlacement, Phase::Loading, Phase::Connecting] {
            shared.enter(phase, "why");
            let refusal = shared.admit().unwrap_err();
            assert!(refusal.to_string().contains("why") && refusal.to_string().contains(phase_name(phase)));
        }
        shared.fail("CheckpointInvalid", "tensor x");
        assert!(shared.admit().unwrap_err().to_string().contains("CheckpointInvalid: tensor x"));
        shared.enter(Phase::Ready, "");
        assert_eq!(shared.get().reason, "");
        let ticket = shared.admit().unwrap();
        shared.change(|state| state.draining = true);
        assert_eq!(shared.admit().unwrap_err(), Refusal::Draining);
        assert_eq!(shared.in_flight(), 1, "a refused request does not count");
        drop(ticket);
        assert_eq!(shared.in_flight(), 0);
    }
}

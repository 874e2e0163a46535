//! The asking side's view of one peer: its health, and the link to it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::WorkerEntry;
use crate::health::{Condition, Health};
use crate::link::Link;
use crate::shared::Shared;
use crate::sync::{Signal, lock};

/// (layer, expert) pairs.
pub(crate) type Pairs = HashSet<(u32, u32)>;

/// State of the connection to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// Worker index.
    pub worker: u32,
    /// UID of its pod.
    pub uid: String,
    /// How it is.
    pub health: Health,
    /// For people: why.
    pub message: String,
}

/// Where the link is.
#[derive(Debug)]
enum Place {
    /// There is none: it has to be dialled.
    Absent,
    /// An exchange may take it.
    Here(Link),
    /// An exchange has it.
    Away,
    /// Answers that nobody waits for are on their way.
    Draining(Link, Instant),
}

#[derive(Debug)]
struct Inner {
    condition: Condition,
    message: String,
    link: Place,
    stopped: bool,
}

/// A life of another worker.
#[derive(Debug)]
pub(crate) struct Peer {
    pub worker: u32,
    pub address: String,
    pub uid: String,
    started: Instant,
    health: AtomicU8,
    /// Microseconds after `started` at which it was last heard.
    heard: AtomicU64,
    inner: Mutex<Inner>,
    adopted: ArcSwap<Pairs>,
    /// Wakes the owner thread.
    pub wake: Signal,
}

impl Peer {
    pub(crate) fn new(entry: &WorkerEntry) -> Arc<Self> {
        let started = Instant::now();
        Arc::new(Self {
            worker: entry.index,
            address: entry.address.clone(),
            uid: entry.uid.clone(),
            started,
            health: AtomicU8::new(Health::Suspect as u8),
            heard: AtomicU64::new(0),
            inner: Mutex::new(Inner {
                condition: Condition::new(started),
                message: "not connected yet".into(),
                link: Place::Absent,
                stopped: false,
            }),
            adopted: ArcSwap::default(),
            wake: Signal::default(),
        })
    }

    /// Whether this is the life of the worker that `entry` names, where it names it.
    pub(crate) fn is(&self, entry: &WorkerEntry) -> bool {
        (self.worker, &self.address, &self.uid) == (entry.index, &entry.address, &entry.uid)
    }

    pub(crate) fn health(&self) -> Health {
        Health::from_code(self.health.load(Ordering::Acquire))
    }

    pub(crate) fn was_live(&self) -> bool {
        lock(&self.inner).condition.was_live
    }

    /// How it is, and whether it is suspect for nothing but its silence, both of one moment.
    pub(crate) fn standing(&self) -> (Health, bool) {
        let inner = lock(&self.inner);
        // an exchange may lose its link just before the peer is found to answer: it is live then, and has none
        let linked = !matches!(inner.link, Place::Absent);
        (inner.condition.health, inner.condition.is_only_silent() && linked)
    }

    pub(crate) fn state(&self) -> PeerState {
        let inner = lock(&self.inner);
        let (worker, uid) = (self.worker, self.uid.clone());
        PeerState { worker, uid, health: inner.condition.health, message: inner.message.clone() }
    }

    pub(crate) fn message(&self) -> String {
        lock(&self.inner).message.clone()
    }

    /// What it has adopted, as it said.
    pub(crate) fn adopted(&self) -> Arc<Pairs> {
        self.adopted.load_full()
    }

    pub(crate) fn set_adopted(&self, pairs: Vec<(u32, u32)>, shared: &Shared) {
        self.adopted.store(Arc::new(pairs.into_iter().collect()));
        shared.refresh();
    }

    /// It was heard now.
    pub(crate) fn hear(&self) {
        self.heard.store(self.started.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn silence(&self) -> Duration {
        let heard = Duration::from_micros(self.heard.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(heard)
    }

    /// Takes the link for an exchange; `None` while there is none to take.
    pub(crate) fn take(&self) -> Option<Link> {
        let mut inner = lock(&self.inner);
        match std::mem::replace(&mut inner.link, Place::Away) {
            Place::Here(link) => Some(link),
            other => {
                inner.link = other;
                None
            }
        }
    }

    /// Brings a link back; answers that it still awaits are read by the owner thread and dropped.
    pub(crate) fn bring_back(&self, link: Link, shared: &Shared) {
        let mut inner = lock(&self.inner);
        if inner.stopped {
            return;
        }
        if link.is_awaiting() {
            inner.link = Place::Draining(link, Instant::now());
            drop(inner);
            self.wake.tell();
        } else {
            inner.link = Place::Here(link);
            drop(inner);
            shared.moved.tell();
        }
    }

    /// The link that an exchange had is lost, or can't be used further; the owner thread dials another one.
    pub(crate) fn lost_link(&self, reason: &str, shared: &Shared) {
        self.change(shared, |inner| {
            inner.link = Place::Absent;
            inner.condition.doubt();
            Some(reason.to_owned())
        });
        self.wake.tell();
    }

    /// For the owner thread: the link whose answers nobody waits for, and since when.
    pub(crate) fn take_draining(&self) -> Option<(Link, Instant)> {
        let mut inner = lock(&self.inner);
        match std::mem::replace(&mut inner.link, Place::Away) {
            Place::Draining(link, since) => Some((link, since)),
            other => {
                inner.link = other;
                None
            }
        }
    }

    /// Puts a draining link back that is not done.
    pub(crate) fn keep_draining(&self, link: Link, since: Instant) {
        lock(&self.inner).link = Place::Draining(link, since);
    }

    pub(crate) fn needs_link(&self) -> bool {
        matches!(lock(&self.inner).link, Place::Absent)
    }

    /// Whether something is to be done about the link.
    pub(crate) fn needs_care(&self) -> bool {
        matches!(lock(&self.inner).link, Place::Absent | Place::Draining(..))
    }

    /// A fresh link; whatever link there was before is dropped.
    pub(crate) fn set_link(&self, link: Link, shared: &Shared) {
        lock(&self.inner).link = Place::Here(link);
        shared.moved.tell();
    }

    /// Drops the link, if no exchange has it.
    pub(crate) fn drop_link(&self) {
        let mut inner = lock(&self.inner);
        if !matches!(inner.link, Place::Away) {
            inner.link = Place::Absent;
        }
    }

    /// Changes what is known of the peer; everybody hears of it if its health or message is another one then. `f`
    /// gives the new message, if there is one.
    pub(crate) fn judge(&self, shared: &Shared, f: impl FnOnce(&mut Condition) -> Option<String>) {
        self.change(shared, |inner| f(&mut inner.condition));
    }

    fn change(&self, shared: &Shared, f: impl FnOnce(&mut Inner) -> Option<String>) {
        let known = |of: &Condition| (of.health, of.was_live, of.is_only_silent());
        let (before, now, message) = {
            let mut inner = lock(&self.inner);
            let before = known(&inner.condition);
            let message = f(&mut inner).filter(|message| *message != inner.message);
            if let Some(message) = &message {
                inner.message.clone_from(message);
            }
            self.health.store(inner.condition.health as u8, Ordering::Release);
            (before, known(&inner.condition), message)
        };
        if before == now && message.is_none() {
            return;
        }
        let (worker, address, health) = (self.worker, &self.address, now.0);
        let reason = message.unwrap_or_else(|| self.message());
        match health {
            Health::Live => tracing::info!(worker, address, "connected to peer"),
            Health::Suspect => tracing::info!(worker, address, reason, "peer does not answer"),
            Health::Lost => tracing::warn!(worker, address, reason, "peer is lost"),
        }
        shared.refresh();
    }

    pub(crate) fn stop(&self) {
        lock(&self.inner).stopped = true;
        self.wake.tell();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        lock(&self.inner).stopped
    }
}

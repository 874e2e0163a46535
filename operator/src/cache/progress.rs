//! How far a watch has come.
use kube::{Resource, ResourceExt as _};
use tokio::sync::watch;

/// What a watch has told so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The newest version of any object of the kind. Versions of a kind grow with each write.
    pub version: u64,
    /// Lists that were begun.
    pub lists_begun: u64,
    /// How many had been begun when the last one was complete.
    pub lists_done: u64,
}

/// Tells what a watch has told.
#[derive(Debug)]
pub struct Progress {
    seen: watch::Sender<Seen>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { seen: watch::Sender::new(Seen::default()) }
    }
}

impl Progress {
    /// How far it is.
    pub fn seen(&self) -> Seen {
        *self.seen.borrow()
    }

    /// Whether a list was complete.
    pub fn is_ready(&self) -> bool {
        self.seen().lists_done > 0
    }

    /// Tells of each step.
    pub fn subscribe(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Takes note of an event: of an object of that version, or the begin or the end of a list.
    pub fn note(&self, version: Option<u64>, begins: bool, ends: bool) {
        self.seen.send_modify(|seen| {
            seen.lists_begun += u64::from(begins);
            if ends {
                seen.lists_done = seen.lists_begun;
            }
            seen.version = seen.version.max(version.unwrap_or(0));
        });
    }

    /// Whether a write has been told: it made this version, when so many lists had been begun. A list that began after it
    /// counts as well: what was written may be gone again by then.
    pub fn has(&self, version: u64, lists: u64) -> bool {
        let seen = self.seen();
        seen.version >= version || seen.lists_done > lists
    }
}

/// The version of an object: a number that grows with each write to its kind. `None` if the server counts otherwise.
pub fn version<K: Resource>(object: &K) -> Option<u64> {
    object.resource_version()?.parse().ok()
}

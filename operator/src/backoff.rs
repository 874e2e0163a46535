//! How long to wait after an error: by the class of the error, and by how often it came.
use std::{collections::HashMap, sync::Mutex, time::Duration};

use kube::runtime::reflector::Lookup;

/// What kind of error it is, which says what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Somebody else wrote at the same time: look again at once.
    Conflict,
    /// The API server refuses: probably rights are missing; somebody must act.
    Refused,
    /// The API server did not answer, or is overloaded: give it time.
    Transport,
    /// Ours.
    Internal,
}

impl ErrorClass {
    /// The class of an answer of the API server.
    pub fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                409 => Self::Conflict,
                429 | 500.. => Self::Transport,
                _ => Self::Refused,
            },
            kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => Self::Internal,
            _ => Self::Transport,
        }
    }

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Refused => "refused",
            Self::Transport => "transport",
            Self::Internal => "internal",
        }
    }
}

const FIRST: Duration = Duration::from_millis(200);
const MOST: Duration = Duration::from_secs(30);

/// Counts errors in a row, by object.
#[derive(Default)]
pub struct Backoff {
    failures: Mutex<HashMap<String, u32>>,
}

impl Backoff {
    /// All went well.
    pub fn reset(&self, key: &str) {
        self.lock().remove(key);
    }

    /// Another error: how long to wait.
    pub fn next(&self, key: &str, class: ErrorClass) -> Duration {
        if class == ErrorClass::Conflict {
            return Duration::from_millis(50);
        }
        let mut failures = self.lock();
        let count = failures.entry(key.to_owned()).or_insert(0);
        let pause = (FIRST * 2u32.saturating_pow(*count)).min(MOST);
        *count = (*count + 1).min(16);
        // up to a quarter less, so that deployments that failed together do not come back together
        let spread = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
        pause - pause / 4 * spread / 255
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The key of an object: `namespace/name`.
pub fn key<K: Lookup>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_grows_to_a_bound_and_starts_anew_after_success() {
        let backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.next("a/b", ErrorClass::Transport)).collect();
        assert!(pauses[0] <= FIRST && pauses[0] >= FIRST / 4 * 3 - Duration::from_millis(1));
        assert!(pauses[11] <= MOST && pauses[11] >= MOST / 4 * 3 - Duration::from_millis(1));
        assert!(backoff.next("a/c", ErrorClass::Transport) <= FIRST, "each object on its own");
        backoff.reset("a/b");
        assert!(backoff.next("a/b", ErrorClass::Transport) <= FIRST);
    }

    #[test]
    fn conflict_is_tried_again_at_once() {
        let backoff = Backoff::default();
        assert!((0..10).all(|_| backoff.next("a/b", ErrorClass::Conflict) < FIRST));
    }
}

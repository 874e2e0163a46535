//! All keys, found by what clients show.
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use http::{HeaderMap, header};

use super::{
    Entry, Key,
    file::{Hash, hash},
};

/// See the module. Replaced as a whole when the file changes.
#[derive(Debug)]
pub struct Keyring {
    replicas: u64,
    keys: RwLock<HashMap<Hash, Arc<Key>>>,
}

impl Keyring {
    /// Of these entries, for one of so many gateways.
    pub fn new(entries: Vec<Entry>, replicas: u64) -> Arc<Self> {
        let ring = Self { replicas, keys: RwLock::default() };
        ring.replace(entries);
        Arc::new(ring)
    }

    /// From now on these. A key of the same name as before goes on with what it has taken.
    pub fn replace(&self, entries: Vec<Entry>) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let before: HashMap<Arc<str>, Arc<Key>> =
            keys.values().map(|key| (key.name.clone(), key.clone())).collect();
        *keys = entries
            .into_iter()
            .map(|entry| {
                let before = before.get(entry.name.as_str()).map(AsRef::as_ref);
                (entry.hash, Arc::new(Key::new(entry, self.replicas, before)))
            })
            .collect();
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The key that a request shows: as a bearer token, or in `x-api-key`. Found by its hash, so that how long it takes says
    /// nothing about other keys.
    pub fn of(&self, headers: &HeaderMap) -> Option<Arc<Key>> {
        let bearer = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).and_then(|value| {
            let (scheme, token) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
        });
        let shown = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()))?;
        self.keys.read().unwrap_or_else(PoisonError::into_inner).get(&hash(shown)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn keys_are_shown_in_either_header() {
        let entries = super::super::read("[{name: a, key: secret}]").unwrap();
        let ring = Keyring::new(entries, 1);
        let of = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            ring.of(&headers).map(|key| key.name.to_string())
        };
        assert_eq!(of("authorization", "Bearer secret").as_deref(), Some("a"));
        assert_eq!(of("authorization", "bearer  secret ").as_deref(), Some("a"));
        assert_eq!(of("x-api-key", "secret").as_deref(), Some("a"));
        for (name, value) in
            [("authorization", "secret"), ("authorization", "Basic secret"), ("x-api-key", "other")]
        {
            assert_eq!(of(name, value), None);
        }
        ring.replace(Vec::new());
        assert_eq!(of("x-api-key", "secret"), None);
    }
}

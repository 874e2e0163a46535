//! Who asks.
use http::{HeaderMap, HeaderName};

use crate::routing::hash;

/// Header by which a client says that requests belong together. Those of one session go to the same revision while a
/// rollout shares out requests, and with `--policy session-affinity` to the same worker.
pub const SESSION: HeaderName = HeaderName::from_static("x-session-id");

/// What is known of a client beside its request.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Hash of what it calls its session.
    pub session: Option<u64>,
}

impl Caller {
    /// Of a request with these headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let session = headers.get(SESSION).map(|value| value.as_bytes()).filter(|value| !value.is_empty());
        Self { session: session.map(session_hash) }
    }

    /// The request's body names a session as well: the header wins.
    #[must_use]
    pub fn or_session(self, name: Option<&str>) -> Self {
        let named = name.filter(|name| !name.is_empty()).map(|name| session_hash(name.as_bytes()));
        Self { session: self.session.or(named) }
    }
}

fn session_hash(name: &[u8]) -> u64 {
    hash::of(&[b"session", name])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_wins_over_the_body() {
        let mut headers = HeaderMap::new();
        assert_eq!(Caller::of(&headers).session, None);
        assert_eq!(Caller::of(&headers).or_session(Some("")).session, None);
        let by_body = Caller::of(&headers).or_session(Some("a"));
        headers.insert(SESSION, http::HeaderValue::from_static("a"));
        assert_eq!(Caller::of(&headers).or_session(Some("b")).session, by_body.session);
        assert!(by_body.session.is_some());
    }
}

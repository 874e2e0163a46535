//! Who asks.
use std::sync::Arc;

use http::{Extensions, HeaderMap, HeaderName};

use crate::{keys::Key, routing::hash};

/// Header by which a client says that requests belong together. Those of one session go to the same revision while a
/// rollout shares out requests, and with `--policy session-affinity` to the same worker.
pub const SESSION: HeaderName = HeaderName::from_static("x-session-id");

/// Header that asks for a revision, as `@` does in a model's name: for proxies, which do not rewrite bodies.
pub const REVISION: HeaderName = HeaderName::from_static("x-belay-revision");

/// What is known of a client beside its request.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The revision that the request asks for beside the model's name.
    pub revision: Option<String>,
    /// Hash of what it calls its session.
    pub session: Option<u64>,
    /// The key that it showed, if the gateway wants keys.
    pub key: Option<Arc<Key>>,
}

impl Caller {
    /// Of a request with these headers; its key is among the extensions.
    pub fn of(headers: &HeaderMap, extensions: &Extensions) -> Self {
        let session = headers.get(SESSION).map(|value| value.as_bytes()).filter(|value| !value.is_empty());
        let revision =
            headers.get(REVISION).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        Self { revision, session: session.map(session_hash), key: extensions.get::<Arc<Key>>().cloned() }
    }

    /// The request's body names a session as well: the header wins.
    #[must_use]
    pub fn or_session(self, name: Option<&str>) -> Self {
        let named = name.filter(|name| !name.is_empty()).map(|name| session_hash(name.as_bytes()));
        Self { session: self.session.or(named), ..self }
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
        assert_eq!(Caller::of(&headers, &Extensions::new()).session, None);
        assert_eq!(Caller::of(&headers, &Extensions::new()).or_session(Some("")).session, None);
        let by_body = Caller::of(&headers, &Extensions::new()).or_session(Some("a"));
        headers.insert(SESSION, http::HeaderValue::from_static("a"));
        assert_eq!(Caller::of(&headers, &Extensions::new()).or_session(Some("b")).session, by_body.session);
        assert!(by_body.session.is_some());
    }
}

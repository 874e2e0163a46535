//! Server-sent events, as they go over the wire.
use std::io::Write;

use axum::body::Bytes;
use serde::Serialize;

/// Events that wait to be sent: bytes from the start, since an answer has one for every token.
#[derive(Debug, Default)]
pub struct EventBuffer(Vec<u8>);

impl EventBuffer {
    /// An event, named if the API names its events. `write` writes its data, which must not have an end of line.
    pub fn event(&mut self, name: Option<&str>, write: impl FnOnce(&mut Vec<u8>)) {
        if let Some(name) = name {
            // memory takes whatever is written
            let _ = writeln!(self.0, "event: {name}");
        }
        self.0.extend_from_slice(b"data: ");
        write(&mut self.0);
        self.0.extend_from_slice(b"\n\n");
    }

    /// An event with JSON.
    pub fn json(&mut self, name: Option<&str>, data: &impl Serialize) {
        self.event(name, |bytes| json(bytes, data));
    }

    /// Something that clients ignore.
    pub fn comment(&mut self) {
        self.0.extend_from_slice(b": \n\n");
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of what there is to send.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes all of it.
    pub fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.0).into()
    }
}

/// Appends JSON, which has no end of line in this form.
pub fn json(bytes: &mut Vec<u8>, value: &impl Serialize) {
    // memory takes whatever is written, and all keys are strings
    let _ = serde_json::to_writer(bytes, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_as_the_standard_has_them() {
        let mut events = EventBuffer::default();
        assert!(events.is_empty());
        events.json(None, &json!({"text": "a\nb\r"}));
        events.json(Some("ping"), &json!({}));
        events.comment();
        events.event(None, |data| data.extend_from_slice(b"[DONE]"));
        let expected = "data: {\"text\":\"a\\nb\\r\"}\n\nevent: ping\ndata: {}\n\n: \n\ndata: [DONE]\n\n";
        assert_eq!(events.len(), expected.len());
        assert_eq!(events.take(), expected);
        assert!(events.is_empty());
    }
}

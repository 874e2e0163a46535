//! OpenAI's server-sent events.

use anyhow::{Context, Result, bail};
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

/// What an event says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text of any kind: content, reasoning or a tool call's arguments.
    pub has_text: bool,
    /// Set on a choice's last piece.
    pub finish_reason: Option<String>,
    /// Prompt, completion and cached tokens, on the last event.
    pub usage: Option<[u32; 3]>,
}

/// The events of an answer.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    buffer: BytesMut,
}

impl Events {
    /// Of this body.
    #[must_use]
    pub fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next event; `None` after `[DONE]`.
    ///
    /// # Errors
    /// An error event, and an answer that ends without `[DONE]`.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let frame = self.buffer.split_to(end);
                self.buffer.advance(2);
                let Some(data) = frame.strip_prefix(b"data: ") else { continue }; // a comment
                if data == b"[DONE]" {
                    return self.end().await;
                }
                return piece(data).map(Some);
            }
            let frame = self.body.frame().await.context("the answer ends without [DONE]")??;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// Reads to the end of the body, so that the connection can be used again.
    async fn end(&mut self) -> Result<Option<Piece>> {
        while let Some(frame) = self.body.frame().await {
            frame.context("the answer breaks off after [DONE]")?;
        }
        Ok(None)
    }
}

fn piece(data: &[u8]) -> Result<Piece> {
    let event: Value = serde_json::from_slice(data)
        .with_context(|| format!("an event is not JSON: {}", String::from_utf8_lossy(data)))?;
    if !event["error"].is_null() {
        bail!("an error in the stream: {}", event["error"]);
    }
    let choice = &event["choices"][0];
    let texts = [
        &choice["text"],
        &choice["delta"]["content"],
        &choice["delta"]["reasoning_content"],
        &choice["delta"]["tool_calls"][0]["function"]["arguments"],
    ];
    let count = |value: &Value| value.as_u64().unwrap_or_default() as u32;
    let usage = &event["usage"];
    Ok(Piece {
        has_text: texts.iter().any(|text| text.as_str().is_some_and(|text| !text.is_empty())),
        finish_reason: choice["finish_reason"].as_str().map(str::to_owned),
        usage: usage.is_object().then(|| {
            let cached = &usage["prompt_tokens_details"]["cached_tokens"];
            [count(&usage["prompt_tokens"]), count(&usage["completion_tokens"]), count(cached)]
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_either_endpoint_and_the_usage() {
        let text = piece(br#"{"choices":[{"text":"a","finish_reason":null}]}"#).unwrap();
        assert_eq!(text, Piece { has_text: true, ..Piece::default() });
        let role = piece(br#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#).unwrap();
        assert_eq!(role, Piece::default());
        let thought = piece(br#"{"choices":[{"delta":{"reasoning_content":"a"}}]}"#).unwrap();
        assert!(thought.has_text);
        let end = piece(br#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#).unwrap();
        assert_eq!(end.finish_reason.as_deref(), Some("stop"));
        let usage = br#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":4}}}"#;
        assert_eq!(piece(usage).unwrap().usage, Some([5, 6, 4]));
    }

    #[test]
    fn errors_and_nonsense_are_errors() {
        assert!(piece(br#"{"error":{"message":"lost"}}"#).unwrap_err().to_string().contains("lost"));
        assert!(piece(b"{").is_err());
    }
}

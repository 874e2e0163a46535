//! One request through the gateway by HTTP: OpenAI's endpoints, streamed as server-sent events.

use anyhow::{Context, Error, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::client::{Pace, Stopwatch};

/// A finished answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Text, in the order it was streamed.
    pub text: String,
    /// Tokens, as the gateway counts them; 0 where it was not asked.
    pub tokens: usize,
    /// When pieces with text came.
    pub pace: Pace,
}

/// How a gateway sends a request away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Seconds of `retry-after`.
    pub retry_after: Option<u64>,
    /// What it says.
    pub body: String,
}

impl Refusal {
    /// What the body calls it, as errors of OpenAI's API do.
    #[must_use]
    pub fn code(&self) -> Option<String> {
        let body: Value = serde_json::from_str(&self.body).ok()?;
        Some(body["error"]["code"].as_str()?.to_owned())
    }
}

/// Exactly `tokens` greedy tokens after a prompt, past the end of the answer if need be. `count` is told how many
/// tokens came with each piece.
///
/// # Errors
/// On any status but 200, an error event, and when the stream ends without `[DONE]` or finish reason.
pub async fn complete(
    client: &reqwest::Client,
    url: &str,
    model: &str,
    prompt: &[u32],
    tokens: usize,
    count: impl FnMut(usize),
) -> Result<Answer> {
    try_complete(client, url, model, prompt, tokens, count).await?.map_err(refused)
}

/// The same; a status other than 200 is no error, but an answer.
///
/// # Errors
/// As [`complete`], but for that.
pub async fn try_complete(
    client: &reqwest::Client,
    url: &str,
    model: &str,
    prompt: &[u32],
    tokens: usize,
    count: impl FnMut(usize),
) -> Result<Result<Answer, Refusal>> {
    let body = json!({
        "model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": true, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true},
    });
    ask(client, &format!("{url}/v1/completions"), &body, count).await
}

/// Text of a chat answer.
///
/// # Errors
/// As [`complete`].
pub async fn chat(url: &str, model: &str, question: &str, max_tokens: u32) -> Result<String> {
    let body = json!({
        "model": model, "stream": true, "temperature": 0, "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": question}],
    });
    let url = format!("{url}/v1/chat/completions");
    let answer = ask(&reqwest::Client::new(), &url, &body, |_| {}).await?.map_err(refused)?;
    Ok(answer.text)
}

async fn ask(
    client: &reqwest::Client,
    url: &str,
    body: &Value,
    mut count: impl FnMut(usize),
) -> Result<Result<Answer, Refusal>> {
    let mut watch = Stopwatch::start();
    let mut response = client.post(url).json(body).send().await?;
    if !response.status().is_success() {
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|text| text.parse().ok());
        return Ok(Err(Refusal { status, retry_after, body: response.text().await? }));
    }
    let mut stream = Stream::default();
    while let Some(bytes) = response.chunk().await.with_context(|| stream.how_far())? {
        let before = stream.answer.clone();
        stream.take(&bytes)?;
        if stream.answer.text.len() > before.text.len() {
            watch.piece();
        }
        count(stream.answer.tokens.saturating_sub(before.tokens));
    }
    ensure!(stream.finished && stream.done, "half an answer: {}", stream.how_far());
    Ok(Ok(Answer { pace: watch.pace(), ..stream.answer }))
}

fn refused(refusal: Refusal) -> Error {
    anyhow!("{}: {}", refusal.status, refusal.body)
}

/// What came of a stream of events so far.
#[derive(Debug, Default)]
struct Stream {
    rest: Vec<u8>,
    answer: Answer,
    finished: bool,
    done: bool,
}

impl Stream {
    /// Takes some bytes of the body: any number of events, the last one cut anywhere.
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            match line.trim_ascii_end().strip_prefix(b"data: ") {
                Some(b"[DONE]") => self.done = true,
                Some(data) => self.event(&serde_json::from_slice(data)?)?,
                None => {} // an empty line or a comment
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &Value) -> Result<()> {
        ensure!(event["error"].is_null(), "error in the stream: {}, {}", event["error"], self.how_far());
        let choice = &event["choices"][0];
        for text in [&choice["text"], &choice["delta"]["content"]] {
            self.answer.text.push_str(text.as_str().unwrap_or_default());
        }
        self.finished |= choice["finish_reason"].is_string();
        if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
            self.answer.tokens = usize::try_from(tokens)?;
        }
        Ok(())
    }

    fn how_far(&self) -> String {
        let Self { answer, finished, done, .. } = self;
        format!(
            "after {} tokens, {} bytes of text, finish reason {finished}, [DONE] {done}",
            answer.tokens,
            answer.text.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_cut_anywhere_give_the_same_answer() {
        let body = "data: {\"choices\":[{\"text\":\"o\u{308}a\"}],\"usage\":{\"completion_tokens\":2}}\n\n: still here\n\n\
             data: {\"choices\":[{\"text\":\"b\",\"finish_reason\":\"length\"}],\"usage\":{\"completion_tokens\":3}}\n\n\
             data: [DONE]\n\n";
        for size in 1..body.len() {
            let mut stream = Stream::default();
            for bytes in body.as_bytes().chunks(size) {
                stream.take(bytes).unwrap();
            }
            assert!(stream.finished && stream.done, "{size}");
            assert_eq!((stream.answer.text.as_str(), stream.answer.tokens), ("o\u{308}ab", 3), "{size}");
        }
    }

    #[test]
    fn a_refusal_is_called_by_its_code() {
        let code = |body: &str| Refusal { status: 429, retry_after: None, body: body.into() }.code();
        let body = r#"{"error": {"message": "the room is full", "code": "too_many_held_requests"}}"#;
        assert_eq!(code(body).as_deref(), Some("too_many_held_requests"));
        assert_eq!((code("<html>"), code(r#"{"error": {"message": "no"}}"#)), (None, None));
    }

    #[test]
    fn an_error_event_is_an_error_and_a_cut_stream_is_not_done() {
        let mut stream = Stream::default();
        stream.take(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n").unwrap();
        assert!(!stream.finished && !stream.done);
        let error = stream.take(b"data: {\"error\":{\"message\":\"step lost\"}}\n").unwrap_err();
        assert!(error.to_string().contains("step lost"), "{error}");
    }
}

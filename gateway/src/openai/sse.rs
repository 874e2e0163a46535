//! Streamed answers: server-sent events, one JSON chunk each, `[DONE]` at the end of a complete answer.
//!
//! A stream that fails ends with an `{"error": …}` event and no `[DONE]`: never a half answer that looks whole.
use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::response::{
    IntoResponse, Response, Sse,
    sse::{Event, KeepAlive},
};
use belay_proto::inference::GenerateResponse;
use futures::Stream;
use http::{HeaderValue, header};
use serde_json::{Value, json};

use crate::{life::Generation, observe::Record};

use super::{
    ApiError,
    answer::{Heading, Kind, UsageCounts, finish_reason},
};

/// Proxies close connections that are silent for a minute; a held stream sends a comment meanwhile.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

const DONE: &str = "[DONE]";

/// The response. `first` is the piece that was waited for before the status could be known.
pub fn response(
    heading: Heading,
    include_usage: bool,
    generation: Generation,
    first: Option<GenerateResponse>,
    record: Record,
) -> Response {
    let mut events =
        Events { framer: Framer::new(heading, include_usage), generation, record, ready: VecDeque::new() };
    if let Some(piece) = first {
        events.piece(&piece);
    }
    let mut response =
        Sse::new(events.into_stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // reverse proxies must not collect the stream
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

struct Events {
    framer: Framer,
    generation: Generation,
    record: Record,
    ready: VecDeque<String>,
}

impl Events {
    fn piece(&mut self, piece: &GenerateResponse) {
        self.record.piece(piece);
        self.ready.extend(self.framer.piece(piece));
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                if data == DONE {
                    self.record.outcome(200);
                }
                return Some(data);
            }
            match self.generation.next().await? {
                Ok(piece) => self.piece(&piece),
                Err(failure) => {
                    let error = ApiError::from(failure);
                    self.record.outcome(error.status.as_u16());
                    self.ready.push_back(error.json().to_string());
                }
            }
        }
    }

    fn into_stream(self) -> impl Stream<Item = Result<Event, Infallible>> + Send {
        futures::stream::unfold(self, |mut events| async move {
            let data = events.next().await?;
            Some((Ok(Event::default().data(data)), events))
        })
    }
}

/// Pieces become chunks. Pure.
#[derive(Debug)]
pub struct Framer {
    heading: Heading,
    include_usage: bool,
    begun: bool,
}

impl Framer {
    /// Of one answer.
    pub fn new(heading: Heading, include_usage: bool) -> Self {
        Self { heading, include_usage, begun: false }
    }

    /// The data of the events that a piece makes; the last piece makes the finishing ones as well.
    pub fn piece(&mut self, piece: &GenerateResponse) -> Vec<String> {
        let mut data = Vec::new();
        if !std::mem::replace(&mut self.begun, true) && self.heading.kind == Kind::Chat {
            data.push(self.chunk(json!({ "role": "assistant", "content": "" }), None));
        }
        match self.heading.kind {
            Kind::Chat => {
                for (field, text) in [("reasoning_content", &piece.reasoning), ("content", &piece.text)] {
                    if !text.is_empty() {
                        data.push(self.chunk(json!({ field: text }), None));
                    }
                }
            }
            Kind::Completion => {
                if !piece.text.is_empty() {
                    data.push(self.chunk(json!(piece.text), None));
                }
            }
        }
        if let Some(reason) = finish_reason(piece) {
            let nothing = match self.heading.kind {
                Kind::Chat => json!({}),
                Kind::Completion => json!(""),
            };
            data.push(self.chunk(nothing, Some(reason)));
            if self.include_usage {
                data.push(self.usage(UsageCounts::from(piece.usage.unwrap_or_default())));
            }
            data.push(DONE.to_owned());
        }
        data
    }

    fn chunk(&self, delta: Value, finish_reason: Option<&str>) -> String {
        let field = match self.heading.kind {
            Kind::Chat => "delta",
            Kind::Completion => "text",
        };
        let choice = json!({ "index": 0, field: delta, "logprobs": null, "finish_reason": finish_reason });
        self.object(json!([choice]), None)
    }

    fn usage(&self, usage: UsageCounts) -> String {
        self.object(json!([]), Some(usage))
    }

    fn object(&self, choices: Value, usage: Option<UsageCounts>) -> String {
        let Heading { kind, id, created, model } = &self.heading;
        let object = match kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        };
        let mut chunk =
            json!({ "id": id, "object": object, "created": created, "model": model, "choices": choices });
        if self.include_usage {
            chunk["usage"] = json!(usage);
        }
        chunk.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_proto::inference::{FinishReason, Usage};

    fn frames(kind: Kind, include_usage: bool) -> String {
        let heading = Heading { kind, id: "id-1".into(), created: 7, model: "m".into() };
        let mut framer = Framer::new(heading, include_usage);
        let pieces = [
            GenerateResponse {
                usage: Some(Usage { prompt_tokens: 3, ..Usage::default() }),
                ..GenerateResponse::default()
            },
            GenerateResponse { ids: vec![1], reasoning: "hm".into(), ..GenerateResponse::default() },
            GenerateResponse { ids: vec![2], ..GenerateResponse::default() },
            GenerateResponse { ids: vec![3], text: "a \"b\"\nc".into(), ..GenerateResponse::default() },
            GenerateResponse {
                ids: vec![4],
                text: "d".into(),
                finish_reason: FinishReason::Length as i32,
                usage: Some(Usage { prompt_tokens: 3, completion_tokens: 4, ..Usage::default() }),
                ..GenerateResponse::default()
            },
        ];
        pieces.iter().flat_map(|piece| framer.piece(piece)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn chat_chunks() {
        insta::assert_snapshot!(frames(Kind::Chat, true));
    }

    #[test]
    fn completion_chunks() {
        insta::assert_snapshot!(frames(Kind::Completion, false));
    }
}

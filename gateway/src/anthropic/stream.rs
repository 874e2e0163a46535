//! Streamed messages: blocks that begin, grow and end, one after the other.
use belay_proto::inference::GenerateResponse;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    edge::{ApiError, EventBuffer, Framer, Tally},
    request_id::RequestId,
};

use super::{
    answer::{empty, stop, usage_counts},
    error,
    request::Form,
};

/// Pieces become events.
#[derive(Debug)]
pub struct AnthropicFramer {
    id: String,
    model: String,
    form: Form,
    request: RequestId,
    tally: Tally,
    has_begun: bool,
    /// The block that grows, and its index.
    open: Option<(Block, usize)>,
    blocks: usize,
    is_whole: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    /// Which call of the answer.
    Call(u32),
}

impl AnthropicFramer {
    /// Of one message.
    pub fn new(id: String, model: String, form: Form, request: RequestId) -> Self {
        Self {
            id,
            model,
            form,
            request,
            tally: Tally::new(1),
            has_begun: false,
            open: None,
            blocks: 0,
            is_whole: false,
        }
    }

    fn close(&mut self, events: &mut EventBuffer) {
        if let Some((_, index)) = self.open.take() {
            tell("content_block_stop", &json!({ "index": index }), events);
        }
    }

    /// Makes this the block that grows. Gives its index.
    fn open(&mut self, block: Block, begin: impl FnOnce() -> Value, events: &mut EventBuffer) -> usize {
        if let Some((_, index)) = self.open.filter(|(open, _)| *open == block) {
            return index;
        }
        self.close(events);
        let index = self.blocks;
        self.blocks += 1;
        self.open = Some((block, index));
        tell("content_block_start", &json!({ "index": index, "content_block": begin() }), events);
        index
    }

    fn grow(&mut self, piece: &GenerateResponse, events: &mut EventBuffer) {
        if !piece.reasoning.is_empty() {
            let begin = || json!({ "type": "thinking", "thinking": "", "signature": "" });
            let index = self.open(Block::Thinking, begin, events);
            if !self.form.hides_thinking {
                Growth { index, delta: Delta::Thinking { thinking: &piece.reasoning } }.tell(events);
            }
        }
        if !piece.text.is_empty() {
            let index = self.open(Block::Text, || json!({ "type": "text", "text": "" }), events);
            Growth { index, delta: Delta::Text { text: &piece.text } }.tell(events);
        }
        for call in &piece.tool_calls {
            let begin = || json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": {} });
            let index = self.open(Block::Call(call.index), begin, events);
            if !call.arguments.is_empty() {
                let delta = Delta::InputJson { partial_json: &call.arguments };
                Growth { index, delta }.tell(events);
            }
        }
    }
}

/// What a block grows by.
#[derive(Serialize)]
struct Growth<'a> {
    index: usize,
    delta: Delta<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type")]
enum Delta<'a> {
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: &'a str },
}

impl Growth<'_> {
    fn tell(&self, events: &mut EventBuffer) {
        tell("content_block_delta", self, events);
    }
}

/// An event; its name is its type.
fn tell(name: &'static str, fields: &impl Serialize, events: &mut EventBuffer) {
    #[derive(Serialize)]
    struct Typed<'a, T> {
        #[serde(rename = "type")]
        kind: &'static str,
        #[serde(flatten)]
        fields: &'a T,
    }
    events.json(Some(name), &Typed { kind: name, fields });
}

impl Framer for AnthropicFramer {
    fn piece(&mut self, piece: &GenerateResponse, events: &mut EventBuffer) {
        self.tally.piece(piece);
        if !std::mem::replace(&mut self.has_begun, true) {
            let message = empty(&self.id, &self.model, piece.usage.unwrap_or_default());
            tell("message_start", &json!({ "message": message }), events);
            self.idle(events);
        }
        self.grow(piece, events);
        if piece.finish_reason != 0 {
            self.close(events);
            let delta = stop(piece.finish_reason(), piece.stopped_by.clone());
            let usage = usage_counts(self.tally.total());
            tell("message_delta", &json!({ "delta": delta, "usage": usage }), events);
            tell("message_stop", &json!({}), events);
            self.is_whole = true;
        }
    }

    fn is_whole(&self) -> bool {
        self.is_whole
    }

    fn failure(&self, error: &ApiError, events: &mut EventBuffer) {
        events.json(Some("error"), &error::body(error, &self.request));
    }

    fn idle(&self, events: &mut EventBuffer) {
        tell("ping", &json!({}), events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_proto::inference::{FinishReason, ToolCallDelta, Usage};

    fn frames(form: Form, pieces: &[GenerateResponse]) -> String {
        let mut framer = AnthropicFramer::new("msg_1".into(), "m".into(), form, RequestId("r".into()));
        let mut events = EventBuffer::default();
        pieces.iter().for_each(|piece| framer.piece(piece, &mut events));
        assert!(framer.is_whole());
        let sent = String::from_utf8(events.take().into()).unwrap();
        let event = |event: &str| event.strip_prefix("event: ").unwrap().replace("\ndata: ", ": ");
        sent.strip_suffix("\n\n").unwrap().split("\n\n").map(event).collect::<Vec<_>>().join("\n")
    }

    fn pieces() -> Vec<GenerateResponse> {
        let usage = Usage { prompt_tokens: 9, cached_tokens: 4, ..Usage::default() };
        let call = |index, id: &str, arguments: &str| GenerateResponse {
            tool_calls: vec![ToolCallDelta {
                index,
                id: id.into(),
                name: if id.is_empty() { String::new() } else { "f".into() },
                arguments: arguments.into(),
            }],
            ..GenerateResponse::default()
        };
        let reasoning =
            |text: &str| GenerateResponse { reasoning: text.into(), ..GenerateResponse::default() };
        let mut last = GenerateResponse {
            usage: Some(Usage { completion_tokens: 7, reasoning_tokens: 2, ..usage }),
            ..GenerateResponse::default()
        };
        last.set_finish_reason(FinishReason::ToolCalls);
        vec![
            GenerateResponse { usage: Some(usage), ..GenerateResponse::default() },
            reasoning("h"),
            GenerateResponse { reasoning: "m".into(), text: "so".into(), ..GenerateResponse::default() },
            call(0, "a", ""),
            call(0, "", "{}"),
            call(1, "b", "{\"x\":"),
            call(1, "", "1}"),
            last,
        ]
    }

    #[test]
    fn events() {
        insta::assert_snapshot!(frames(Form::default(), &pieces()));
    }

    #[test]
    fn hidden_thinking_is_an_empty_block() {
        let hidden = frames(Form { hides_thinking: true, stream: true }, &pieces());
        assert!(hidden.contains("\"thinking\":\"\"") && !hidden.contains("thinking_delta"), "{hidden}");
    }
}

//! Streamed messages: blocks that begin, grow and end, one after the other.
use belay_proto::inference::GenerateResponse;
use serde_json::{Value, json};

use crate::{
    edge::{ApiError, Frame, Framer, Tally},
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

    fn close(&mut self, frames: &mut Vec<Frame>) {
        if let Some((_, index)) = self.open.take() {
            frames.push(frame("content_block_stop", json!({ "index": index })));
        }
    }

    /// Makes this the block that grows. Gives its index.
    fn open(&mut self, block: Block, begin: impl FnOnce() -> Value, frames: &mut Vec<Frame>) -> usize {
        if let Some((_, index)) = self.open.filter(|(open, _)| *open == block) {
            return index;
        }
        self.close(frames);
        let index = self.blocks;
        self.blocks += 1;
        self.open = Some((block, index));
        frames.push(frame("content_block_start", json!({ "index": index, "content_block": begin() })));
        index
    }

    fn grow(&mut self, piece: &GenerateResponse, frames: &mut Vec<Frame>) {
        let delta = |index: usize, delta: Value| {
            frame("content_block_delta", json!({ "index": index, "delta": delta }))
        };
        if !piece.reasoning.is_empty() {
            let begin = || json!({ "type": "thinking", "thinking": "", "signature": "" });
            let index = self.open(Block::Thinking, begin, frames);
            if !self.form.hides_thinking {
                frames.push(delta(index, json!({ "type": "thinking_delta", "thinking": piece.reasoning })));
            }
        }
        if !piece.text.is_empty() {
            let index = self.open(Block::Text, || json!({ "type": "text", "text": "" }), frames);
            frames.push(delta(index, json!({ "type": "text_delta", "text": piece.text })));
        }
        for call in &piece.tool_calls {
            let begin = || json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": {} });
            let index = self.open(Block::Call(call.index), begin, frames);
            if !call.arguments.is_empty() {
                let grown = json!({ "type": "input_json_delta", "partial_json": call.arguments });
                frames.push(delta(index, grown));
            }
        }
    }
}

/// An event; its name is its type.
fn frame(event: &'static str, fields: Value) -> Frame {
    let mut data = json!({ "type": event });
    if let (Value::Object(data), Value::Object(fields)) = (&mut data, fields) {
        data.extend(fields);
    }
    Frame { event: Some(event), data: data.to_string() }
}

impl Framer for AnthropicFramer {
    fn piece(&mut self, piece: &GenerateResponse) -> Vec<Frame> {
        self.tally.piece(piece);
        let mut frames = Vec::new();
        if !std::mem::replace(&mut self.has_begun, true) {
            let message = empty(&self.id, &self.model, piece.usage.unwrap_or_default());
            frames.push(frame("message_start", json!({ "message": message })));
            frames.push(self.idle());
        }
        self.grow(piece, &mut frames);
        if piece.finish_reason != 0 {
            self.close(&mut frames);
            let delta = stop(piece.finish_reason(), piece.stopped_by.clone());
            let usage = usage_counts(self.tally.total());
            frames.push(frame("message_delta", json!({ "delta": delta, "usage": usage })));
            frames.push(frame("message_stop", json!({})));
            self.is_whole = true;
        }
        frames
    }

    fn is_whole(&self) -> bool {
        self.is_whole
    }

    fn failure(&self, error: ApiError) -> Frame {
        Frame { event: Some("error"), data: error::body(&error, &self.request).to_string() }
    }

    fn idle(&self) -> Frame {
        frame("ping", json!({}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_proto::inference::{FinishReason, ToolCallDelta, Usage};

    fn frames(form: Form, pieces: &[GenerateResponse]) -> String {
        let mut framer = AnthropicFramer::new("msg_1".into(), "m".into(), form, RequestId("r".into()));
        let frames = pieces.iter().flat_map(|piece| framer.piece(piece));
        let lines: Vec<_> = frames.map(|frame| format!("{}: {}", frame.event.unwrap(), frame.data)).collect();
        assert!(framer.is_whole());
        lines.join("\n")
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

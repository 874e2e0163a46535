//! Streamed answers: one JSON chunk an event, `[DONE]` at the end of whole answers, `{"error": …}` at the end of others.
use belay_proto::inference::{GenerateResponse, ToolCallDelta};
use serde_json::{Value, json};

use crate::edge::{ApiError, Frame, Framer, Tally};

use super::{
    answer::{Heading, Kind, finish_reason},
    logprobs::{self, Places},
    options::Form,
    usage::UsageCounts,
};

const DONE: &str = "[DONE]";

/// Pieces become chunks.
#[derive(Debug)]
pub struct OpenAiFramer {
    heading: Heading,
    form: Form,
    tally: Tally,
    choices: Vec<Progress>,
    finished: usize,
}

/// Of one choice.
#[derive(Clone, Debug, Default)]
struct Progress {
    begun: bool,
    places: Places,
}

impl OpenAiFramer {
    /// Of one request.
    pub fn new(heading: Heading, form: Form) -> Self {
        let tally = Tally::new(form.answers as usize);
        Self { heading, form, tally, choices: vec![Progress::default(); form.choices()], finished: 0 }
    }

    fn chat(&mut self, piece: &GenerateResponse, chunks: &mut Vec<String>) {
        let begun = self.choices.get_mut(piece.index as usize).map(|progress| &mut progress.begun);
        let mut deltas = Vec::new();
        if begun.is_some_and(|begun| !std::mem::replace(begun, true)) {
            chunks.push(self.chunk(
                piece.index,
                json!({ "role": "assistant", "content": "" }),
                Value::Null,
                None,
            ));
        }
        for (field, text) in [("reasoning_content", &piece.reasoning), ("content", &piece.text)] {
            if !text.is_empty() {
                deltas.push(json!({ field: text }));
            }
        }
        deltas.extend(piece.tool_calls.iter().map(|call| json!({ "tool_calls": [tool_call(call)] })));
        let mut logprobs = match piece.logprobs.as_slice() {
            [] => Value::Null,
            tokens => logprobs::chat(tokens),
        };
        let reason = finish_reason(piece.finish_reason());
        // tokens whose text is not certain yet have their probabilities all the same
        if deltas.is_empty() && !logprobs.is_null() && reason.is_none() {
            deltas.push(json!({}));
        }
        for delta in deltas {
            chunks.push(self.chunk(piece.index, delta, logprobs.take(), None));
        }
        if reason.is_some() {
            chunks.push(self.chunk(piece.index, json!({}), logprobs.take(), reason));
        }
    }

    fn completion(&mut self, piece: &GenerateResponse, chunks: &mut Vec<String>) {
        let text = format!("{}{}", piece.prompt_text, piece.text);
        let has_logprobs = !(piece.logprobs.is_empty() && piece.prompt_logprobs.is_empty());
        let mut logprobs = match self.choices.get_mut(piece.index as usize) {
            Some(progress) if has_logprobs => {
                progress.places.completion(&piece.prompt_logprobs, &piece.logprobs)
            }
            _ => Value::Null,
        };
        let reason = finish_reason(piece.finish_reason());
        if !text.is_empty() || (!logprobs.is_null() && reason.is_none()) {
            chunks.push(self.chunk(piece.index, text.into(), logprobs.take(), None));
        }
        if reason.is_some() {
            chunks.push(self.chunk(piece.index, "".into(), logprobs, reason));
        }
    }

    fn chunk(&self, index: u32, delta: Value, logprobs: Value, finish_reason: Option<&str>) -> String {
        let field = match self.heading.kind {
            Kind::Chat => "delta",
            Kind::Completion => "text",
        };
        let choice =
            json!({ "index": index, field: delta, "logprobs": logprobs, "finish_reason": finish_reason });
        let usage = self.form.continuous_usage.then(|| UsageCounts::from(self.tally.total()));
        self.object(json!([choice]), usage)
    }

    fn object(&self, choices: Value, usage: Option<UsageCounts>) -> String {
        let Heading { kind, id, created, model, fingerprint } = &self.heading;
        let object = match kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        };
        let mut chunk = json!({ "id": id, "object": object, "created": created, "model": model,
                                "system_fingerprint": fingerprint, "choices": choices });
        if self.form.include_usage {
            chunk["usage"] = json!(usage);
        }
        chunk.to_string()
    }
}

/// The first part of a call has id, type and name.
fn tool_call(delta: &ToolCallDelta) -> Value {
    let ToolCallDelta { index, id, name, arguments } = delta;
    if id.is_empty() && name.is_empty() {
        return json!({ "index": index, "function": { "arguments": arguments } });
    }
    let function = json!({ "name": name, "arguments": arguments });
    json!({ "index": index, "id": id, "type": "function", "function": function })
}

impl Framer for OpenAiFramer {
    fn piece(&mut self, piece: &GenerateResponse) -> Vec<Frame> {
        self.tally.piece(piece);
        let mut chunks = Vec::new();
        match self.heading.kind {
            Kind::Chat => self.chat(piece, &mut chunks),
            Kind::Completion => self.completion(piece, &mut chunks),
        }
        self.finished += usize::from(piece.finish_reason != 0);
        if self.is_whole() {
            if self.form.include_usage {
                chunks.push(self.object(json!([]), Some(UsageCounts::from(self.tally.total()))));
            }
            chunks.push(DONE.to_owned());
        }
        chunks.into_iter().map(|data| Frame { event: None, data }).collect()
    }

    fn is_whole(&self) -> bool {
        self.finished == self.form.choices()
    }

    fn failure(&self, error: ApiError) -> Frame {
        Frame { event: None, data: error.json().to_string() }
    }

    fn idle(&self) -> Frame {
        Frame { event: None, data: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_proto::inference::{FinishReason, TokenLogprobs, Usage};

    fn form(include_usage: bool) -> Form {
        Form { stream: true, include_usage, continuous_usage: false, logprobs: false, answers: 1, prompts: 1 }
    }

    fn frames(kind: Kind, form: Form, pieces: &[GenerateResponse]) -> String {
        let fingerprint = (kind == Kind::Chat).then(|| "fp_r".to_owned());
        let heading = Heading { kind, id: "id-1".into(), created: 7, model: "m".into(), fingerprint };
        let mut framer = OpenAiFramer::new(heading, form);
        let data = pieces.iter().flat_map(|piece| framer.piece(piece)).map(|frame| frame.data);
        let data = data.collect::<Vec<_>>().join("\n");
        assert!(framer.is_whole());
        data
    }

    fn piece(ids: &[u32], text: &str) -> GenerateResponse {
        GenerateResponse { ids: ids.to_vec(), text: text.into(), ..GenerateResponse::default() }
    }

    fn prompt(prompt_tokens: u32) -> GenerateResponse {
        let usage = Usage { prompt_tokens, cached_tokens: 2, ..Usage::default() };
        GenerateResponse { usage: Some(usage), ..GenerateResponse::default() }
    }

    fn last(reason: FinishReason, completion_tokens: u32) -> GenerateResponse {
        let usage = Usage { prompt_tokens: 3, completion_tokens, cached_tokens: 2, reasoning_tokens: 1 };
        GenerateResponse { finish_reason: reason.into(), usage: Some(usage), ..GenerateResponse::default() }
    }

    fn simple() -> [GenerateResponse; 5] {
        [
            prompt(3),
            GenerateResponse { ids: vec![1], reasoning: "hm".into(), ..GenerateResponse::default() },
            piece(&[2], ""),
            piece(&[3], "a \"b\"\nc"),
            GenerateResponse { ids: vec![4], text: "d".into(), ..last(FinishReason::Length, 4) },
        ]
    }

    #[test]
    fn chat_chunks() {
        insta::assert_snapshot!(frames(Kind::Chat, form(true), &simple()));
    }

    #[test]
    fn completion_chunks() {
        insta::assert_snapshot!(frames(Kind::Completion, form(false), &simple()));
    }

    #[test]
    fn chunks_of_calls() {
        let call = |id: &str, name: &str, arguments: &str| ToolCallDelta {
            index: 0,
            id: id.into(),
            name: name.into(),
            arguments: arguments.into(),
        };
        let calls = [call("c1", "f", ""), call("", "", "{\"a\""), call("", "", ":1}")];
        let [begin, goes_on, end] = calls.map(|call| GenerateResponse {
            ids: vec![1],
            tool_calls: vec![call],
            ..GenerateResponse::default()
        });
        let pieces = [prompt(3), begin, goes_on, end, last(FinishReason::ToolCalls, 3)];
        insta::assert_snapshot!(frames(Kind::Chat, form(false), &pieces));
    }

    #[test]
    fn chunks_of_two_answers_with_probabilities_and_counts() {
        let form = Form { continuous_usage: true, logprobs: true, answers: 2, ..form(true) };
        let with = |mut piece: GenerateResponse, index| {
            let logprob = |id: &u32| TokenLogprobs { id: *id, logprob: -0.5, bytes: vec![b'x'], top: vec![] };
            piece.logprobs = piece.ids.iter().map(logprob).collect();
            piece.index = index;
            piece
        };
        let pieces = [
            with(prompt(3), 1),
            with(piece(&[1], ""), 1),
            with(prompt(3), 0),
            with(GenerateResponse { ids: vec![2], ..last(FinishReason::Stop, 1) }, 0),
            with(GenerateResponse { ids: vec![5], text: "ab".into(), ..last(FinishReason::Length, 2) }, 1),
        ];
        insta::assert_snapshot!(frames(Kind::Chat, form, &pieces));
    }

    #[test]
    fn chunks_of_an_echo() {
        let tokens = |count| {
            let token = TokenLogprobs { id: 1, logprob: -0.5, bytes: vec![b'p'], top: vec![] };
            vec![token; count]
        };
        let form = Form { logprobs: true, ..form(false) };
        let first = GenerateResponse { prompt_text: "pp".into(), prompt_logprobs: tokens(2), ..prompt(2) };
        let next = GenerateResponse { logprobs: tokens(1), ..piece(&[1], "p") };
        insta::assert_snapshot!(frames(Kind::Completion, form, &[first, next, last(FinishReason::Stop, 1)]));
    }
}

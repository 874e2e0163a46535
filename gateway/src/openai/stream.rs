//! Streamed answers: one JSON chunk an event, `[DONE]` at the end of whole answers, `{"error": …}` at the end of others.
use std::borrow::Cow;

use belay_proto::inference::{GenerateResponse, ToolCallDelta};
use serde::Serialize;
use serde_json::Value;

use crate::edge::{ApiError, EventBuffer, Framer, Tally, json};

use super::{
    answer::{Heading, Kind, finish_reason},
    logprobs::{self, Places},
    options::Form,
    usage::UsageCounts,
};

const DONE: &[u8] = b"[DONE]";

/// Pieces become chunks.
#[derive(Debug)]
pub struct OpenAiFramer {
    kind: Kind,
    /// Of every chunk, up to its choices: written once.
    head: Vec<u8>,
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

/// What begins every chunk.
#[derive(Serialize)]
struct Head<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    system_fingerprint: Option<&'a str>,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Value,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct TextChoice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Value,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Delta<'a> {
    Begin { role: &'static str, content: &'static str },
    Reasoning { reasoning_content: &'a str },
    Content { content: &'a str },
    Call { tool_calls: [CallPart<'a>; 1] },
    Nothing {},
}

/// The first part of a call has id, type and name.
#[derive(Serialize)]
struct CallPart<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionPart<'a>,
}

#[derive(Serialize)]
struct FunctionPart<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl<'a> CallPart<'a> {
    fn of(delta: &'a ToolCallDelta) -> Self {
        let ToolCallDelta { index, id, name, arguments } = delta;
        let is_first = !(id.is_empty() && name.is_empty());
        Self {
            index: *index,
            id: is_first.then_some(id.as_str()),
            kind: is_first.then_some("function"),
            function: FunctionPart { name: is_first.then_some(name.as_str()), arguments },
        }
    }
}

impl OpenAiFramer {
    /// Of one request.
    pub fn new(heading: &Heading, form: Form) -> Self {
        let Heading { kind, id, created, model, fingerprint } = heading;
        let object = match kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        };
        let system_fingerprint = fingerprint.as_deref();
        let mut head = Vec::new();
        json(&mut head, &Head { id, object, created: *created, model, system_fingerprint });
        // more fields follow
        head.pop();
        head.extend_from_slice(b",\"choices\":[");
        let tally = Tally::new(form.answers as usize);
        let choices = vec![Progress::default(); form.choices()];
        Self { kind: *kind, head, form, tally, choices, finished: 0 }
    }

    fn chat(&mut self, piece: &GenerateResponse, events: &mut EventBuffer) {
        let index = piece.index;
        let chunk = |delta, logprobs, finish_reason| ChatChoice { index, delta, logprobs, finish_reason };
        let begun = self.choices.get_mut(index as usize).map(|progress| &mut progress.begun);
        if begun.is_some_and(|begun| !std::mem::replace(begun, true)) {
            let begin = Delta::Begin { role: "assistant", content: "" };
            self.chunk(&chunk(begin, Value::Null, None), events);
        }
        let mut logprobs = match piece.logprobs.as_slice() {
            [] => Value::Null,
            tokens => logprobs::chat(tokens),
        };
        let reason = finish_reason(piece.finish_reason());
        let reasoning = Some(piece.reasoning.as_str()).filter(|text| !text.is_empty());
        let reasoning = reasoning.map(|reasoning_content| Delta::Reasoning { reasoning_content });
        let content = Some(piece.text.as_str()).filter(|text| !text.is_empty());
        let content = content.map(|content| Delta::Content { content });
        let calls = piece.tool_calls.iter().map(|call| Delta::Call { tool_calls: [CallPart::of(call)] });
        let mut deltas = reasoning.into_iter().chain(content).chain(calls).peekable();
        // tokens whose text is not certain yet have their probabilities all the same
        if deltas.peek().is_none() && !logprobs.is_null() && reason.is_none() {
            self.chunk(&chunk(Delta::Nothing {}, logprobs.take(), None), events);
        }
        for delta in deltas {
            self.chunk(&chunk(delta, logprobs.take(), None), events);
        }
        if reason.is_some() {
            self.chunk(&chunk(Delta::Nothing {}, logprobs.take(), reason), events);
        }
    }

    fn completion(&mut self, piece: &GenerateResponse, events: &mut EventBuffer) {
        let index = piece.index;
        let text = match piece.prompt_text.as_str() {
            "" => Cow::Borrowed(piece.text.as_str()),
            prompt => Cow::Owned(format!("{prompt}{}", piece.text)),
        };
        let has_logprobs = !(piece.logprobs.is_empty() && piece.prompt_logprobs.is_empty());
        let mut logprobs = match self.choices.get_mut(index as usize) {
            Some(progress) if has_logprobs => {
                progress.places.completion(&piece.prompt_logprobs, &piece.logprobs)
            }
            _ => Value::Null,
        };
        let finish_reason = finish_reason(piece.finish_reason());
        if !text.is_empty() || (!logprobs.is_null() && finish_reason.is_none()) {
            let logprobs = logprobs.take();
            self.chunk(&TextChoice { index, text: &text, logprobs, finish_reason: None }, events);
        }
        if finish_reason.is_some() {
            self.chunk(&TextChoice { index, text: "", logprobs, finish_reason }, events);
        }
    }

    fn chunk(&self, choice: &impl Serialize, events: &mut EventBuffer) {
        let usage = self.form.continuous_usage.then(|| self.usage());
        events.event(None, |data| {
            data.extend_from_slice(&self.head);
            json(data, choice);
            self.end(usage, data);
        });
    }

    /// What ends every chunk.
    fn end(&self, usage: Option<UsageCounts>, data: &mut Vec<u8>) {
        data.push(b']');
        if self.form.include_usage {
            data.extend_from_slice(b",\"usage\":");
            json(data, &usage);
        }
        data.push(b'}');
    }

    fn usage(&self) -> UsageCounts {
        UsageCounts::from(self.tally.total())
    }
}

impl Framer for OpenAiFramer {
    fn piece(&mut self, piece: &GenerateResponse, events: &mut EventBuffer) {
        self.tally.piece(piece);
        match self.kind {
            Kind::Chat => self.chat(piece, events),
            Kind::Completion => self.completion(piece, events),
        }
        self.finished += usize::from(piece.finish_reason != 0);
        if self.is_whole() {
            if self.form.include_usage {
                events.event(None, |data| {
                    data.extend_from_slice(&self.head);
                    self.end(Some(self.usage()), data);
                });
            }
            events.event(None, |data| data.extend_from_slice(DONE));
        }
    }

    fn is_whole(&self) -> bool {
        self.finished == self.form.choices()
    }

    fn failure(&self, error: &ApiError, events: &mut EventBuffer) {
        events.json(None, &error.json());
    }

    fn idle(&self, events: &mut EventBuffer) {
        events.comment();
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
        let mut framer = OpenAiFramer::new(&heading, form);
        let mut events = EventBuffer::default();
        pieces.iter().for_each(|piece| framer.piece(piece, &mut events));
        assert!(framer.is_whole());
        let sent = String::from_utf8(events.take().into()).unwrap();
        let events = sent.strip_suffix("\n\n").unwrap().split("\n\n");
        events.map(|event| event.strip_prefix("data: ").unwrap()).collect::<Vec<_>>().join("\n")
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

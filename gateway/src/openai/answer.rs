//! Answers of both endpoints: collected into one object, or as server-sent events.
use axum::{
    Json,
    extract::Request,
    response::{IntoResponse, Response},
};
use belay_proto::inference::FinishReason;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    edge::{self, Answer, Answers, ApiError, Asked, unix_seconds},
    life::Choices,
    observe::Record,
    request_id::RequestId,
    serve::App,
};

use super::{
    logprobs::{self, Places},
    options::Form,
    stream::OpenAiFramer,
    usage::UsageCounts,
};

/// Which endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
        }
    }
}

/// Translates a request body, once.
pub type Translate = fn(&Map<String, Value>) -> Result<Asked<Form>, ApiError>;

/// What every chunk and answer of one request repeats.
#[derive(Clone, Debug)]
pub struct Heading {
    /// Which endpoint.
    pub kind: Kind,
    /// `chatcmpl-…` or `cmpl-…`
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
    /// Served model name.
    pub model: String,
    /// Revision of the model's deployment that the answer began with.
    pub fingerprint: Option<String>,
}

impl Heading {
    fn new(kind: Kind, choices: &Choices) -> Self {
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Completion => "cmpl",
        };
        let id = format!("{prefix}-{}", Uuid::new_v4().simple());
        let fingerprint = choices.revision().map(|revision| format!("fp_{revision}"));
        Self { kind, id, created: unix_seconds(), model: choices.model().to_owned(), fingerprint }
    }
}

/// OpenAI's name of a finish reason; `None` while the answer goes on.
pub fn finish_reason(reason: FinishReason) -> Option<&'static str> {
    match reason {
        FinishReason::Unspecified => None,
        FinishReason::Stop => Some("stop"),
        FinishReason::Length => Some("length"),
        FinishReason::ToolCalls => Some("tool_calls"),
    }
}

/// Serves a request of either endpoint: reads, generates, answers; the record sees how it ends.
pub async fn serve(
    app: App,
    id: RequestId,
    request: Request,
    kind: Kind,
    read: Translate,
) -> Result<Response, ApiError> {
    let mut record = Record::begin(&app.dispatcher.metrics, &app.flights, id.clone(), kind.path());
    let begun = edge::begin(&app, &id, request, read, &mut record).await;
    let begun = begun.inspect_err(|error| record.outcome(error.status.as_u16()))?;
    let heading = Heading::new(kind, &begun.choices);
    let form = begun.form;
    if form.stream {
        return Ok(edge::respond(OpenAiFramer::new(&heading, form), begun, record));
    }
    let answers = edge::whole(begun, form.answers as usize, &mut record).await?;
    Ok(Json(object(answers, &heading, form)).into_response())
}

fn object(answers: Answers, heading: &Heading, form: Form) -> Value {
    let Heading { kind, id, created, model, fingerprint } = heading;
    let object = match kind {
        Kind::Chat => "chat.completion",
        Kind::Completion => "text_completion",
    };
    let usage = UsageCounts::from(answers.tally.total());
    let choices = answers.answers.into_iter().enumerate().map(|(index, answer)| match kind {
        Kind::Chat => chat_choice(index, answer, form),
        Kind::Completion => completion_choice(index, answer, form),
    });
    json!({ "id": id, "object": object, "created": created, "model": model, "system_fingerprint": fingerprint,
            "choices": choices.collect::<Value>(), "usage": usage })
}

fn chat_choice(index: usize, answer: Answer, form: Form) -> Value {
    let calls: Vec<Value> = answer
        .tool_calls
        .into_iter()
        .map(|call| {
            let function = json!({ "name": call.name, "arguments": call.arguments });
            json!({ "id": call.id, "type": "function", "function": function })
        })
        .collect();
    let content = (calls.is_empty() || !answer.text.is_empty()).then_some(answer.text);
    let mut message = json!({ "role": "assistant", "content": content });
    if !answer.reasoning.is_empty() {
        message["reasoning_content"] = answer.reasoning.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    let logprobs = form.logprobs.then(|| logprobs::chat(&answer.logprobs));
    let finish_reason = finish_reason(answer.finish_reason);
    json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason })
}

fn completion_choice(index: usize, answer: Answer, form: Form) -> Value {
    let text = answer.prompt_text + &answer.text;
    let logprobs =
        form.logprobs.then(|| Places::default().completion(&answer.prompt_logprobs, &answer.logprobs));
    let finish_reason = finish_reason(answer.finish_reason);
    json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason })
}

//! Answers of both endpoints: collected into one object, or as server-sent events.
use axum::{
    Json,
    extract::Request,
    response::{IntoResponse, Response},
};
use belay_proto::inference::{FinishReason, GenerateResponse, Usage};
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    life::{Call, Failure, Generation},
    observe::Record,
    request_id::RequestId,
    serve::App,
};

use super::{ApiError, body, options::Options, sse, unix_seconds};

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
pub type Translate = fn(&Map<String, Value>) -> Result<(Options, Call), ApiError>;

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
}

impl Heading {
    fn new(kind: Kind, model: &str) -> Self {
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Completion => "cmpl",
        };
        let id = format!("{prefix}-{}", Uuid::new_v4().simple());
        Self { kind, id, created: unix_seconds(), model: model.to_owned() }
    }
}

/// Token counts in OpenAI's shape.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct UsageCounts {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
}

impl From<Usage> for UsageCounts {
    fn from(usage: Usage) -> Self {
        let Usage { prompt_tokens, completion_tokens, .. } = usage;
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
        }
    }
}

/// OpenAI's name of a finish reason; `None` while the answer goes on.
pub fn finish_reason(piece: &GenerateResponse) -> Option<&'static str> {
    match piece.finish_reason() {
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
    match begin(&app, &id, request, read, &mut record).await {
        Ok((options, generation, first)) => {
            let heading = Heading::new(kind, generation.model());
            if options.stream {
                return Ok(sse::response(heading, options.include_usage, generation, first, record));
            }
            let answer = collect(generation, first, &mut record).await.map_err(ApiError::from);
            record.outcome(answer.as_ref().err().map_or(200, |error| error.status.as_u16()));
            Ok(Json(answer?.json(&heading)).into_response())
        }
        Err(error) => {
            record.outcome(error.status.as_u16());
            Err(if kind == Kind::Chat { error.about_messages() } else { error })
        }
    }
}

/// Up to the first piece: what goes wrong until then is answered by a status of its own.
async fn begin(
    app: &App,
    id: &RequestId,
    request: Request,
    read: Translate,
    record: &mut Record,
) -> Result<(Options, Generation, Option<GenerateResponse>), ApiError> {
    let bytes = body::read(request.into_body(), app.max_body_bytes, app.body_time).await?;
    let (options, mut call) = read(&body::object(bytes).await?)?;
    call.set_request_id(&id.0);
    let mut generation = Generation::new(app.dispatcher.clone(), call)?;
    record.model(generation.model());
    let first = generation.next().await.transpose()?;
    Ok((options, generation, first))
}

/// A whole answer.
#[derive(Debug, Default)]
struct Answer {
    text: String,
    reasoning: String,
    finish_reason: Option<&'static str>,
    usage: Usage,
}

async fn collect(
    mut generation: Generation,
    first: Option<GenerateResponse>,
    record: &mut Record,
) -> Result<Answer, Failure> {
    let mut answer = Answer::default();
    let mut next = first;
    while let Some(piece) = next {
        record.piece(&piece);
        answer.text.push_str(&piece.text);
        answer.reasoning.push_str(&piece.reasoning);
        answer.finish_reason = finish_reason(&piece);
        answer.usage = piece.usage.unwrap_or(answer.usage);
        next = generation.next().await.transpose()?;
    }
    Ok(answer)
}

impl Answer {
    fn json(self, heading: &Heading) -> Value {
        let Heading { kind, id, created, model } = heading;
        let (object, choice) = match kind {
            Kind::Chat => {
                let mut message = json!({ "role": "assistant", "content": self.text });
                if !self.reasoning.is_empty() {
                    message["reasoning_content"] = self.reasoning.into();
                }
                ("chat.completion", json!({ "index": 0, "message": message }))
            }
            Kind::Completion => ("text_completion", json!({ "index": 0, "text": self.text })),
        };
        let mut choice = choice;
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = self.finish_reason.into();
        let usage = UsageCounts::from(self.usage);
        json!({ "id": id, "object": object, "created": created, "model": model, "choices": [choice], "usage": usage })
    }
}

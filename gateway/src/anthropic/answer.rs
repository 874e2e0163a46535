//! `/v1/messages`.
use axum::{
    Extension, Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use belay_proto::inference::{FinishReason, Usage, generate_response::StoppedBy};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    edge::{self, Answer, ApiError},
    observe::Record,
    request_id::RequestId,
    serve::App,
};

use super::{
    error,
    request::{self, Form},
    stream::AnthropicFramer,
};

const PATH: &str = "/v1/messages";

/// The handler.
pub async fn create(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Response {
    error::respond(serve(&app, &id, request).await, &id)
}

async fn serve(app: &App, id: &RequestId, request: Request) -> Result<Response, ApiError> {
    let mut record = Record::begin(&app.dispatcher.metrics, &app.flights, id.clone(), PATH);
    let begun = edge::begin(app, id, request, request::read, &mut record).await;
    let begun = begun.inspect_err(|error| record.outcome(error.status.as_u16()))?;
    let model = begun.choices.model().to_owned();
    let form = begun.form;
    if form.stream {
        let framer = AnthropicFramer::new(message_id(), model, form, id.clone());
        return Ok(edge::respond(framer, begun, record));
    }
    let answers = edge::whole(begun, 1, &mut record).await?;
    let usage = answers.tally.total();
    let answer = answers.answers.into_iter().next().unwrap_or_default();
    Ok(Json(message(answer, &model, usage, form)).into_response())
}

fn message_id() -> String {
    format!("msg_{}", Uuid::new_v4().simple())
}

/// The message as it is before there is anything in it.
pub fn empty(id: &str, model: &str, usage: Usage) -> Value {
    json!({ "id": id, "type": "message", "role": "assistant", "model": model, "content": [], "stop_reason": null,
            "stop_sequence": null, "usage": usage_counts(usage) })
}

fn message(answer: Answer, model: &str, usage: Usage, form: Form) -> Value {
    let mut message = empty(&message_id(), model, usage);
    let stop = stop(answer.finish_reason, answer.stopped_by);
    let mut content = Vec::new();
    if !answer.reasoning.is_empty() {
        let thinking = if form.hides_thinking { String::new() } else { answer.reasoning };
        content.push(json!({ "type": "thinking", "thinking": thinking, "signature": "" }));
    }
    if !answer.text.is_empty() {
        content.push(json!({ "type": "text", "text": answer.text }));
    }
    for call in answer.tool_calls {
        let input = input(&call.arguments);
        content.push(json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": input }));
    }
    message["content"] = content.into();
    message["stop_reason"] = stop["stop_reason"].clone();
    message["stop_sequence"] = stop["stop_sequence"].clone();
    message
}

/// A call's input is an object here. Arguments that are none, because they broke off or the model wrote something else,
/// are kept as text.
fn input(arguments: &str) -> Value {
    match serde_json::from_str(arguments) {
        Ok(object @ Value::Object(_)) => object,
        _ if arguments.is_empty() => json!({}),
        _ => json!({ "arguments": arguments }),
    }
}

/// Why the message ended.
pub fn stop(reason: FinishReason, stopped_by: Option<StoppedBy>) -> Value {
    let (reason, sequence) = match (reason, stopped_by) {
        (FinishReason::Unspecified, _) => (None, None),
        (FinishReason::Stop, Some(StoppedBy::StopString(text))) => (Some("stop_sequence"), Some(text)),
        (FinishReason::Stop, _) => (Some("end_turn"), None),
        (FinishReason::Length, _) => (Some("max_tokens"), None),
        (FinishReason::ToolCalls, _) => (Some("tool_use"), None),
    };
    json!({ "stop_reason": reason, "stop_sequence": sequence })
}

/// Tokens in Anthropic's terms: what was cached does not count as input.
pub fn usage_counts(usage: Usage) -> Value {
    let Usage { prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens } = usage;
    json!({ "input_tokens": prompt_tokens.saturating_sub(cached_tokens), "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached_tokens, "output_tokens": completion_tokens,
            "output_tokens_details": { "thinking_tokens": reasoning_tokens } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::ToolCall;

    #[test]
    fn a_whole_message() {
        let call =
            |arguments: &str| ToolCall { id: "c".into(), name: "f".into(), arguments: arguments.into() };
        let answer = Answer {
            reasoning: "hm".into(),
            text: "so".into(),
            tool_calls: vec![call("{\"a\": 1}"), call("{\"a\": "), call("")],
            finish_reason: FinishReason::ToolCalls,
            ..Answer::default()
        };
        let usage = Usage { prompt_tokens: 10, completion_tokens: 5, cached_tokens: 8, reasoning_tokens: 2 };
        let mut message = message(answer, "m", usage, Form::default());
        message["id"] = json!("msg_1");
        insta::assert_json_snapshot!(message);
    }

    #[test]
    fn reasons() {
        let of = |reason, by| {
            let stop = stop(reason, by);
            (stop["stop_reason"].clone(), stop["stop_sequence"].clone())
        };
        let stopped = Some(StoppedBy::StopString("x".into()));
        assert_eq!(of(FinishReason::Stop, stopped), (json!("stop_sequence"), json!("x")));
        assert_eq!(of(FinishReason::Stop, Some(StoppedBy::StopId(3))), (json!("end_turn"), Value::Null));
        assert_eq!(of(FinishReason::Length, None), (json!("max_tokens"), Value::Null));
    }
}

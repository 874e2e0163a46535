//! `/v1/chat/completions`.
use axum::{
    Extension,
    extract::{Request, State},
    response::Response,
};
use belay_proto::inference::{ChatRequest, Effort, Options};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    edge::{
        ApiError, Asked, Names,
        fields::{self, Unsupported},
    },
    life::Call,
    request_id::RequestId,
    serve::App,
};

use super::{
    answer::{self, Kind},
    constraint, messages,
    options::{Common, Form, max_tokens_name},
    tools::{self, Tools},
};

const UNSUPPORTED: &[Unsupported] = &[
    ("modalities", |modalities| *modalities == serde_json::json!(["text"])),
    ("audio", fields::never),
    ("web_search_options", fields::never),
    ("verbosity", |verbosity| verbosity == "medium"),
    ("echo", fields::no),
    ("chat_template", fields::never),
    ("documents", fields::empty),
];

/// Most likely tokens that may be asked for in each place.
pub const MOST_TOP_LOGPROBS: u32 = 20;

const NAMES: [(&str, &str); 5] = [
    ("prompt", "messages"),
    ("functions", "tools"),
    ("effort", "reasoning_effort"),
    ("stop_ids", "stop_token_ids"),
    ("logprobs", "top_logprobs"),
];

/// The handler.
pub async fn create(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    answer::serve(app, id, request, Kind::Chat, read).await
}

/// A request body, translated.
pub fn read(object: &Map<String, Value>) -> Result<Asked<Form>, ApiError> {
    let common = Common::read(object)?;
    let (mut call, names) = conversation(object)?;
    let param = max_tokens_name(object);
    if common.sampling.max_tokens == Some(0) {
        return Err(ApiError::invalid(param, format!("'{param}' must be at least 1")));
    }
    let raw: RawLogprobs = fields::read(object)?;
    let wanted = raw.logprobs.unwrap_or(false);
    let top = fields::within("top_logprobs", raw.top_logprobs, 0..=MOST_TOP_LOGPROBS)?.unwrap_or(0);
    if top > 0 && !wanted {
        return Err(ApiError::invalid("top_logprobs", "'top_logprobs' is only allowed with 'logprobs'"));
    }
    let constraint = call.options.take().and_then(|options| options.constraint);
    let options = Options { constraint, logprobs: wanted.then_some(top), ..common.options };
    call.model = common.model;
    call.sampling = Some(common.sampling);
    call.options = Some(options);
    let form = Form { logprobs: wanted, ..common.form };
    Ok(Asked { form, calls: vec![Call::Chat(call)], names, session: common.session })
}

#[derive(Deserialize)]
struct RawLogprobs {
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
}

#[derive(Deserialize)]
struct Raw {
    messages: Option<Vec<messages::RawMessage>>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    reasoning_effort: Option<String>,
    thinking: Option<Thinking>,
    chat_template_kwargs: Option<TemplateArguments>,
    continue_final_message: Option<bool>,
    add_generation_prompt: Option<bool>,
}

#[derive(Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Default, Deserialize)]
struct TemplateArguments {
    thinking: Option<bool>,
    enable_thinking: Option<bool>,
    reasoning_effort: Option<String>,
    drop_thinking: Option<bool>,
}

/// Everything that decides the prompt; the constraint among it is in the options.
pub fn conversation(object: &Map<String, Value>) -> Result<(ChatRequest, Names), ApiError> {
    fields::refuse(object, UNSUPPORTED)?;
    fields::refuse(object, tools::UNSUPPORTED)?;
    fields::refuse(object, constraint::UNSUPPORTED)?;
    let raw: Raw = fields::read(object)?;
    let goes_on = raw.continue_final_message.unwrap_or(false);
    // a prompt that ends with the last message as it is cannot be asked for, but for the reply's own beginning
    if raw.add_generation_prompt.is_some_and(|adds| adds == goes_on) {
        let message = "'add_generation_prompt' must be the opposite of 'continue_final_message'";
        return Err(ApiError::invalid("add_generation_prompt", message));
    }
    let messages = raw.messages.ok_or_else(|| ApiError::missing("messages"))?;
    let messages = messages::translate(messages, goes_on)?;
    let Tools { functions, choice } = Tools::read(raw.tools, raw.tool_choice, raw.parallel_tool_calls)?;
    let template = raw.chat_template_kwargs.unwrap_or_default();
    let (thinking, effort) = thinking(raw.reasoning_effort, raw.thinking, &template)?;
    let (constraint, mut names) = constraint::read(object)?;
    names.extend(NAMES);
    let call = ChatRequest {
        messages,
        thinking,
        effort: effort.into(),
        functions,
        tool_choice: choice,
        keep_reasoning: template.drop_thinking == Some(false),
        options: Some(Options { constraint, ..Options::default() }),
        ..ChatRequest::default()
    };
    Ok((call, names))
}

/// Whether the model thinks before it answers, and how much. Effort `none` is off in any case; then the template's
/// arguments count, then `thinking`; an effort alone means on; nothing: the deployment's default.
fn thinking(
    effort: Option<String>,
    thinking: Option<Thinking>,
    template: &TemplateArguments,
) -> Result<(Option<bool>, Effort), ApiError> {
    let (param, effort) = match &effort {
        Some(effort) => ("reasoning_effort", Some(effort.as_str())),
        None => ("chat_template_kwargs.reasoning_effort", template.reasoning_effort.as_deref()),
    };
    let level = match effort {
        None | Some("none") => Effort::Unspecified,
        Some("minimal" | "low" | "medium") => Effort::Low,
        Some("high" | "xhigh") => Effort::High,
        Some("max") => Effort::Max,
        Some(other) => {
            let shown: String = other.chars().take(40).collect();
            let message =
                format!("'{param}' must be none, minimal, low, medium, high, xhigh or max, not '{shown}'");
            return Err(ApiError::invalid(param, message));
        }
    };
    let switch = match thinking.map(|thinking| thinking.kind) {
        None => None,
        Some(Some(kind)) if kind == "enabled" => Some(true),
        Some(Some(kind)) if kind == "disabled" => Some(false),
        Some(_) => {
            let message = "'thinking.type' must be enabled or disabled";
            return Err(ApiError::invalid("thinking.type", message));
        }
    };
    // as in vLLM, one of the two that is on is enough
    let by_template = template.thinking.into_iter().chain(template.enable_thinking).reduce(|a, b| a || b);
    let is_on = match effort {
        Some("none") => Some(false),
        _ => by_template.or(switch).or(effort.map(|_| true)),
    };
    Ok((is_on, level))
}

#[cfg(test)]
mod tests;

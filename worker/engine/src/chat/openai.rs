//! An OpenAI chat completion request as a conversation.
//!
//! Besides OpenAI's own fields: vLLM's `chat_template_kwargs` (`thinking`, `enable_thinking`, `reasoning_effort`,
//! `drop_thinking`) and `continue_final_message`, DeepSeek's `thinking` (`{"type": "enabled"}` or `"disabled"`). All
//! other fields are about sampling or the answer's form, and none of the prompt.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::object::{Object, object, optional};
use super::{ChatError, Conversation, Effort, Encoding, Message, ToolChoice};

/// What a deployment settles for requests that do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Edition of the format that the checkpoint was trained on.
    pub encoding: Encoding,
    /// Think if the request does not say.
    pub thinking: bool,
}

/// The conversation of an OpenAI chat completion request.
///
/// # Errors
/// [`ChatError::Invalid`] with the path of the field that is not of its form; `request` if the whole is none.
pub fn from_openai(request: &str, defaults: Defaults) -> Result<Conversation, ChatError> {
    let invalid = |field: &str, error: serde_json::Error| ChatError::Invalid {
        field: field.into(),
        message: error.to_string(),
    };
    let mut deserializer = serde_json::Deserializer::from_str(request);
    let parsed: Result<Object<Request>, _> = serde_path_to_error::deserialize(&mut deserializer);
    let Object(request) = parsed.map_err(|error| match error.path().to_string().as_str() {
        path if path != "." && error.inner().is_data() => invalid(path, error.into_inner()),
        // of the object itself, or no JSON at all
        _ => invalid("request", error.into_inner()),
    })?;
    deserializer.end().map_err(|error| invalid("request", error))?;
    request.into_conversation(defaults)
}

#[derive(Deserialize)]
struct Request {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default, deserialize_with = "tool_choice")]
    tool_choice: ToolChoice,
    #[serde(default, deserialize_with = "optional")]
    response_format: Option<ResponseFormat>,
    #[serde(default)]
    reasoning_effort: Option<String>,
    #[serde(default, deserialize_with = "optional")]
    thinking: Option<Switch>,
    #[serde(default, deserialize_with = "optional")]
    chat_template_kwargs: Option<TemplateArguments>,
    #[serde(default)]
    continue_final_message: Option<bool>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema {
        #[serde(deserialize_with = "object")]
        json_schema: JsonSchema,
    },
}

#[derive(Deserialize)]
struct JsonSchema {
    #[serde(default)]
    schema: Option<Value>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Switch {
    Enabled,
    Disabled,
}

#[derive(Default, Deserialize)]
struct TemplateArguments {
    #[serde(default)]
    thinking: Option<bool>,
    #[serde(default)]
    enable_thinking: Option<bool>,
    #[serde(default)]
    reasoning_effort: Option<String>,
    #[serde(default)]
    drop_thinking: Option<bool>,
}

fn tool_choice<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ToolChoice, D::Error> {
    let choice = Value::deserialize(deserializer)?;
    let name = choice.pointer("/function/name").and_then(Value::as_str);
    match (choice.as_str(), choice.get("type").and_then(Value::as_str), name) {
        (Some("auto"), ..) => Ok(ToolChoice::Auto),
        (Some("none"), ..) => Ok(ToolChoice::None),
        (Some("required"), ..) => Ok(ToolChoice::Required),
        (None, Some("function"), Some(name)) => Ok(ToolChoice::Function(name.into())),
        _ if choice.is_null() => Ok(ToolChoice::Auto),
        _ => Err(de::Error::custom(
            "expected \"auto\", \"none\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}",
        )),
    }
}

impl Request {
    fn into_conversation(self, defaults: Defaults) -> Result<Conversation, ChatError> {
        let arguments = self.chat_template_kwargs.unwrap_or_default();
        let switches = [arguments.thinking, arguments.enable_thinking];
        // as in vLLM, one switch that is on is enough
        let switch = switches.into_iter().flatten().reduce(|one, other| one || other);
        let thinking = switch.or(self.thinking.map(|switch| matches!(switch, Switch::Enabled)));
        let effort = self.reasoning_effort.or(arguments.reasoning_effort);
        let (thinking, effort) = Effort::of_request(thinking, effort.as_deref(), defaults.thinking);
        let mut messages = self.messages;
        if self.continue_final_message == Some(true) {
            match messages.last_mut() {
                Some(last) if last.role == "assistant" => last.prefix = true,
                _ => {
                    return Err(ChatError::Invalid {
                        field: "continue_final_message".into(),
                        message: "the last message is not the assistant's".into(),
                    });
                }
            }
        }
        Ok(Conversation {
            messages,
            tools: self.tools.unwrap_or_default(),
            tool_choice: self.tool_choice,
            response_format: match self.response_format {
                Some(ResponseFormat::JsonSchema { json_schema }) => json_schema.schema,
                // the format has a place for a schema, not for the bare wish for JSON
                Some(ResponseFormat::Text | ResponseFormat::JsonObject) | None => None,
            },
            encoding: defaults.encoding,
            thinking,
            effort,
            drop_thinking: arguments.drop_thinking.unwrap_or(true),
        })
    }
}

//! Request bodies, translated.
use std::collections::HashSet;

use belay_proto::inference::{
    ChatRequest, Effort, Options, Sampling, ToolChoice, options::Constraint, tool_choice::Mode,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    edge::{
        ApiError, Asked, Names,
        fields::{self, Unsupported},
    },
    life::Call,
    openai::tools,
};

use super::content::{self, RawMessage};

const UNSUPPORTED: &[Unsupported] = &[("container", fields::never), ("mcp_servers", fields::empty)];

const NAMES: [(&str, &str); 5] = [
    ("prompt", "messages"),
    ("functions", "tools"),
    ("stop", "stop_sequences"),
    ("effort", "output_config.effort"),
    ("json_schema", "output_config.format.schema"),
];

/// Smallest `budget_tokens` of the API. The budget itself is not enforced: the model has efforts, not budgets.
const LEAST_BUDGET: u32 = 1024;

/// What the answer looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Answer as server-sent events.
    pub stream: bool,
    /// Do not show what the model thinks.
    pub hides_thinking: bool,
}

#[derive(Deserialize)]
struct RawSampling {
    model: Option<String>,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    stop_sequences: Option<Value>,
    stream: Option<bool>,
}

/// A request for a message.
pub fn read(object: &Map<String, Value>) -> Result<Asked<Form>, ApiError> {
    let raw: RawSampling = fields::read(object)?;
    let model = raw.model.filter(|name| !name.is_empty()).ok_or_else(|| ApiError::missing("model"))?;
    let max_tokens = raw.max_tokens.ok_or_else(|| ApiError::missing("max_tokens"))?;
    if max_tokens == 0 {
        return Err(ApiError::invalid("max_tokens", "'max_tokens' must be at least 1"));
    }
    let stop = raw.stop_sequences.filter(|stop| !stop.is_null());
    let sampling = Sampling {
        temperature: fields::within("temperature", raw.temperature, 0.0..=1.0)?,
        top_p: fields::positive_to("top_p", raw.top_p, 1.0)?,
        top_k: raw.top_k.map(fields::top_k).transpose()?,
        max_tokens: Some(max_tokens),
        stop: stop.map(|stop| fields::stop_strings("stop_sequences", stop)).transpose()?.unwrap_or_default(),
        ..Sampling::default()
    };
    let (call, hides_thinking) = conversation(object)?;
    let call = ChatRequest { model, sampling: Some(sampling), ..call };
    let form = Form { stream: raw.stream.unwrap_or(false), hides_thinking };
    Ok(Asked { form, calls: vec![Call::Chat(call)], names: names(), session: None })
}

/// For errors that only workers find.
pub fn names() -> Names {
    NAMES.to_vec()
}

#[derive(Deserialize)]
struct Raw {
    messages: Option<Vec<RawMessage>>,
    system: Option<Value>,
    tools: Option<Vec<RawTool>>,
    tool_choice: Option<RawToolChoice>,
    thinking: Option<RawThinking>,
    output_config: Option<RawOutput>,
    output_format: Option<RawFormat>,
}

/// Everything that decides the prompt; and whether thinking is to be hidden.
pub fn conversation(object: &Map<String, Value>) -> Result<(ChatRequest, bool), ApiError> {
    fields::refuse(object, UNSUPPORTED)?;
    let raw: Raw = fields::read(object)?;
    let messages = raw.messages.ok_or_else(|| ApiError::missing("messages"))?;
    let messages = content::translate(raw.system, messages)?;
    let (functions, names) = functions(raw.tools.unwrap_or_default())?;
    let tool_choice = raw.tool_choice.map(|choice| choice.translate(&names)).transpose()?;
    let thinking = raw.thinking.map(RawThinking::read).transpose()?.unwrap_or_default();
    let RawOutput { effort, format } = raw.output_config.unwrap_or_default();
    let constraint = match format.or(raw.output_format) {
        Some(format) => Some(format.constraint()?),
        None => None,
    };
    let call = ChatRequest {
        messages,
        thinking: Some(thinking.is_on),
        effort: effort.as_deref().map(read_effort).transpose()?.unwrap_or_default().into(),
        functions,
        tool_choice,
        options: Some(Options { constraint, ..Options::default() }),
        ..ChatRequest::default()
    };
    Ok((call, thinking.is_hidden))
}

#[derive(Deserialize)]
struct RawTool {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<Value>,
    description: Option<String>,
    input_schema: Option<Value>,
}

/// JSON text of each tool as OpenAI has functions, which is what the model was trained on; and their names.
fn functions(raw: Vec<RawTool>) -> Result<(Vec<String>, HashSet<String>), ApiError> {
    let (mut functions, mut names) = (Vec::with_capacity(raw.len()), HashSet::with_capacity(raw.len()));
    for (index, tool) in raw.into_iter().enumerate() {
        let path = |field: &str| format!("tools[{index}].{field}");
        if tool.kind.is_some_and(|kind| kind != "custom") {
            // tools that Anthropic's servers run
            return Err(ApiError::unsupported(path("type")));
        }
        let name = tools::check_name(&tool.name.unwrap_or_default(), &path("name"), &names)?;
        let schema = tool.input_schema.ok_or_else(|| ApiError::missing(&path("input_schema")))?;
        tools::check_schema(&schema, &path("input_schema"))?;
        let mut function = json!({ "name": name });
        if let Some(description) = tool.description {
            function["description"] = description.into();
        }
        function["parameters"] = schema;
        functions.push(function.to_string());
        names.insert(name);
    }
    Ok((functions, names))
}

#[derive(Deserialize)]
struct RawToolChoice {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

impl RawToolChoice {
    fn translate(self, names: &HashSet<String>) -> Result<ToolChoice, ApiError> {
        let mut choice = match self.kind.as_deref() {
            Some("auto") => ToolChoice { mode: Mode::Auto.into(), ..ToolChoice::default() },
            Some("none") => ToolChoice { mode: Mode::None.into(), ..ToolChoice::default() },
            Some("any") if names.is_empty() => {
                return Err(ApiError::invalid("tool_choice", "'tool_choice' needs 'tools'"));
            }
            Some("any") => ToolChoice { mode: Mode::Required.into(), ..ToolChoice::default() },
            Some("tool") => {
                let path = "tool_choice.name";
                tools::named(&self.name.ok_or_else(|| ApiError::missing(path))?, path, names)?
            }
            _ => {
                let message = "'tool_choice.type' must be auto, any, tool or none";
                return Err(ApiError::invalid("tool_choice.type", message));
            }
        };
        choice.single = self.disable_parallel_tool_use.unwrap_or(false);
        Ok(choice)
    }
}

#[derive(Deserialize)]
struct RawThinking {
    #[serde(rename = "type")]
    kind: Option<String>,
    budget_tokens: Option<u32>,
    display: Option<String>,
}

/// As in this API, a model does not think unless it is asked to.
#[derive(Default)]
struct Thinking {
    is_on: bool,
    is_hidden: bool,
}

impl RawThinking {
    fn read(self) -> Result<Thinking, ApiError> {
        let is_on = match self.kind.as_deref() {
            Some("enabled") => {
                let path = "thinking.budget_tokens";
                let budget = self.budget_tokens.ok_or_else(|| ApiError::missing(path))?;
                fields::within(path, Some(budget), LEAST_BUDGET..=u32::MAX)?;
                true
            }
            Some("adaptive" | "between_tools") => true,
            Some("disabled") => false,
            _ => {
                let message = "'thinking.type' must be enabled, disabled or adaptive";
                return Err(ApiError::invalid("thinking.type", message));
            }
        };
        match self.display.as_deref() {
            None | Some("summarized") => Ok(Thinking { is_on, is_hidden: false }),
            Some("omitted") => Ok(Thinking { is_on, is_hidden: true }),
            Some(_) => {
                let message = "'thinking.display' must be summarized or omitted";
                Err(ApiError::invalid("thinking.display", message))
            }
        }
    }
}

#[derive(Default, Deserialize)]
struct RawOutput {
    effort: Option<String>,
    format: Option<RawFormat>,
}

#[derive(Deserialize)]
struct RawFormat {
    #[serde(rename = "type")]
    kind: Option<String>,
    schema: Option<Value>,
}

impl RawFormat {
    fn constraint(self) -> Result<Constraint, ApiError> {
        if self.kind.as_deref() != Some("json_schema") {
            return Err(ApiError::unsupported("output_config.format.type"));
        }
        let path = "output_config.format.schema";
        let schema = self.schema.ok_or_else(|| ApiError::missing(path))?;
        tools::check_schema(&schema, path)?;
        Ok(Constraint::JsonSchema(schema.to_string()))
    }
}

fn read_effort(effort: &str) -> Result<Effort, ApiError> {
    match effort {
        "low" | "medium" => Ok(Effort::Low),
        "high" | "xhigh" => Ok(Effort::High),
        "max" => Ok(Effort::Max),
        _ => {
            let message = "'output_config.effort' must be low, medium, high, xhigh or max";
            Err(ApiError::invalid("output_config.effort", message))
        }
    }
}

#[cfg(test)]
mod tests;

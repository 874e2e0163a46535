//! From the terms of the wire to the engine's. Pure.

use belay_engine::chat::{self, Conversation, Defaults, Effort, ToolChoice};
use belay_engine::{Constraint, Grammar, Sampling, Stop};
use belay_proto::inference::options::Constraint as WireConstraint;
use belay_proto::inference::tool_choice::Mode;
use belay_proto::inference::{self, ChatRequest};
use tonic::Status;

use crate::grpc::errors;

/// Most texts of `choices`, and bytes of all of them: they become one regular expression.
const MAX_CHOICES: usize = 1024;
const MAX_CHOICES_BYTES: usize = 64 << 10;

/// How to choose tokens. `random_seed` stands in where the request has none.
#[must_use]
pub fn sampling(sampling: &inference::Sampling, random_seed: u64) -> Sampling {
    let default = Sampling::default();
    let mut logit_bias: Vec<(u32, f32)> = sampling.logit_bias.iter().map(|(id, bias)| (*id, *bias)).collect();
    logit_bias.sort_unstable_by_key(|(id, _)| *id);
    Sampling {
        temperature: sampling.temperature.unwrap_or(default.temperature),
        top_p: sampling.top_p.unwrap_or(default.top_p),
        top_k: sampling.top_k.unwrap_or(default.top_k),
        min_p: sampling.min_p.unwrap_or(default.min_p),
        presence_penalty: sampling.presence_penalty.unwrap_or(default.presence_penalty),
        frequency_penalty: sampling.frequency_penalty.unwrap_or(default.frequency_penalty),
        repetition_penalty: sampling.repetition_penalty.unwrap_or(default.repetition_penalty),
        logit_bias,
        seed: sampling.seed.unwrap_or(random_seed),
    }
}

/// When to end.
#[must_use]
pub fn stop(sampling: &inference::Sampling) -> Stop {
    Stop {
        max_tokens: sampling.max_tokens,
        min_tokens: sampling.min_tokens,
        strings: sampling.stop.clone(),
        ids: sampling.stop_ids.clone(),
        ignore_eos: sampling.ignore_eos,
    }
}

/// What the output must look like, from its beginning or behind the token `after`.
///
/// # Errors
/// INVALID_ARGUMENT naming the field.
pub fn constraint(options: &inference::Options, after: Option<u32>) -> Result<Option<Constraint>, Status> {
    let grammar = match &options.constraint {
        None | Some(WireConstraint::JsonObject(false)) => return Ok(None),
        Some(WireConstraint::JsonObject(true)) => Grammar::JsonObject,
        Some(WireConstraint::JsonSchema(text)) => Grammar::JsonSchema(json("json_schema", text)?),
        Some(WireConstraint::Regex(regex)) => Grammar::Regex(regex.clone()),
        Some(WireConstraint::Grammar(lark)) => Grammar::Lark(lark.clone()),
        Some(WireConstraint::Choices(choices)) => Grammar::Regex(alternation(&choices.texts)?),
    };
    Ok(Some(Constraint { grammar, after }))
}

fn json(field: &str, text: &str) -> Result<serde_json::Value, Status> {
    serde_json::from_str(text).map_err(|error| errors::invalid(field, format!("not JSON: {error}")))
}

/// A regular expression that matches these texts and nothing else.
fn alternation(texts: &[String]) -> Result<String, Status> {
    let bytes: usize = texts.iter().map(String::len).sum();
    if texts.is_empty() {
        return Err(errors::invalid("choices", "must not be empty"));
    }
    if texts.len() > MAX_CHOICES || bytes > MAX_CHOICES_BYTES {
        let message = format!(
            "at most {MAX_CHOICES} texts of {MAX_CHOICES_BYTES} bytes together, found {} of {bytes}",
            texts.len()
        );
        return Err(errors::invalid("choices", message));
    }
    let texts: Vec<String> = texts.iter().map(|text| escaped(text)).collect();
    Ok(format!("({})", texts.join("|")))
}

/// A text as a regular expression that matches it alone.
fn escaped(text: &str) -> String {
    let mut regex = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            regex.push('\\');
        }
        regex.push(c);
    }
    regex
}

/// Everything that decides the prompt of a chat request.
///
/// # Errors
/// INVALID_ARGUMENT naming the field.
pub fn conversation(
    request: ChatRequest,
    options: &inference::Options,
    defaults: Defaults,
) -> Result<Conversation, Status> {
    let effort = request.effort();
    let tool_choice = tool_choice(request.tool_choice.as_ref())?;
    let tools = request.functions.iter().enumerate().map(|(index, text)| {
        let function = json(&format!("functions[{index}]"), text)?;
        Ok(serde_json::json!({ "type": "function", "function": function }))
    });
    let response_format = match &options.constraint {
        Some(WireConstraint::JsonSchema(text)) => Some(json("json_schema", text)?),
        _ => None,
    };
    Ok(Conversation {
        tools: tools.collect::<Result<_, Status>>()?,
        messages: request.messages.into_iter().map(message).collect(),
        tool_choice,
        response_format,
        encoding: defaults.encoding,
        thinking: request.thinking.unwrap_or(defaults.thinking),
        effort: match effort {
            inference::Effort::Low => Effort::Low,
            inference::Effort::Max => Effort::Max,
            inference::Effort::Unspecified | inference::Effort::High => Effort::High,
        },
        drop_thinking: !request.keep_reasoning,
    })
}

fn tool_choice(choice: Option<&inference::ToolChoice>) -> Result<ToolChoice, Status> {
    let Some(choice) = choice else { return Ok(ToolChoice::Auto) };
    let mode = Mode::try_from(choice.mode)
        .map_err(|_| errors::invalid("tool_choice.mode", format!("{} is unknown", choice.mode)))?;
    match (mode, choice.function.as_str()) {
        (Mode::Function, "") => {
            Err(errors::invalid("tool_choice.function", "must be set with MODE_FUNCTION"))
        }
        (Mode::Function, name) => Ok(ToolChoice::Function(name.into())),
        (_, name) if !name.is_empty() => Err(errors::invalid(
            "tool_choice.function",
            format!("{name:?} is set, but the mode is not MODE_FUNCTION"),
        )),
        (Mode::Unspecified | Mode::Auto, _) => Ok(ToolChoice::Auto),
        (Mode::None, _) => Ok(ToolChoice::None),
        (Mode::Required, _) => Ok(ToolChoice::Required),
    }
}

fn message(message: inference::Message) -> chat::Message {
    let tool_calls = message
        .tool_calls
        .into_iter()
        .map(|call| chat::ToolCall {
            id: call.id,
            function: chat::FunctionCall { name: call.name, arguments: call.arguments },
        })
        .collect();
    chat::Message {
        role: message.role,
        content: message.content,
        reasoning: message.reasoning,
        tool_calls,
        tool_call_id: message.tool_call_id,
        prefix: message.prefix,
        ..chat::Message::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unset_is_the_models_own_distribution() {
        let found = sampling(&inference::Sampling::default(), 7);
        assert_eq!(found, Sampling { seed: 7, ..Sampling::default() });
        let asked = inference::Sampling {
            seed: Some(3),
            min_p: Some(0.1),
            logit_bias: [(9, 1.0), (2, -1.0)].into(),
            ..inference::Sampling::default()
        };
        let found = sampling(&asked, 7);
        assert_eq!((found.seed, found.min_p), (3, 0.1));
        assert_eq!(found.logit_bias, [(2, -1.0), (9, 1.0)], "ascending");
    }

    fn constrained(constraint: WireConstraint) -> Result<Option<Constraint>, Status> {
        let options = inference::Options { constraint: Some(constraint), ..inference::Options::default() };
        super::constraint(&options, Some(1))
    }

    #[test]
    fn constraints_are_read_or_refused_by_name() {
        assert_eq!(constrained(WireConstraint::JsonObject(false)).unwrap(), None);
        let object = constrained(WireConstraint::JsonObject(true)).unwrap().unwrap();
        assert_eq!(object, Constraint { grammar: Grammar::JsonObject, after: Some(1) });
        let schema = constrained(WireConstraint::JsonSchema("{".into())).unwrap_err();
        assert!(schema.message().starts_with("json_schema: not JSON"), "{schema}");
        let deep = constrained(WireConstraint::JsonSchema("[".repeat(1 << 20))).unwrap_err();
        assert!(deep.message().starts_with("json_schema: not JSON"), "{deep}");
        let choices = |texts: Vec<String>| constrained(WireConstraint::Choices(inference::Choices { texts }));
        let two = choices(vec!["a.b".into(), "c|d".into()]).unwrap().unwrap();
        assert_eq!(two.grammar, Grammar::Regex(r"(a\.b|c\|d)".into()));
        assert!(choices(vec![]).unwrap_err().message().starts_with("choices: "));
        assert!(choices(vec!["x".repeat(70_000)]).unwrap_err().message().starts_with("choices: at most"));
    }
}

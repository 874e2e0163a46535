//! `tools`, `tool_choice`, `parallel_tool_calls`.
use std::collections::HashSet;

use belay_proto::inference::{ToolChoice, tool_choice::Mode};
use serde_json::Value;

use crate::edge::{
    ApiError,
    fields::{self, Unsupported},
};

/// The API's older way to say the same.
pub const UNSUPPORTED: &[Unsupported] =
    &[("functions", fields::empty), ("function_call", |choice| choice == "none" || choice == "auto")];

const LONGEST_NAME: usize = 64;

/// What the model may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tools {
    /// JSON text of each `function`.
    pub functions: Vec<String>,
    /// Whether it has to.
    pub choice: Option<ToolChoice>,
}

impl Tools {
    /// Reads and checks the three parameters.
    pub fn read(
        tools: Option<Vec<Value>>,
        choice: Option<Value>,
        parallel: Option<bool>,
    ) -> Result<Self, ApiError> {
        let tools = tools.unwrap_or_default();
        let mut names = HashSet::with_capacity(tools.len());
        let mut functions = Vec::with_capacity(tools.len());
        for (index, tool) in tools.iter().enumerate() {
            let path = format!("tools[{index}]");
            if tool["type"] != "function" {
                return Err(match tool["type"].as_str() {
                    Some(_) => ApiError::unsupported(format!("{path}.type")),
                    None => ApiError::missing(&format!("{path}.type")),
                });
            }
            let function = &tool["function"];
            names.insert(check_function(function, &format!("{path}.function"), &names)?);
            functions.push(function.to_string());
        }
        let mut choice = choice.map(|choice| read_choice(&choice, &names)).transpose()?;
        if parallel == Some(false) {
            choice.get_or_insert_with(ToolChoice::default).single = true;
        }
        Ok(Self { functions, choice })
    }
}

/// Checks a function: its name, which no other has, and that its parameters are a schema.
fn check_function(function: &Value, path: &str, others: &HashSet<String>) -> Result<String, ApiError> {
    if !function.is_object() {
        return Err(ApiError::invalid(path, format!("'{path}' must be an object")));
    }
    let name = check_name(&function["name"], &format!("{path}.name"), others)?;
    let path = format!("{path}.parameters");
    check_schema(&function["parameters"], &path)?;
    Ok(name)
}

/// A name of at most 64 letters, digits, `_`, `-` or `.`, which no other tool has.
pub fn check_name(name: &Value, path: &str, others: &HashSet<String>) -> Result<String, ApiError> {
    let is_sane = |name: &&str| {
        (1..=LONGEST_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    match name.as_str().filter(is_sane) {
        Some(name) if others.contains(name) => {
            Err(ApiError::invalid(path, format!("'{path}': there are two tools named '{name}'")))
        }
        Some(name) => Ok(name.to_owned()),
        None if name.is_null() => Err(ApiError::missing(path)),
        None => {
            let message = format!("'{path}' must be 1 to {LONGEST_NAME} letters, digits, '_', '-' or '.'");
            Err(ApiError::invalid(path, message))
        }
    }
}

/// A JSON schema is an object; without one anything goes.
pub fn check_schema(schema: &Value, path: &str) -> Result<(), ApiError> {
    if schema.is_object() || schema.is_null() {
        return Ok(());
    }
    Err(ApiError::invalid(path, format!("'{path}' must be a JSON schema, which is an object")))
}

fn read_choice(choice: &Value, names: &HashSet<String>) -> Result<ToolChoice, ApiError> {
    let needs_tools = |mode: Mode| {
        if names.is_empty() {
            return Err(ApiError::invalid("tool_choice", "'tool_choice' needs 'tools'"));
        }
        Ok(ToolChoice { mode: mode.into(), ..ToolChoice::default() })
    };
    match (choice.as_str(), choice["type"].as_str()) {
        (Some("none"), _) => Ok(ToolChoice { mode: Mode::None.into(), ..ToolChoice::default() }),
        (Some("auto"), _) => Ok(ToolChoice { mode: Mode::Auto.into(), ..ToolChoice::default() }),
        (Some("required"), _) => needs_tools(Mode::Required),
        (None, Some("function")) => {
            let path = "tool_choice.function.name";
            let name = choice["function"]["name"].as_str().ok_or_else(|| ApiError::missing(path))?;
            named(name, path, names)
        }
        (None, Some(_)) => Err(ApiError::unsupported("tool_choice.type")),
        _ => {
            let message = "'tool_choice' must be none, auto, required or {\"type\": \"function\", \"function\": \
                           {\"name\": …}}";
            Err(ApiError::invalid("tool_choice", message))
        }
    }
}

/// The tool of this name must be called.
pub fn named(name: &str, path: &str, names: &HashSet<String>) -> Result<ToolChoice, ApiError> {
    if !names.contains(name) {
        let shown: String = name.chars().take(LONGEST_NAME).collect();
        return Err(ApiError::invalid(path, format!("'{path}': there is no tool named '{shown}'")));
    }
    Ok(ToolChoice { mode: Mode::Function.into(), function: name.to_owned(), ..ToolChoice::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "a": 1}}})
    }

    fn read(tools: Value, choice: Value, parallel: Option<bool>) -> Result<Tools, ApiError> {
        let tools = tools.as_array().cloned();
        Tools::read(tools, (!choice.is_null()).then_some(choice), parallel)
    }

    #[test]
    fn functions_keep_the_order_of_their_keys() {
        let odd =
            json!({"type": "function", "function": {"z": 1, "name": "f", "description": "é", "a": [1.5]}});
        let tools = read(json!([odd]), Value::Null, None).unwrap();
        assert_eq!(tools.functions, ["{\"z\":1,\"name\":\"f\",\"description\":\"é\",\"a\":[1.5]}"]);
        assert_eq!(tools.choice, None);
    }

    #[test]
    fn choices() {
        let choice = |choice: Value, parallel| {
            let choice = read(json!([tool("f"), tool("g")]), choice, parallel).unwrap().choice.unwrap();
            (choice.mode(), choice.function, choice.single)
        };
        assert_eq!(choice(json!("none"), None), (Mode::None, String::new(), false));
        assert_eq!(choice(json!("auto"), Some(true)), (Mode::Auto, String::new(), false));
        assert_eq!(choice(json!("required"), Some(false)), (Mode::Required, String::new(), true));
        assert_eq!(choice(Value::Null, Some(false)), (Mode::Unspecified, String::new(), true));
        let g = json!({"type": "function", "function": {"name": "g"}});
        assert_eq!(choice(g, None), (Mode::Function, "g".into(), false));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let one = json!([tool("f")]);
        for (tools, choice, param) in [
            (json!([3]), Value::Null, "tools[0].type"),
            (json!([tool("f"), {"type": "web_search"}]), Value::Null, "tools[1].type"),
            (json!([{"type": "function"}]), Value::Null, "tools[0].function"),
            (json!([{"type": "function", "function": {}}]), Value::Null, "tools[0].function.name"),
            (json!([tool("two words")]), Value::Null, "tools[0].function.name"),
            (json!([tool(&"x".repeat(65))]), Value::Null, "tools[0].function.name"),
            (json!([tool("f"), tool("f")]), Value::Null, "tools[1].function.name"),
            (
                json!([{"type": "function", "function": {"name": "f", "parameters": []}}]),
                Value::Null,
                "tools[0].function.parameters",
            ),
            (one.clone(), json!("sometimes"), "tool_choice"),
            (one.clone(), json!(5), "tool_choice"),
            (one.clone(), json!({"type": "allowed_tools"}), "tool_choice.type"),
            (one.clone(), json!({"type": "function"}), "tool_choice.function.name"),
            (one, json!({"type": "function", "function": {"name": "g"}}), "tool_choice.function.name"),
            (json!([]), json!("required"), "tool_choice"),
            (
                Value::Null,
                json!({"type": "function", "function": {"name": "g"}}),
                "tool_choice.function.name",
            ),
        ] {
            let error = read(tools.clone(), choice.clone(), None).expect_err(&format!("{tools} {choice}"));
            assert_eq!(
                (error.status.as_u16(), error.body.param.as_deref()),
                (400, Some(param)),
                "{tools} {choice}"
            );
        }
    }
}

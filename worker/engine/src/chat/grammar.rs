//! The language of replies that have to call a tool, in llguidance's dialect of Lark.
//!
//! The grammar is of the text after the reasoning, tags included; it names no tokens. Line breaks end what they follow:
//! llguidance takes the longest string that fits, so no two that may stand in one place begin with the same break. Every call has the tool's own
//! parameters in the order of its schema, required ones always. A string goes as it is up to the closing tag, anything
//! else as JSON of its schema, written as the model was trained to (`", "` and `": "`). What JSON Schema says about
//! strings beyond `enum` and `const` is not enforced for a parameter that is a string itself. Such a string has no tag
//! in it; a string within JSON may, and would end the parameter when the reply is read, as it would in the published
//! parser.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::texts::{CALLS, CALLS_END, INVOKE, INVOKE_END, MARKER, PARAMETER, PARAMETER_END};
use super::tools::properties;
use super::{ChatError, ToolChoice};

/// Longest grammar, in bytes: schemas that refer to each other are repeated in it.
const LONGEST: usize = 1 << 20;
/// Deepest nesting of alternatives that is looked into for the type of a parameter.
const DEEPEST: usize = 8;

/// The grammar of a reply under a choice, or `None` if that leaves the model free.
///
/// `tools` are OpenAI tool objects. `single`: one call at most; a tool that was named is called once in any case.
///
/// # Errors
/// [`ChatError`]: the choice names no tool that is there, or the grammar of all schemas would be longer than 1 MiB.
pub fn tool_grammar(
    tools: &[&Value],
    choice: &ToolChoice,
    single: bool,
) -> Result<Option<String>, ChatError> {
    let functions = tools.iter().filter_map(|tool| tool.get("function"));
    let (functions, single): (Vec<&Value>, bool) = match choice {
        ToolChoice::Auto | ToolChoice::None => return Ok(None),
        ToolChoice::Required => (functions.collect(), single),
        ToolChoice::Function(name) => {
            let named = functions.filter(|function| function["name"] == name.as_str()).take(1).collect();
            (named, true)
        }
    };
    if functions.is_empty() {
        return Err(match choice {
            ToolChoice::Function(name) => ChatError::UnknownTool { name: name.clone() },
            _ => ChatError::NoTools,
        });
    }
    let mut rules = Rules::default();
    let calls = if single { "call" } else { "call+" };
    rules.add("start", &format!("{} {calls} {}", literal(&format!("\n\n{CALLS}\n")), literal(CALLS_END)));
    rules.add("UNMARKED", &format!("/(?s:.*)/ & ~/(?s:.*){MARKER}(?s:.*)/"));
    let names: Vec<String> = (0..functions.len()).map(|index| format!("tool{index}")).collect();
    rules.add("call", &names.join(" | "));
    for (name, function) in names.iter().zip(functions) {
        rules.add_tool(name, function);
        if rules.is_too_long() {
            return Err(ChatError::Invalid {
                field: "tools".into(),
                message: format!(
                    "their schemas are too long for a call to be enforced: over {LONGEST} bytes as a grammar"
                ),
            });
        }
    }
    Ok(Some(rules.0))
}

#[derive(Default)]
struct Rules(String);

impl Rules {
    fn add(&mut self, name: &str, body: &str) {
        // writing to a string cannot fail
        let _ = writeln!(self.0, "{name}: {body}");
    }

    fn is_too_long(&self) -> bool {
        self.0.len() > LONGEST
    }

    fn add_tool(&mut self, tool: &str, function: &Value) {
        let name = function["name"].as_str().unwrap_or_default();
        let parameters = function.get("parameters").unwrap_or(&Value::Null);
        let body = match properties(function) {
            None if parameters.get("additionalProperties") != Some(&Value::Bool(false)) => {
                self.add_any_parameters(tool)
            }
            properties => self.add_parameters(tool, parameters, properties.unwrap_or(&Map::new())),
        };
        self.add(
            tool,
            &format!(
                "{} {body} {}",
                literal(&format!("{INVOKE}{name}\">\n")),
                literal(&format!("{INVOKE_END}\n"))
            ),
        );
    }

    /// Parameters of a tool that does not name them.
    fn add_any_parameters(&mut self, tool: &str) -> String {
        self.add(
            &format!("{tool}_any"),
            &format!("{} /[^\"<>\\n]+/ ({tool}_text | {tool}_json) {}", literal(PARAMETER), literal("\n")),
        );
        self.add_text(&format!("{tool}_text"), "\" string=\"true\">");
        self.add_json(&format!("{tool}_json"), "\" string=\"false\">", &json!({}));
        format!("({tool}_any+ | {})", literal("\n"))
    }

    /// Gives the body of a call: the parameters in order, each with a line break, or one if there are none.
    fn add_parameters(&mut self, tool: &str, root: &Value, properties: &Map<String, Value>) -> String {
        let required: Vec<&str> =
            root["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let allowed: Vec<(&String, &Value)> =
            properties.iter().filter(|(_, schema)| **schema != Value::Bool(false)).collect();
        let is_required = |index: usize| required.contains(&allowed[index].0.as_str());
        let mut parts = Vec::new();
        for (index, (name, schema)) in allowed.iter().enumerate() {
            if self.is_too_long() {
                break;
            }
            let rule = format!("{tool}_{index}");
            self.add_parameter(&rule, name, schema, root);
            parts.push(if is_required(index) { rule } else { format!("{rule}?") });
        }
        if (0..allowed.len()).any(is_required) {
            return parts.join(" ");
        }
        // none is required: those that begin with the first, or with the second …
        let mut beginnings = vec![literal("\n")];
        for index in 0..allowed.len() {
            let rest = format!("{tool}_after{index}");
            let next = index + 1;
            let body = match parts.get(next) {
                Some(part) => format!("{part} {tool}_after{next}"),
                None => "\"\"".into(),
            };
            self.add(&rest, &body);
            beginnings.push(format!("{tool}_{index} {rest}"));
        }
        self.add(&format!("{tool}_none_required"), &beginnings.join(" | "));
        format!("{tool}_none_required")
    }

    fn add_parameter(&mut self, rule: &str, name: &str, schema: &Value, root: &Value) {
        let head = |is_string: bool| format!("{PARAMETER}{name}\" string=\"{is_string}\">");
        let newline = literal("\n");
        match Kind::of(schema, root, 0) {
            Kind::Texts(texts) => {
                let value = |text: &String| literal(&format!("{text}{PARAMETER_END}\n"));
                let values: Vec<String> = texts.iter().map(value).collect();
                self.add(rule, &format!("{} ({})", literal(&head(true)), values.join(" | ")));
            }
            Kind::Text => {
                self.add_text(&format!("{rule}_text"), &head(true));
                self.add(rule, &format!("{rule}_text {newline}"));
            }
            Kind::Json => {
                self.add_json(&format!("{rule}_json"), &head(false), &rooted(schema, root));
                self.add(rule, &format!("{rule}_json {newline}"));
            }
            Kind::Any => {
                self.add_text(&format!("{rule}_text"), &head(true));
                self.add_json(&format!("{rule}_json"), &head(false), &rooted(schema, root));
                self.add(rule, &format!("({rule}_text | {rule}_json) {newline}"));
            }
        }
    }

    /// A string up to the closing tag, the tag included. No other tag is in it: reading the reply would end there.
    fn add_text(&mut self, rule: &str, head: &str) {
        let end = literal(PARAMETER_END);
        let _ = writeln!(self.0, "{rule}_value[suffix={end}]: UNMARKED");
        self.add(rule, &format!("{} {rule}_value", literal(head)));
    }

    fn add_json(&mut self, rule: &str, head: &str, schema: &Value) {
        let end = literal(PARAMETER_END);
        self.add(&format!("{rule}_value"), &format!("%json {schema}"));
        self.add(rule, &format!("{} {rule}_value {end}", literal(head)));
    }
}

/// A string of the grammar.
fn literal(text: &str) -> String {
    // JSON's strings but for one character, which JSON does not escape
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A schema that stands for itself: written like the model's training data, lenient about keywords that cannot be
/// enforced, and with all that it refers to.
fn rooted(schema: &Value, root: &Value) -> Value {
    let mut schema = if refers(schema) {
        json!({"allOf": [moved(schema)], "$defs": {"root": moved(root)}})
    } else {
        match schema {
            Value::Object(_) => schema.clone(),
            _ => json!({}),
        }
    };
    schema["x-guidance"] =
        json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "lenient": true});
    schema
}

fn refers(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("$ref") || map.values().any(refers),
        Value::Array(values) => values.iter().any(refers),
        _ => false,
    }
}

/// With the references to places in the root turned to where that went.
fn moved(schema: &Value) -> Value {
    match schema {
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| match value {
                Value::String(target) if key == "$ref" && target.starts_with('#') => {
                    (key.clone(), Value::String(format!("#/$defs/root{}", &target[1..])))
                }
                value => (key.clone(), moved(value)),
            };
            Value::Object(map.iter().map(entry).collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(moved).collect()),
        other => other.clone(),
    }
}

/// How a parameter is written.
#[derive(Debug, PartialEq)]
enum Kind {
    /// One of these strings.
    Texts(Vec<String>),
    /// A string.
    Text,
    /// Not a string.
    Json,
    /// Either.
    Any,
}

impl Kind {
    fn of(schema: &Value, root: &Value, depth: usize) -> Self {
        if depth > DEEPEST {
            return Self::Any;
        }
        if let Some(target) = schema["$ref"].as_str() {
            let target = target.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
            return target.map_or(Self::Any, |target| Self::of(target, root, depth + 1));
        }
        if let Some(value) = schema.get("const") {
            return Self::of_values(std::slice::from_ref(value));
        }
        if let Some(values) = schema["enum"].as_array() {
            return Self::of_values(values);
        }
        match &schema["type"] {
            Value::String(kind) if kind == "string" => return Self::Text,
            Value::String(_) => return Self::Json,
            Value::Array(kinds) => {
                let strings = kinds.iter().filter(|kind| *kind == "string").count();
                return match strings {
                    0 => Self::Json,
                    _ if strings == kinds.len() => Self::Text,
                    _ => Self::Any,
                };
            }
            _ => {}
        }
        let alternatives = ["anyOf", "oneOf"].into_iter().find_map(|key| schema[key].as_array());
        match alternatives {
            Some(alternatives) => {
                let kinds: Vec<Self> =
                    alternatives.iter().map(|schema| Self::of(schema, root, depth + 1)).collect();
                let is_text = |kind: &Self| matches!(kind, Self::Text | Self::Texts(_));
                if kinds.iter().all(is_text) {
                    Self::Text
                } else if kinds.iter().all(|kind| *kind == Self::Json) {
                    Self::Json
                } else {
                    Self::Any
                }
            }
            None if schema.get("properties").is_some() || schema.get("items").is_some() => Self::Json,
            None => Self::Any,
        }
    }

    fn of_values(values: &[Value]) -> Self {
        let texts: Vec<String> = values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        match texts.len() {
            0 => Self::Json,
            count if count == values.len() => Self::Texts(texts),
            _ => Self::Any,
        }
    }
}

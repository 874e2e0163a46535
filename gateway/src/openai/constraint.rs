//! What the output must look like: `response_format`, and vLLM's `structured_outputs` and `guided_…`. One at most.
use belay_proto::inference::{Choices, options::Constraint};
use serde_json::{Map, Value};

use crate::edge::{
    ApiError, Names,
    fields::{self, Unsupported},
};

/// Part of vLLM's way that is not served. Which library guides the output is the server's choice, and ignored.
pub const UNSUPPORTED: &[Unsupported] = &[("guided_whitespace_pattern", fields::never)];

/// vLLM's names outside of `structured_outputs`, and within.
const GUIDED: [(&str, &str); 5] = [
    ("guided_json", "json"),
    ("guided_regex", "regex"),
    ("guided_grammar", "grammar"),
    ("guided_choice", "choice"),
    ("guided_json_object", "json_object"),
];

/// The constraint, if there is one, and how to call it when a worker finds fault with it.
pub fn read(object: &Map<String, Value>) -> Result<(Option<Constraint>, Names), ApiError> {
    let mut found: Option<(&'static str, Constraint)> = None;
    let mut take = |param: &'static str, constraint: Option<Constraint>| match (&found, constraint) {
        (_, None) => Ok(()),
        (None, Some(constraint)) => {
            found = Some((param, constraint));
            Ok(())
        }
        (Some((other, _)), Some(_)) => {
            Err(ApiError::invalid(param, format!("'{param}' and '{other}' cannot both shape the output")))
        }
    };
    if let Some(format) = set(object, "response_format") {
        take("response_format", response_format(format)?)?;
    }
    for (param, kind) in GUIDED {
        if let Some(value) = set(object, param) {
            take(param, guided(param, kind, value)?)?;
        }
    }
    if let Some(value) = set(object, "structured_outputs") {
        let param = "structured_outputs";
        let parts = value
            .as_object()
            .ok_or_else(|| ApiError::invalid(param, format!("'{param}' must be an object")))?;
        for (part, value) in parts.iter().filter(|(_, value)| !value.is_null()) {
            let known = GUIDED.iter().find(|(_, kind)| kind == part).map(|(_, kind)| *kind);
            match (known, part.as_str()) {
                (Some(kind), _) => take(param, guided(&format!("{param}.{kind}"), kind, value)?)?,
                (None, "disable_fallback" | "disable_any_whitespace" | "disable_additional_properties")
                    if *value == Value::Bool(false) => {}
                (None, part) => {
                    let shown: String = part.chars().take(40).collect();
                    return Err(ApiError::unsupported(format!("{param}.{shown}")));
                }
            }
        }
    }
    let Some((param, constraint)) = found else { return Ok((None, Names::new())) };
    let names = ["json_object", "json_schema", "regex", "grammar", "choices"].map(|name| (name, param));
    Ok((Some(constraint), names.to_vec()))
}

fn set<'a>(object: &'a Map<String, Value>, param: &str) -> Option<&'a Value> {
    object.get(param).filter(|value| !value.is_null())
}

fn response_format(format: &Value) -> Result<Option<Constraint>, ApiError> {
    let schema = |path: &str, schema: &Value| match schema {
        Value::Null => Err(ApiError::missing(path)),
        Value::Object(_) => Ok(Some(Constraint::JsonSchema(schema.to_string()))),
        _ => Err(ApiError::invalid(path, format!("'{path}' must be a JSON schema, which is an object"))),
    };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Constraint::JsonObject(true))),
        Some("json_schema") => schema("response_format.json_schema.schema", &format["json_schema"]["schema"]),
        Some(_) => Err(ApiError::unsupported("response_format.type")),
        None => Err(ApiError::missing("response_format.type")),
    }
}

fn guided(path: &str, kind: &str, value: &Value) -> Result<Option<Constraint>, ApiError> {
    let wrong = |must: &str| Err(ApiError::invalid(path, format!("'{path}' must be {must}")));
    Ok(Some(match (kind, value) {
        ("json", Value::Object(_)) => Constraint::JsonSchema(value.to_string()),
        // a schema's text: whether it is one is for the worker to say
        ("json", Value::String(text)) => Constraint::JsonSchema(text.clone()),
        ("json", _) => return wrong("a JSON schema: an object, or its text"),
        ("json_object", Value::Bool(true)) => Constraint::JsonObject(true),
        ("json_object", Value::Bool(false)) => return Ok(None),
        ("json_object", _) => return wrong("true or false"),
        ("regex", Value::String(text)) if !text.is_empty() => Constraint::Regex(text.clone()),
        ("grammar", Value::String(text)) if !text.is_empty() => Constraint::Grammar(text.clone()),
        ("choice", Value::Array(items)) if !items.is_empty() => {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>();
            match texts {
                Some(texts) => Constraint::Choices(Choices { texts }),
                None => return wrong("an array of strings"),
            }
        }
        ("choice", _) => return wrong("an array of strings, at least one"),
        _ => return wrong("a string, not empty"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(object: Value) -> Result<Option<Constraint>, ApiError> {
        read(object.as_object().unwrap()).map(|(constraint, _)| constraint)
    }

    #[test]
    fn every_way_to_shape_the_output() {
        let schema = Constraint::JsonSchema("{\"type\":\"object\"}".into());
        for (object, expected) in [
            (json!({}), None),
            (json!({"response_format": {"type": "text"}}), None),
            (json!({"response_format": {"type": "json_object"}}), Some(Constraint::JsonObject(true))),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true,
                       "schema": {"type": "object"}}}}),
                Some(schema.clone()),
            ),
            (json!({"guided_json": {"type": "object"}}), Some(schema.clone())),
            (
                json!({"guided_json": "{\"type\":\"object\"}", "guided_decoding_backend": "x"}),
                Some(schema.clone()),
            ),
            (json!({"guided_regex": "a+"}), Some(Constraint::Regex("a+".into()))),
            (json!({"guided_grammar": "start: \"a\""}), Some(Constraint::Grammar("start: \"a\"".into()))),
            (
                json!({"structured_outputs": {"choice": ["a", "b"], "json": null}}),
                Some(Constraint::Choices(Choices { texts: vec!["a".into(), "b".into()] })),
            ),
            (json!({"structured_outputs": {"json": {"type": "object"}}}), Some(schema)),
            (json!({"structured_outputs": {"json_object": false, "disable_fallback": false}}), None),
        ] {
            assert_eq!(of(object.clone()).unwrap(), expected, "{object}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (object, param) in [
            (json!({"response_format": "json"}), "response_format.type"),
            (json!({"response_format": {"type": "yaml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema.schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"guided_json": 3}), "guided_json"),
            (json!({"guided_regex": ""}), "guided_regex"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": [1]}), "guided_choice"),
            (json!({"structured_outputs": []}), "structured_outputs"),
            (json!({"structured_outputs": {"xml": 1}}), "structured_outputs.xml"),
            (json!({"structured_outputs": {"regex": 1}}), "structured_outputs.regex"),
            (json!({"structured_outputs": {"regex": "a", "grammar": "b"}}), "structured_outputs"),
            (json!({"guided_regex": "a", "response_format": {"type": "json_object"}}), "guided_regex"),
        ] {
            let error = of(object.clone()).expect_err(&object.to_string());
            assert_eq!((error.status.as_u16(), error.body.param.as_deref()), (400, Some(param)), "{object}");
        }
    }

    #[test]
    fn a_worker_s_words_reach_the_parameter_that_was_set() {
        let (_, names) = read(json!({"guided_json": "{"}).as_object().unwrap()).unwrap();
        let error = ApiError::invalid("json_schema", "json_schema: not JSON").renamed(&names);
        assert_eq!(error.body.param.as_deref(), Some("guided_json"));
    }
}

//! Typed fields out of a JSON object; errors name the field.
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ApiError;

/// Reads the fields of `T`; others are ignored, as OpenAI-compatible servers do.
pub fn read<T: DeserializeOwned>(object: &Map<String, Value>) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let path = error.path().to_string();
        let message = format!("invalid value for '{path}': {}", error.inner());
        ApiError::invalid(path, message)
    })
}

/// A parameter that is not served, and the values at which that makes no difference.
pub type Unsupported = (&'static str, fn(&Value) -> bool);

/// Refuses the first of `unsupported` that is set to a value that would make a difference.
pub fn refuse(object: &Map<String, Value>, unsupported: &[Unsupported]) -> Result<(), ApiError> {
    for (name, is_neutral) in unsupported {
        if object.get(*name).is_some_and(|value| !value.is_null() && !is_neutral(value)) {
            return Err(ApiError::unsupported(*name));
        }
    }
    Ok(())
}

/// No value but null.
pub fn never(_: &Value) -> bool {
    false
}

/// `[]`, `{}` or `""`.
pub fn empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// `false`.
pub fn no(value: &Value) -> bool {
    *value == Value::Bool(false)
}

/// 0, whole or not.
pub fn zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

/// 1, whole or not.
pub fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

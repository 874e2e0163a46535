//! Typed fields out of a JSON object; errors name the field.
use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

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

/// `true`.
pub fn yes(value: &Value) -> bool {
    *value == Value::Bool(true)
}

/// 1, whole or not.
pub fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

/// A number of this range, if there is one.
pub fn within<T: PartialOrd + std::fmt::Display>(
    param: &str,
    value: Option<T>,
    range: RangeInclusive<T>,
) -> Result<Option<T>, ApiError> {
    match value {
        Some(value) if !range.contains(&value) => {
            let (least, most) = (range.start(), range.end());
            let message = format!("'{param}' must be between {least} and {most}, found {value}");
            Err(ApiError::invalid(param, message))
        }
        value => Ok(value),
    }
}

/// As [`within`], from 0 on but not 0 itself.
pub fn positive_to(param: &str, value: Option<f32>, most: f32) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !(value > 0.0 && value <= most) => {
            let message = format!("'{param}' must be greater than 0 and at most {most}, found {value}");
            Err(ApiError::invalid(param, message))
        }
        value => Ok(value),
    }
}

/// Tokens to choose from; -1 and 0 are "off".
pub fn top_k(value: i64) -> Result<u32, ApiError> {
    u32::try_from(value.max(-1).saturating_add(i64::from(value == -1)))
        .map_err(|_| ApiError::invalid("top_k", "'top_k' must be -1, 0 or a count of tokens"))
}

/// Any 64-bit integer; negative ones by their bits.
pub fn seed(number: &Number) -> Result<u64, ApiError> {
    let bits = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
    bits.ok_or_else(|| ApiError::invalid("seed", "'seed' must be a 64-bit integer"))
}

/// Stop strings: one, or a list of them, none empty.
pub fn stop_strings(param: &str, value: Value) -> Result<Vec<String>, ApiError> {
    let wrong = || {
        let message = format!("'{param}' must be a string or an array of strings, none of them empty");
        ApiError::invalid(param, message)
    };
    let items = match value {
        Value::String(text) => vec![Value::String(text)],
        Value::Array(items) => items,
        _ => return Err(wrong()),
    };
    if items.len() > MOST_STOP_STRINGS {
        let message = format!("'{param}' may have {MOST_STOP_STRINGS} strings, found {}", items.len());
        return Err(ApiError::invalid(param, message));
    }
    let strings = items.into_iter().map(|item| match item {
        Value::String(text) if !text.is_empty() => Ok(text),
        _ => Err(wrong()),
    });
    strings.collect()
}

const MOST_STOP_STRINGS: usize = 64;

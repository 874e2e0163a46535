//! Typed look-ups that name the key when they fail.

use serde_json::{Map, Value};

use super::ConfigError;

/// The keys of one JSON object; `prefix` is what its own keys are called in messages.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>, prefix: &'static str) -> Self {
        Self { map, prefix }
    }

    fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::new(format!("{}{key}", self.prefix), message)
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> ConfigError {
        self.error(key, format!("expected {expected}, found {found}"))
    }

    /// The value of a key; null counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn required(&self, key: &str) -> Result<&'a Value, ConfigError> {
        self.get(key).ok_or_else(|| self.error(key, "missing"))
    }

    /// A positive integer.
    pub(super) fn count(&self, key: &str) -> Result<usize, ConfigError> {
        let value = self.required(key)?;
        // 2^31 bounds every product of two sizes to what usize holds
        match value.as_u64() {
            Some(n) if n > 0 && n < 1 << 31 => Ok(n as usize),
            _ => Err(self.wrong(key, "a positive integer", value)),
        }
    }

    /// A non-negative integer; absent is 0.
    pub(super) fn count_or_zero(&self, key: &str) -> Result<usize, ConfigError> {
        match self.get(key) {
            None => Ok(0),
            Some(value) if value.as_u64() == Some(0) => Ok(0),
            Some(_) => self.count(key),
        }
    }

    pub(super) fn positive(&self, key: &str) -> Result<f64, ConfigError> {
        let value = self.required(key)?;
        match value.as_f64() {
            Some(x) if x > 0.0 && x.is_finite() => Ok(x),
            _ => Err(self.wrong(key, "a positive number", value)),
        }
    }

    pub(super) fn positive_or(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        if self.has(key) { self.positive(key) } else { Ok(default) }
    }

    pub(super) fn token_or(&self, key: &str, default: u32) -> Result<u32, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| self.wrong(key, "a token id", value)),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong(key, "a list", other)),
        }
    }

    pub(super) fn object(&self, key: &'static str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, prefix: prefix_of(key) })),
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }

    /// The key must be there and have this value.
    pub(super) fn must_be(&self, key: &str, only: &str) -> Result<(), ConfigError> {
        self.required(key)?;
        self.may_be(key, &Value::from(only))
    }

    /// The key may be absent, but must not have another value.
    pub(super) fn may_be(&self, key: &str, only: &Value) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(found) if found != only => {
                Err(self.error(key, format!("only {only} is supported, found {found}")))
            }
            _ => Ok(()),
        }
    }
}

fn prefix_of(key: &str) -> &'static str {
    match key {
        "rope_scaling" => "rope_scaling.",
        "compress_rates" => "compress_rates.",
        _ => "",
    }
}

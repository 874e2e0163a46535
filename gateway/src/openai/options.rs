//! The parameters that chat and completions share.
use belay_proto::inference::Sampling;
use serde::Deserialize;
use serde_json::{Map, Number, Value};

use super::{
    ApiError,
    fields::{self, Unsupported},
};

/// Parameters of the API that this server does not have, in both endpoints.
const UNSUPPORTED: &[Unsupported] = &[
    ("n", fields::one),
    ("logit_bias", fields::empty),
    ("presence_penalty", fields::zero),
    ("frequency_penalty", fields::zero),
    ("repetition_penalty", fields::one),
    ("min_p", fields::zero),
    ("min_tokens", fields::zero),
];

/// What both endpoints take.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Served model name.
    pub model: String,
    /// How to choose tokens and when to end.
    pub sampling: Sampling,
    /// Answer as server-sent events.
    pub stream: bool,
    /// Send the usage as an event of its own.
    pub include_usage: bool,
}

#[derive(Deserialize)]
struct Raw {
    model: Option<String>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    seed: Option<Number>,
    stop: Option<Value>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    #[serde(rename = "user")]
    _user: Option<String>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl Options {
    /// Reads and checks them.
    pub fn read(object: &Map<String, Value>) -> Result<Self, ApiError> {
        fields::refuse(object, UNSUPPORTED)?;
        let raw: Raw = fields::read(object)?;
        let model = raw.model.filter(|name| !name.is_empty()).ok_or_else(|| ApiError::missing("model"))?;
        let stream = raw.stream.unwrap_or(false);
        if raw.stream_options.is_some() && !stream {
            return Err(ApiError::invalid(
                "stream_options",
                "'stream_options' is only allowed with 'stream'",
            ));
        }
        let include_usage = raw.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        let sampling = Sampling {
            temperature: within(
                "temperature",
                raw.temperature,
                |t| (0.0..=2.0).contains(&t),
                "between 0 and 2",
            )?,
            top_p: within("top_p", raw.top_p, |p| p > 0.0 && p <= 1.0, "greater than 0 and at most 1")?,
            top_k: raw.top_k.map(top_k).transpose()?,
            seed: raw.seed.map(|number| seed(&number)).transpose()?,
            max_tokens: max_tokens(raw.max_completion_tokens, raw.max_tokens)?,
            stop: raw.stop.map(stop).transpose()?.unwrap_or_default(),
            stop_ids: raw.stop_token_ids.unwrap_or_default(),
            ignore_eos: raw.ignore_eos.unwrap_or(false),
            ..Sampling::default()
        };
        Ok(Self { model, sampling, stream, include_usage })
    }
}

fn within(
    param: &str,
    value: Option<f32>,
    fits: impl Fn(f32) -> bool,
    range: &str,
) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !fits(value) => Err(ApiError::invalid(param, format!("'{param}' must be {range}"))),
        value => Ok(value),
    }
}

/// -1 and 0 are "off".
fn top_k(value: i64) -> Result<u32, ApiError> {
    u32::try_from(value.max(-1).saturating_add(i64::from(value == -1)))
        .map_err(|_| ApiError::invalid("top_k", "'top_k' must be -1, 0 or a count of tokens"))
}

/// Any 64-bit integer; negative ones by their bits.
fn seed(number: &Number) -> Result<u64, ApiError> {
    let bits = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
    bits.ok_or_else(|| ApiError::invalid("seed", "'seed' must be a 64-bit integer"))
}

/// The newer name wins.
fn max_tokens(newer: Option<u32>, older: Option<u32>) -> Result<Option<u32>, ApiError> {
    let param = if newer.is_some() { "max_completion_tokens" } else { "max_tokens" };
    match newer.or(older) {
        Some(0) => Err(ApiError::invalid(param, format!("'{param}' must be at least 1"))),
        limit => Ok(limit),
    }
}

fn stop(value: Value) -> Result<Vec<String>, ApiError> {
    let wrong =
        || ApiError::invalid("stop", "'stop' must be a string or an array of strings, none of them empty");
    let strings = match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                _ => Err(wrong()),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(wrong()),
    };
    if strings.iter().any(String::is_empty) { Err(wrong()) } else { Ok(strings) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(extra: Value) -> Result<Options, ApiError> {
        let mut object = json!({"model": "m"});
        let fields = object.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        Options::read(fields)
    }

    fn blamed(extra: Value) -> String {
        let error = read(extra.clone()).expect_err(&extra.to_string());
        assert_eq!(error.status, 400);
        error.body.param.unwrap()
    }

    #[test]
    fn what_is_not_set_is_left_to_the_worker() {
        let options = read(json!({})).unwrap();
        assert_eq!(options.sampling, Sampling::default());
        assert!(!options.stream && !options.include_usage);
        let nulls = json!({"temperature": null, "stop": null, "n": null, "seed": null, "stream": null, "tools": null});
        assert_eq!(read(nulls).unwrap(), options);
    }

    #[test]
    fn every_parameter_arrives() {
        let sampling = read(json!({
            "temperature": 0, "top_p": 0.5, "top_k": 7, "max_tokens": 5, "seed": 9, "stop": ["a", "b"],
            "stop_token_ids": [1, 2], "ignore_eos": true, "user": "u", "unheard_of": {}
        }))
        .unwrap()
        .sampling;
        let expected = Sampling {
            temperature: Some(0.0),
            top_p: Some(0.5),
            top_k: Some(7),
            seed: Some(9),
            max_tokens: Some(5),
            stop: vec!["a".into(), "b".into()],
            stop_ids: vec![1, 2],
            ignore_eos: true,
            ..Sampling::default()
        };
        assert_eq!(sampling, expected);
    }

    #[test]
    fn odd_but_sound_values() {
        let of = |extra| read(extra).unwrap().sampling;
        assert_eq!(of(json!({"stop": "x"})).stop, ["x"]);
        assert_eq!(of(json!({"top_k": -1})).top_k, Some(0));
        assert_eq!(of(json!({"seed": -1})).seed, Some(u64::MAX));
        assert_eq!(of(json!({"seed": u64::MAX})).seed, Some(u64::MAX));
        assert_eq!(of(json!({"max_tokens": 5, "max_completion_tokens": 6})).max_tokens, Some(6));
        assert!(
            read(json!({"stream": true, "stream_options": {"include_usage": true}})).unwrap().include_usage
        );
        for neutral in [json!({"n": 1}), json!({"presence_penalty": 0.0}), json!({"logit_bias": {}})] {
            read(neutral).unwrap();
        }
    }

    #[test]
    fn unsound_values_are_named() {
        for (extra, param) in [
            (json!({"model": null}), "model"),
            (json!({"model": ""}), "model"),
            (json!({"model": 3}), "model"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"temperature": -0.1}), "temperature"),
            (json!({"temperature": 2.1}), "temperature"),
            (json!({"top_p": 0}), "top_p"),
            (json!({"top_p": 1e300}), "top_p"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"top_k": 1u64 << 40}), "top_k"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
            (json!({"seed": 0.5}), "seed"),
            (json!({"stop": [1]}), "stop"),
            (json!({"stop": ""}), "stop"),
            (json!({"stop_token_ids": [1, "x"]}), "stop_token_ids[1]"),
            (json!({"stream": "yes"}), "stream"),
            (json!({"stream_options": {}}), "stream_options"),
            (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
            (json!({"n": 2}), "n"),
            (json!({"presence_penalty": 0.1}), "presence_penalty"),
            (json!({"frequency_penalty": -1}), "frequency_penalty"),
            (json!({"logit_bias": {"5": 1}}), "logit_bias"),
        ] {
            assert_eq!(blamed(extra), param);
        }
    }
}

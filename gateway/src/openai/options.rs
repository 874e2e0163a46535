//! The parameters that chat and completions share.
use std::collections::HashMap;

use belay_proto::inference::{Options, Sampling};
use serde::Deserialize;
use serde_json::{Map, Number, Value};

use crate::edge::{
    ApiError,
    fields::{self, Unsupported},
};

/// Most answers to one prompt, as in OpenAI's API.
pub const MOST_ANSWERS: u32 = 128;

/// Parameters of OpenAI and of vLLM that this server does not have, in both endpoints.
const UNSUPPORTED: &[Unsupported] = &[
    ("use_beam_search", fields::no),
    ("length_penalty", fields::one),
    ("allowed_token_ids", fields::empty),
    ("bad_words", fields::empty),
    ("prompt_logprobs", fields::never),
    ("truncate_prompt_tokens", fields::never),
    ("include_stop_str_in_output", fields::no),
    ("skip_special_tokens", fields::yes),
    ("add_special_tokens", fields::no),
    ("return_token_ids", fields::no),
    ("return_tokens_as_token_ids", fields::no),
    ("moderation", fields::never),
];

/// What both endpoints take.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// Served model name.
    pub model: String,
    /// How to choose tokens and when to end.
    pub sampling: Sampling,
    /// How the request is handled; log-probabilities and constraint are the endpoint's.
    pub options: Options,
    /// How to answer.
    pub form: Form,
    /// `prompt_cache_key`: what belongs together.
    pub session: Option<String>,
}

/// What the answer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Answer as server-sent events.
    pub stream: bool,
    /// Send the usage as an event of its own.
    pub include_usage: bool,
    /// Send the usage so far with every event.
    pub continuous_usage: bool,
    /// With log-probabilities of the answer's tokens.
    pub logprobs: bool,
    /// Answers to each prompt.
    pub answers: u32,
    /// Prompts.
    pub prompts: u32,
}

impl Form {
    /// Answers in all.
    pub fn choices(self) -> usize {
        self.answers as usize * self.prompts as usize
    }
}

#[derive(Deserialize)]
struct Raw {
    model: Option<String>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    logit_bias: Option<HashMap<String, f32>>,
    n: Option<u32>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    min_tokens: Option<u32>,
    seed: Option<Number>,
    stop: Option<Value>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    priority: Option<i32>,
    cache_salt: Option<String>,
    prompt_cache_key: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    #[serde(rename = "user")]
    _user: Option<String>,
}

#[derive(Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

impl Common {
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
        let StreamOptions { include_usage, continuous_usage_stats } = raw.stream_options.unwrap_or_default();
        let include_usage = include_usage.unwrap_or(false);
        let answers = fields::within("n", raw.n, 1..=MOST_ANSWERS)?.unwrap_or(1);
        let max_tokens = raw.max_completion_tokens.or(raw.max_tokens);
        let min_tokens = raw.min_tokens.unwrap_or(0);
        if max_tokens.is_some_and(|most| min_tokens > most) {
            let message = format!("'min_tokens' is {min_tokens}, more than the most tokens asked for");
            return Err(ApiError::invalid("min_tokens", message));
        }
        let sampling = Sampling {
            temperature: fields::within("temperature", raw.temperature, 0.0..=2.0)?,
            top_p: fields::positive_to("top_p", raw.top_p, 1.0)?,
            top_k: raw.top_k.map(fields::top_k).transpose()?,
            min_p: fields::within("min_p", raw.min_p, 0.0..=1.0)?,
            presence_penalty: fields::within("presence_penalty", raw.presence_penalty, -2.0..=2.0)?,
            frequency_penalty: fields::within("frequency_penalty", raw.frequency_penalty, -2.0..=2.0)?,
            repetition_penalty: fields::positive_to("repetition_penalty", raw.repetition_penalty, 2.0)?,
            logit_bias: logit_bias(raw.logit_bias.unwrap_or_default())?,
            seed: raw.seed.map(|number| fields::seed(&number)).transpose()?,
            max_tokens,
            min_tokens,
            stop: raw.stop.map(|stop| fields::stop_strings("stop", stop)).transpose()?.unwrap_or_default(),
            stop_ids: raw.stop_token_ids.unwrap_or_default(),
            ignore_eos: raw.ignore_eos.unwrap_or(false),
            n: (answers > 1).then_some(answers),
        };
        let options = Options {
            priority: raw.priority.unwrap_or(0),
            cache_salt: raw.cache_salt.unwrap_or_default(),
            ..Options::default()
        };
        let form = Form {
            stream,
            include_usage,
            continuous_usage: include_usage && continuous_usage_stats.unwrap_or(false),
            logprobs: false,
            answers,
            prompts: 1,
        };
        Ok(Self { model, sampling, options, form, session: raw.prompt_cache_key })
    }
}

/// The name by which the client set `max_tokens`: the newer one wins.
pub fn max_tokens_name(object: &Map<String, Value>) -> &'static str {
    let is_newer = object.get("max_completion_tokens").is_some_and(|value| !value.is_null());
    if is_newer { "max_completion_tokens" } else { "max_tokens" }
}

fn logit_bias(biases: HashMap<String, f32>) -> Result<HashMap<u32, f32>, ApiError> {
    let bias = |(key, bias): (String, f32)| {
        // a key may be long and odd, and comes back in the answer
        let shown: String = key.chars().take(20).collect();
        let param = format!("logit_bias.{shown}");
        let wrong = |message: String| ApiError::invalid(&param, message);
        let id = key.parse().map_err(|_| wrong(format!("'{param}': '{shown}' is not a token id")))?;
        match fields::within(&param, Some(bias), -100.0..=100.0)? {
            Some(bias) => Ok((id, bias)),
            None => Err(wrong(format!("'{param}' must be a number"))),
        }
    };
    biases.into_iter().map(bias).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(extra: Value) -> Result<Common, ApiError> {
        let mut object = json!({"model": "m"});
        let fields = object.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        Common::read(fields)
    }

    fn blamed(extra: Value) -> String {
        let error = read(extra.clone()).expect_err(&extra.to_string());
        assert_eq!(error.status, 400);
        error.body.param.unwrap()
    }

    #[test]
    fn what_is_not_set_is_left_to_the_worker() {
        let common = read(json!({})).unwrap();
        assert_eq!(common.sampling, Sampling::default());
        assert_eq!(common.options, Options::default());
        assert!(!common.form.stream && !common.form.include_usage && common.form.choices() == 1);
        let nulls = json!({"temperature": null, "stop": null, "n": null, "seed": null, "stream": null, "tools": null});
        assert_eq!(read(nulls).unwrap(), common);
    }

    #[test]
    fn every_parameter_arrives() {
        let common = read(json!({
            "temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.25, "max_tokens": 5, "min_tokens": 2, "seed": 9,
            "stop": ["a", "b"], "stop_token_ids": [1, 2], "ignore_eos": true, "presence_penalty": -2,
            "frequency_penalty": 2, "repetition_penalty": 1.5, "logit_bias": {"5": -100, "6": 0.5}, "n": 3,
            "priority": -4, "cache_salt": "s", "user": "u", "unheard_of": {}
        }))
        .unwrap();
        let expected = Sampling {
            temperature: Some(0.0),
            top_p: Some(0.5),
            top_k: Some(7),
            min_p: Some(0.25),
            seed: Some(9),
            max_tokens: Some(5),
            min_tokens: 2,
            stop: vec!["a".into(), "b".into()],
            stop_ids: vec![1, 2],
            ignore_eos: true,
            presence_penalty: Some(-2.0),
            frequency_penalty: Some(2.0),
            repetition_penalty: Some(1.5),
            logit_bias: [(5, -100.0), (6, 0.5)].into(),
            n: Some(3),
        };
        assert_eq!(common.sampling, expected);
        assert_eq!(common.options, Options { priority: -4, cache_salt: "s".into(), ..Options::default() });
        assert_eq!(common.form.choices(), 3);
    }

    #[test]
    fn odd_but_sound_values() {
        let of = |extra| read(extra).unwrap().sampling;
        assert_eq!(of(json!({"stop": "x"})).stop, ["x"]);
        assert_eq!(of(json!({"top_k": -1})).top_k, Some(0));
        assert_eq!(of(json!({"seed": -1})).seed, Some(u64::MAX));
        assert_eq!(of(json!({"seed": u64::MAX})).seed, Some(u64::MAX));
        assert_eq!(of(json!({"max_tokens": 5, "max_completion_tokens": 6})).max_tokens, Some(6));
        let form = |options: Value| read(json!({"stream": true, "stream_options": options})).unwrap().form;
        assert!(form(json!({"include_usage": true})).include_usage);
        assert!(form(json!({"include_usage": true, "continuous_usage_stats": true})).continuous_usage);
        assert!(!form(json!({"continuous_usage_stats": true})).continuous_usage);
        for neutral in [
            json!({"n": 1, "use_beam_search": false, "length_penalty": 1.0, "skip_special_tokens": true}),
            json!({"presence_penalty": 0.0, "bad_words": [], "add_special_tokens": false}),
            json!({"logit_bias": {}, "service_tier": "auto", "store": false, "metadata": {"a": "b"}}),
        ] {
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
            (json!({"min_p": 1.5}), "min_p"),
            (json!({"presence_penalty": 2.5}), "presence_penalty"),
            (json!({"frequency_penalty": -3}), "frequency_penalty"),
            (json!({"repetition_penalty": 0}), "repetition_penalty"),
            (json!({"repetition_penalty": 2.5}), "repetition_penalty"),
            (json!({"logit_bias": {"5": 101}}), "logit_bias.5"),
            (json!({"logit_bias": {"five": 1}}), "logit_bias.five"),
            (json!({"logit_bias": {"5": "x"}}), "logit_bias.5"),
            (json!({"logit_bias": [1]}), "logit_bias"),
            (json!({"n": 0}), "n"),
            (json!({"n": 129}), "n"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"max_tokens": 4, "min_tokens": 5}), "min_tokens"),
            (json!({"seed": 0.5}), "seed"),
            (json!({"stop": [1]}), "stop"),
            (json!({"stop": ""}), "stop"),
            (json!({"stop": vec!["x"; 65]}), "stop"),
            (json!({"stop_token_ids": [1, "x"]}), "stop_token_ids[1]"),
            (json!({"priority": 1u64 << 40}), "priority"),
            (json!({"cache_salt": 1}), "cache_salt"),
            (json!({"stream": "yes"}), "stream"),
            (json!({"stream_options": {}}), "stream_options"),
            (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
            (json!({"use_beam_search": true}), "use_beam_search"),
            (json!({"prompt_logprobs": 1}), "prompt_logprobs"),
            (json!({"skip_special_tokens": false}), "skip_special_tokens"),
            (json!({"bad_words": ["x"]}), "bad_words"),
        ] {
            assert_eq!(blamed(extra), param);
        }
    }
}

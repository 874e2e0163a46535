//! Inputs of an infer request by name: each may be a tensor or a request parameter. Pure.

use belay_proto::inference::options::Constraint;
use belay_proto::inference::{Choices, Options, Sampling};

/// One value of a tensor or a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// BYTES, or a text parameter.
    Bytes(Vec<u8>),
    /// Any integer type.
    Integer(i128),
    /// FP32 or FP64.
    Float(f64),
    /// BOOL.
    Bool(bool),
}

/// Inputs that the model takes, with the datatype that its description gives; other types of the kind do as well.
pub const INPUTS: [(&str, &str); 29] = [
    ("text_input", "BYTES"),
    ("input_ids", "INT64"),
    ("max_tokens", "INT32"),
    ("min_tokens", "INT32"),
    ("temperature", "FP32"),
    ("top_p", "FP32"),
    ("top_k", "INT32"),
    ("min_p", "FP32"),
    ("presence_penalty", "FP32"),
    ("frequency_penalty", "FP32"),
    ("repetition_penalty", "FP32"),
    ("logit_bias", "BYTES"),
    ("seed", "INT64"),
    ("stop", "BYTES"),
    ("stop_ids", "INT64"),
    ("ignore_eos", "BOOL"),
    ("logprobs", "BOOL"),
    ("prompt_logprobs", "BOOL"),
    ("echo", "BOOL"),
    ("json_object", "BOOL"),
    ("json_schema", "BYTES"),
    ("regex", "BYTES"),
    ("grammar", "BYTES"),
    ("choices", "BYTES"),
    ("cache_salt", "BYTES"),
    ("priority", "INT32"),
    ("timeout", "INT64"),
    ("n", "INT32"),
    ("stream", "BOOL"),
];

/// Inputs that hold any number of elements.
pub const LISTS: [&str; 4] = ["input_ids", "stop", "stop_ids", "choices"];

/// What the inputs set, apart from the prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields {
    /// Sampling and stop conditions.
    pub sampling: Sampling,
    /// Handling, and what comes back beside the text.
    pub options: Options,
    /// On a stream: whether the answer comes in pieces. Unset: yes.
    pub stream: Option<bool>,
}

impl Fields {
    /// Sets one by its name.
    ///
    /// # Errors
    /// A message that begins with the name.
    pub fn set(&mut self, name: &str, values: &[Value]) -> Result<(), String> {
        let Self { sampling, options, stream } = self;
        match name {
            "max_tokens" => sampling.max_tokens = Some(one_integer(name, values)?),
            "min_tokens" => sampling.min_tokens = one_integer(name, values)?,
            "temperature" => sampling.temperature = Some(one_float(name, values)?),
            "top_p" => sampling.top_p = Some(one_float(name, values)?),
            "top_k" => sampling.top_k = Some(one_integer(name, values)?),
            "min_p" => sampling.min_p = Some(one_float(name, values)?),
            "presence_penalty" => sampling.presence_penalty = Some(one_float(name, values)?),
            "frequency_penalty" => sampling.frequency_penalty = Some(one_float(name, values)?),
            "repetition_penalty" => sampling.repetition_penalty = Some(one_float(name, values)?),
            "logit_bias" => sampling.logit_bias = logit_bias(name, values)?,
            "seed" => sampling.seed = Some(one_integer(name, values)?),
            "stop" => sampling.stop = texts(name, values)?,
            "stop_ids" => sampling.stop_ids = integers(name, values)?,
            "ignore_eos" => sampling.ignore_eos = one_bool(name, values)?,
            "n" => sampling.n = Some(one_answer(name, values)?),
            "logprobs" => options.logprobs = one_bool(name, values)?.then_some(0),
            "prompt_logprobs" => options.prompt_logprobs = one_bool(name, values)?.then_some(0),
            "echo" => options.echo = one_bool(name, values)?,
            "cache_salt" => options.cache_salt = one_text(name, values)?,
            "priority" => options.priority = one_integer(name, values)?,
            // microseconds, as Triton has it
            "timeout" => {
                let microseconds: u64 = one_integer(name, values)?;
                options.timeout_milliseconds = Some(microseconds.div_ceil(1000));
            }
            "stream" => *stream = Some(one_bool(name, values)?),
            "json_object" => {
                if one_bool(name, values)? {
                    constrain(options, name, Constraint::JsonObject(true))?;
                }
            }
            "json_schema" => constrain(options, name, Constraint::JsonSchema(one_text(name, values)?))?,
            "regex" => constrain(options, name, Constraint::Regex(one_text(name, values)?))?,
            "grammar" => constrain(options, name, Constraint::Grammar(one_text(name, values)?))?,
            "choices" => {
                let texts = texts(name, values)?;
                constrain(options, name, Constraint::Choices(Choices { texts }))?;
            }
            // Triton's clients send these with requests of a sequence or for its own transport; they mean nothing here
            "sequence_id"
            | "sequence_start"
            | "sequence_end"
            | "binary_data_output"
            | "triton_enable_empty_final_response" => {}
            _ => return Err(format!("{name}: unknown input; there are {}", names(&INPUTS))),
        }
        Ok(())
    }
}

/// Names, for people.
pub fn names(known: &[(&str, &str)]) -> String {
    known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn constrain(options: &mut Options, name: &str, constraint: Constraint) -> Result<(), String> {
    match options.constraint.replace(constraint) {
        None => Ok(()),
        Some(_) => Err(format!(
            "{name}: only one of json_object, json_schema, regex, grammar and choices can be set"
        )),
    }
}

/// A tensor has one shape, and answers have not.
fn one_answer(name: &str, values: &[Value]) -> Result<u32, String> {
    match one_integer(name, values)? {
        1 => Ok(1),
        other => Err(format!("{name}: an infer request has one answer, found {other}")),
    }
}

/// A JSON object: token ids, as texts, to numbers.
fn logit_bias(name: &str, values: &[Value]) -> Result<std::collections::HashMap<u32, f32>, String> {
    serde_json::from_str(&one_text(name, values)?)
        .map_err(|error| format!("{name}: expected a JSON object of token ids and numbers: {error}"))
}

fn one<'a>(name: &str, values: &'a [Value]) -> Result<&'a Value, String> {
    match values {
        [value] => Ok(value),
        _ => Err(format!("{name}: expected one element, found {}", values.len())),
    }
}

/// The one element, as text.
pub fn one_text(name: &str, values: &[Value]) -> Result<String, String> {
    text(name, one(name, values)?)
}

fn texts(name: &str, values: &[Value]) -> Result<Vec<String>, String> {
    values.iter().map(|value| text(name, value)).collect()
}

fn text(name: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::Bytes(bytes) => String::from_utf8(bytes.clone())
            .map_err(|error| format!("{name}: not UTF-8 after byte {}", error.utf8_error().valid_up_to())),
        other => Err(format!("{name}: expected BYTES, found {other:?}")),
    }
}

/// All elements, as integers.
pub fn integers<T: TryFrom<i128>>(name: &str, values: &[Value]) -> Result<Vec<T>, String> {
    values.iter().map(|value| integer(name, value)).collect()
}

fn one_integer<T: TryFrom<i128>>(name: &str, values: &[Value]) -> Result<T, String> {
    integer(name, one(name, values)?)
}

fn integer<T: TryFrom<i128>>(name: &str, value: &Value) -> Result<T, String> {
    match value {
        Value::Integer(number) => {
            T::try_from(*number).map_err(|_| format!("{name}: {number} is out of range"))
        }
        other => Err(format!("{name}: expected an integer, found {other:?}")),
    }
}

fn one_float(name: &str, values: &[Value]) -> Result<f32, String> {
    match one(name, values)? {
        Value::Float(number) => Ok(*number as f32),
        Value::Integer(number) => Ok(*number as f32),
        other => Err(format!("{name}: expected a number, found {other:?}")),
    }
}

fn one_bool(name: &str, values: &[Value]) -> Result<bool, String> {
    match one(name, values)? {
        Value::Bool(flag) => Ok(*flag),
        other => Err(format!("{name}: expected BOOL, found {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_is_known_by_its_name_and_datatype() {
        for (name, datatype) in &INPUTS[2..] {
            let value = match (*name, *datatype) {
                ("logit_bias", _) => Value::Bytes(b"{\"5\": -1.5}".to_vec()),
                (_, "BYTES") => Value::Bytes(b"x".to_vec()),
                (_, "BOOL") => Value::Bool(true),
                (_, "FP32") => Value::Float(0.5),
                _ => Value::Integer(1),
            };
            let mut fields = Fields::default();
            fields.set(name, &[value]).unwrap();
            assert_ne!(fields, Fields::default(), "{name} sets something");
            let wrong = fields.set(name, &[]);
            if !LISTS.contains(name) {
                assert!(wrong.unwrap_err().starts_with(&format!("{name}: expected one element")));
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let mut fields = Fields::default();
        let mut refused = |name: &str, value| fields.set(name, &[value]).unwrap_err();
        assert!(refused("n", Value::Integer(2)).starts_with("n: an infer request has one answer"));
        assert!(refused("max_tokens", Value::Integer(-1)).starts_with("max_tokens: -1 is out of range"));
        assert!(refused("seed", Value::Float(1.0)).starts_with("seed: expected an integer"));
        assert!(refused("stop", Value::Bytes(vec![b'a', 0xff])).starts_with("stop: not UTF-8 after byte 1"));
        assert!(
            refused("logit_bias", Value::Bytes(b"[]".to_vec())).starts_with("logit_bias: expected a JSON")
        );
        assert!(
            refused("regexp", Value::Bool(true)).starts_with("regexp: unknown input; there are text_input")
        );
        fields.set("regex", &[Value::Bytes(b"a+".to_vec())]).unwrap();
        let second = fields.set("choices", &[Value::Bytes(b"a".to_vec())]).unwrap_err();
        assert!(second.starts_with("choices: only one of"));
        fields.set("timeout", &[Value::Integer(1500)]).unwrap();
        assert_eq!(fields.options.timeout_milliseconds, Some(2));
    }
}

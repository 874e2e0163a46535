//! `/v1/completions`.
use axum::{
    Extension,
    extract::{Request, State},
    response::Response,
};
use belay_proto::inference::{GenerateRequest, Options, TokenIds, generate_request::Prompt};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    edge::{
        ApiError, Asked,
        fields::{self, Unsupported},
    },
    life::{Call, MOST_ANSWERS},
    request_id::RequestId,
    serve::App,
};

use super::{
    answer::{self, Kind},
    chat::MOST_TOP_LOGPROBS,
    constraint,
    options::{Common, Form, max_tokens_name},
};

const UNSUPPORTED: &[Unsupported] = &[("suffix", fields::empty), ("prompt_embeds", fields::never)];

/// What the API defines for requests without `max_tokens`.
const DEFAULT_MAX_TOKENS: u32 = 16;

const NAMES: [(&str, &str); 2] = [("stop_ids", "stop_token_ids"), ("prompt_logprobs", "logprobs")];

/// The handler.
pub async fn create(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    answer::serve(app, id, request, Kind::Completion, read).await
}

#[derive(Deserialize)]
struct Raw {
    echo: Option<bool>,
    best_of: Option<u32>,
    logprobs: Option<Value>,
}

/// A request body, translated.
pub fn read(object: &Map<String, Value>) -> Result<Asked<Form>, ApiError> {
    fields::refuse(object, UNSUPPORTED)?;
    fields::refuse(object, constraint::UNSUPPORTED)?;
    let Common { model, mut sampling, options, form, session } = Common::read(object)?;
    let raw: Raw = fields::read(object)?;
    if raw.best_of.is_some_and(|best_of| best_of != form.answers) {
        return Err(ApiError::unsupported("best_of"));
    }
    let echo = raw.echo.unwrap_or(false);
    let max_tokens = *sampling.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
    if max_tokens == 0 && !echo {
        let param = max_tokens_name(object);
        return Err(ApiError::invalid(param, format!("'{param}' must be at least 1 without 'echo'")));
    }
    let logprobs = logprobs(raw.logprobs)?;
    let (constraint, mut names) = constraint::read(object)?;
    names.extend(NAMES);
    let options =
        Options { constraint, logprobs, prompt_logprobs: logprobs.filter(|_| echo), echo, ..options };
    let prompts = match object.get("prompt") {
        None | Some(Value::Null) => return Err(ApiError::missing("prompt")),
        Some(value) => prompts(value)?,
    };
    let form = Form {
        logprobs: logprobs.is_some(),
        prompts: u32::try_from(prompts.len()).unwrap_or(u32::MAX),
        ..form
    };
    if form.choices() > MOST_ANSWERS {
        let message = format!("'prompt' asks for {} answers in all, at most {MOST_ANSWERS}", form.choices());
        return Err(ApiError::invalid("prompt", message));
    }
    let call = |prompt| {
        Call::Generate(GenerateRequest {
            model: model.clone(),
            prompt: Some(prompt),
            sampling: Some(sampling.clone()),
            options: Some(options.clone()),
            ..GenerateRequest::default()
        })
    };
    Ok(Asked { form, calls: prompts.into_iter().map(call).collect(), names, session })
}

fn logprobs(value: Option<Value>) -> Result<Option<u32>, ApiError> {
    let most = match value {
        None | Some(Value::Bool(false)) => None,
        Some(value) => Some(value.as_u64().ok_or_else(|| {
            ApiError::invalid("logprobs", "'logprobs' must be how many of the likeliest tokens to show")
        })?),
    };
    let most = fields::within("logprobs", most, 0..=u64::from(MOST_TOP_LOGPROBS))?;
    Ok(most.and_then(|most| u32::try_from(most).ok()))
}

/// One prompt (a string, or token ids), or an array of them.
fn prompts(value: &Value) -> Result<Vec<Prompt>, ApiError> {
    match value {
        Value::Array(items) => match items.first() {
            None => Err(ApiError::invalid("prompt", "'prompt' must not be empty")),
            Some(Value::Number(_)) => Ok(vec![prompt(value, "prompt")?]),
            Some(_) => {
                let items = items.iter().enumerate();
                items.map(|(index, item)| prompt(item, &format!("prompt[{index}]"))).collect()
            }
        },
        _ => Ok(vec![prompt(value, "prompt")?]),
    }
}

fn prompt(value: &Value, path: &str) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) if !text.is_empty() => Ok(Prompt::Text(text.clone())),
        Value::Array(items) if !items.is_empty() => {
            Ok(Prompt::Ids(TokenIds { ids: token_ids(items, path)? }))
        }
        Value::String(_) | Value::Array(_) => {
            Err(ApiError::invalid(path, format!("'{path}' must not be empty")))
        }
        _ => Err(ApiError::invalid(path, format!("'{path}' must be a string or an array of token ids"))),
    }
}

/// Token ids; `path` is where they are.
pub fn token_ids(items: &[Value], path: &str) -> Result<Vec<u32>, ApiError> {
    let id = |(index, item): (usize, &Value)| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| {
            let path = format!("{path}[{index}]");
            ApiError::invalid(&path, format!("'{path}' is not a token id"))
        })
    };
    items.iter().enumerate().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn completions(extra: Value) -> Result<Vec<GenerateRequest>, ApiError> {
        let mut object = json!({"model": "m", "prompt": "hi"});
        let fields = object.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        let request = |call| match call {
            Call::Generate(request) => request,
            Call::Chat(_) => panic!("not a completion"),
        };
        Ok(read(fields)?.calls.into_iter().map(request).collect())
    }

    fn completion(extra: Value) -> GenerateRequest {
        completions(extra).unwrap().remove(0)
    }

    #[test]
    fn a_prompt_is_text_or_ids_or_several_of_them() {
        let of = |prompt: Value| -> Vec<Prompt> {
            let requests = completions(json!({"prompt": prompt})).unwrap();
            requests.into_iter().map(|request| request.prompt.unwrap()).collect()
        };
        let ids = || Prompt::Ids(TokenIds { ids: vec![0, 5] });
        let text = || Prompt::Text("x".into());
        assert_eq!(of(json!("x")), [text()]);
        assert_eq!(of(json!(["x"])), [text()]);
        assert_eq!(of(json!([0, 5])), [ids()]);
        assert_eq!(of(json!([[0, 5]])), [ids()]);
        assert_eq!(of(json!(["x", [0, 5]])), [text(), ids()]);
    }

    #[test]
    fn sixteen_tokens_unless_told_otherwise() {
        let most = |extra| completion(extra).sampling.unwrap().max_tokens;
        assert_eq!(most(json!({})), Some(16));
        assert_eq!(most(json!({"max_tokens": 3})), Some(3));
        assert_eq!(most(json!({"max_tokens": 0, "echo": true})), Some(0));
    }

    #[test]
    fn the_prompt_is_scored_when_it_is_echoed() {
        let options = |extra| completion(extra).options.unwrap();
        let scored = options(json!({"echo": true, "logprobs": 3}));
        assert_eq!((scored.echo, scored.logprobs, scored.prompt_logprobs), (true, Some(3), Some(3)));
        let plain = options(json!({"logprobs": 0}));
        assert_eq!((plain.echo, plain.logprobs, plain.prompt_logprobs), (false, Some(0), None));
        assert_eq!(options(json!({"logprobs": false})).logprobs, None);
    }

    #[test]
    fn what_is_wrong_or_not_served_is_named() {
        for (extra, param) in [
            (json!({"prompt": null}), "prompt"),
            (json!({"prompt": ""}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": [""]}), "prompt[0]"),
            (json!({"prompt": [[]]}), "prompt[0]"),
            (json!({"prompt": ["a", 5]}), "prompt[1]"),
            (json!({"prompt": ["a", ["b"]]}), "prompt[1][0]"),
            (json!({"prompt": 5}), "prompt"),
            (json!({"prompt": [1, -1]}), "prompt[1]"),
            (json!({"prompt": [1, 4294967296u64]}), "prompt[1]"),
            (json!({"prompt": [1, "a"]}), "prompt[1]"),
            (json!({"prompt": vec!["a"; 9], "n": 128}), "prompt"),
            (json!({"echo": 1}), "echo"),
            (json!({"best_of": 2}), "best_of"),
            (json!({"best_of": 2, "n": 3}), "best_of"),
            (json!({"suffix": "x"}), "suffix"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"logprobs": -1}), "logprobs"),
            (json!({"logprobs": 21}), "logprobs"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"guided_regex": 1}), "guided_regex"),
        ] {
            let error = completions(extra.clone()).expect_err(&extra.to_string());
            assert_eq!((error.status.as_u16(), error.body.param.as_deref()), (400, Some(param)), "{extra}");
        }
        completions(json!({"best_of": 2, "n": 2})).unwrap();
    }
}

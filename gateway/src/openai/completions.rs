//! `/v1/completions`.
use axum::{
    Extension,
    extract::{Request, State},
    response::Response,
};
use belay_proto::inference::{GenerateRequest, TokenIds, generate_request::Prompt};
use serde_json::{Map, Value};

use crate::{life::Call, request_id::RequestId, serve::App};

use super::{
    ApiError,
    answer::{self, Kind},
    fields::{self, Unsupported},
    options::Options,
};

const UNSUPPORTED: &[Unsupported] =
    &[("echo", fields::no), ("best_of", fields::one), ("suffix", fields::empty), ("logprobs", fields::no)];

/// What the API defines for requests without `max_tokens`.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// The handler.
pub async fn create(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    answer::serve(app, id, request, Kind::Completion, read).await
}

/// A request body, translated.
pub fn read(object: &Map<String, Value>) -> Result<(Options, Call), ApiError> {
    fields::refuse(object, UNSUPPORTED)?;
    let mut options = Options::read(object)?;
    options.sampling.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
    let prompt = match object.get("prompt") {
        None | Some(Value::Null) => return Err(ApiError::missing("prompt")),
        Some(value) => prompt(value)?,
    };
    let call = GenerateRequest {
        model: options.model.clone(),
        prompt: Some(prompt),
        sampling: Some(options.sampling.clone()),
        ..GenerateRequest::default()
    };
    Ok((options, Call::Generate(call)))
}

/// A string, token ids, or an array of one of either.
fn prompt(value: &Value) -> Result<Prompt, ApiError> {
    let wrong = |message: &str| Err(ApiError::invalid("prompt", message));
    match value {
        Value::String(text) if text.is_empty() => wrong("'prompt' must not be empty"),
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(items) => match items.as_slice() {
            [] => wrong("'prompt' must not be empty"),
            [only @ (Value::String(_) | Value::Array(_))] => prompt(only),
            [Value::String(_) | Value::Array(_), ..] => {
                wrong("one prompt a request: send the others on their own")
            }
            ids => token_ids(ids),
        },
        _ => wrong("'prompt' must be a string or an array of token ids"),
    }
}

fn token_ids(items: &[Value]) -> Result<Prompt, ApiError> {
    let mut ids = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        ids.push(id.ok_or_else(|| {
            ApiError::invalid(format!("prompt[{index}]"), format!("'prompt[{index}]' is not a token id"))
        })?);
    }
    Ok(Prompt::Ids(TokenIds { ids }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn completion(extra: Value) -> Result<GenerateRequest, ApiError> {
        let mut object = json!({"model": "m", "prompt": "hi"});
        let fields = object.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        match read(fields)?.1 {
            Call::Generate(request) => Ok(request),
            Call::Chat(_) => panic!("not a completion"),
        }
    }

    #[test]
    fn a_prompt_is_text_or_ids() {
        let of = |prompt: Value| completion(json!({"prompt": prompt})).unwrap().prompt.unwrap();
        let ids = Prompt::Ids(TokenIds { ids: vec![0, 5] });
        assert_eq!(of(json!("x")), Prompt::Text("x".into()));
        assert_eq!(of(json!(["x"])), Prompt::Text("x".into()));
        assert_eq!(of(json!([0, 5])), ids);
        assert_eq!(of(json!([[0, 5]])), ids);
    }

    #[test]
    fn sixteen_tokens_unless_told_otherwise() {
        let most = |extra| completion(extra).unwrap().sampling.unwrap().max_tokens;
        assert_eq!(most(json!({})), Some(16));
        assert_eq!(most(json!({"max_tokens": 3})), Some(3));
    }

    #[test]
    fn what_is_wrong_or_not_served_is_named() {
        for (extra, param) in [
            (json!({"prompt": null}), "prompt"),
            (json!({"prompt": ""}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": [""]}), "prompt"),
            (json!({"prompt": [[]]}), "prompt"),
            (json!({"prompt": ["a", "b"]}), "prompt"),
            (json!({"prompt": 5}), "prompt"),
            (json!({"prompt": [1, -1]}), "prompt[1]"),
            (json!({"prompt": [1, 4294967296u64]}), "prompt[1]"),
            (json!({"prompt": [1, "a"]}), "prompt[1]"),
            (json!({"echo": true}), "echo"),
            (json!({"best_of": 2}), "best_of"),
            (json!({"suffix": "x"}), "suffix"),
            (json!({"logprobs": 0}), "logprobs"),
            (json!({"logprobs": 5}), "logprobs"),
        ] {
            let error = completion(extra.clone()).expect_err(&extra.to_string());
            assert_eq!((error.status.as_u16(), error.body.param.as_deref()), (400, Some(param)), "{extra}");
        }
    }
}

//! `/tokenize` and `/detokenize`, as vLLM has them.
use axum::{
    Extension, Json,
    extract::{Request, State},
};
use belay_proto::inference::{DetokenizeRequest, TokenizeRequest, TokenizeResponse, tokenize_request::Input};
use prost::Message;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    edge::{self, ApiError, Names, fields},
    life::Caller,
    measure::Work,
    observe::Record,
    request_id::RequestId,
    serve::App,
};

use super::{chat, completions};

type Answer = Result<Json<Value>, ApiError>;

/// `POST /tokenize`: a prompt, or a conversation with all that decides its prompt.
pub async fn tokenize(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Answer {
    let mut record = Record::begin(&app.dispatcher.metrics, &app.flights, id.clone(), "/tokenize");
    let answer = encode(&app, &id, request, &mut record).await;
    record.outcome(answer.as_ref().err().map_or(200, |error| error.status.as_u16()));
    answer.map(Json)
}

/// `POST /detokenize`.
pub async fn detokenize(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Answer {
    let mut record = Record::begin(&app.dispatcher.metrics, &app.flights, id.clone(), "/detokenize");
    let answer = decode(&app, &id, request, &mut record).await;
    record.outcome(answer.as_ref().err().map_or(200, |error| error.status.as_u16()));
    answer.map(Json)
}

async fn encode(app: &App, id: &RequestId, request: Request, record: &mut Record) -> Result<Value, ApiError> {
    let caller = Caller::of(request.headers(), request.extensions());
    let (request, wants_texts, names) = read(&edge::object(app, request).await?)?;
    let route = app.dispatcher.admit(&caller, &request.model, Work::of_bytes(request.encoded_len()))?;
    record.model(&route);
    let answer = app.dispatcher.tokenize(&route, request, &id.0).await;
    let answer = answer.map_err(|failure| ApiError::from(failure).renamed(&names))?;
    let TokenizeResponse { ids, tokens, max_context_tokens } = answer;
    let texts = || tokens.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect::<Value>();
    Ok(json!({ "count": ids.len(), "max_model_len": max_context_tokens, "tokens": ids,
               "token_strs": wants_texts.then(texts) }))
}

async fn decode(app: &App, id: &RequestId, request: Request, record: &mut Record) -> Result<Value, ApiError> {
    let caller = Caller::of(request.headers(), request.extensions());
    let request = read_ids(&edge::object(app, request).await?)?;
    let route = app.dispatcher.admit(&caller, &request.model, Work::of_bytes(request.encoded_len()))?;
    record.model(&route);
    let answer = app.dispatcher.detokenize(&route, request, &id.0).await;
    let answer = answer.map_err(|failure| ApiError::from(failure).renamed(&[("ids", "tokens")]))?;
    Ok(json!({ "prompt": answer.text }))
}

#[derive(Deserialize)]
struct Raw {
    model: Option<String>,
    prompt: Option<String>,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

/// The request, and whether the tokens' texts are wanted.
pub fn read(object: &Map<String, Value>) -> Result<(TokenizeRequest, bool, Names), ApiError> {
    let raw: Raw = fields::read(object)?;
    if raw.add_special_tokens == Some(true) {
        return Err(ApiError::unsupported("add_special_tokens"));
    }
    let has_messages = object.get("messages").is_some_and(|messages| !messages.is_null());
    let (input, names) = match raw.prompt {
        Some(_) if has_messages => {
            return Err(ApiError::invalid("prompt", "either 'prompt' or 'messages', not both"));
        }
        Some(prompt) => (Input::Text(prompt), Names::from([("text", "prompt")])),
        None if has_messages => {
            let (conversation, names) = chat::conversation(object)?;
            (Input::Chat(conversation), names)
        }
        None => return Err(ApiError::missing("prompt")),
    };
    let request = TokenizeRequest { model: raw.model.unwrap_or_default(), input: Some(input) };
    Ok((request, raw.return_token_strs.unwrap_or(false), names))
}

#[derive(Deserialize)]
struct RawIds {
    model: Option<String>,
    tokens: Option<Vec<Value>>,
}

/// The request of `/detokenize`.
pub fn read_ids(object: &Map<String, Value>) -> Result<DetokenizeRequest, ApiError> {
    let raw: RawIds = fields::read(object)?;
    let tokens = raw.tokens.ok_or_else(|| ApiError::missing("tokens"))?;
    let ids = completions::token_ids(&tokens, "tokens")?;
    Ok(DetokenizeRequest { model: raw.model.unwrap_or_default(), ids })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(object: Value) -> String {
        read(object.as_object().unwrap()).expect_err(&object.to_string()).body.param.unwrap()
    }

    #[test]
    fn a_prompt_or_a_conversation() {
        let of = |object: Value| read(object.as_object().unwrap()).unwrap();
        let (request, wants_texts, _) = of(json!({"prompt": "a", "add_special_tokens": false}));
        assert_eq!(
            (request.model.as_str(), request.input, wants_texts),
            ("", Some(Input::Text("a".into())), false)
        );
        let chat = json!({"model": "m", "messages": [{"role": "user", "content": "a"}], "return_token_strs": true,
                          "reasoning_effort": "none"});
        let (request, wants_texts, _) = of(chat);
        let Some(Input::Chat(chat)) = request.input else { panic!("{request:?}") };
        assert_eq!((chat.messages[0].content.as_str(), chat.thinking, wants_texts), ("a", Some(false), true));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (object, param) in [
            (json!({}), "prompt"),
            (json!({"prompt": ["a"]}), "prompt"),
            (json!({"prompt": "a", "messages": []}), "prompt"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "x", "content": ""}]}), "messages[0].role"),
            (json!({"prompt": "a", "add_special_tokens": true}), "add_special_tokens"),
        ] {
            assert_eq!(refused(object), param);
        }
        for (object, param) in [(json!({}), "tokens"), (json!({"tokens": [1, -1]}), "tokens[1]")] {
            let error = read_ids(object.as_object().unwrap()).expect_err(&object.to_string());
            assert_eq!(error.body.param.as_deref(), Some(param));
        }
    }
}

//! `/v1/messages/count_tokens`.
use axum::{
    Extension, Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use belay_proto::inference::{TokenizeRequest, tokenize_request::Input};
use prost::Message;
use serde_json::json;

use crate::{
    edge::{self, ApiError},
    life::Caller,
    measure::Work,
    observe::Record,
    request_id::RequestId,
    serve::App,
};

use super::{error, request};

const PATH: &str = "/v1/messages/count_tokens";

/// The handler.
pub async fn count(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Response {
    let mut record = Record::begin(&app.dispatcher.metrics, &app.flights, id.clone(), PATH);
    let counted = tokens(&app, &id, request, &mut record).await;
    record.outcome(counted.as_ref().err().map_or(200, |error| error.status.as_u16()));
    let answer = counted.map(|tokens| Json(json!({ "input_tokens": tokens })).into_response());
    error::respond(answer, &id)
}

async fn tokens(app: &App, id: &RequestId, request: Request, record: &mut Record) -> Result<usize, ApiError> {
    let caller = Caller::of(request.headers(), request.extensions());
    let object = edge::object(app, request).await?;
    let name =
        object.get("model").and_then(|name| name.as_str()).ok_or_else(|| ApiError::missing("model"))?;
    let (conversation, _) = request::conversation(&object)?;
    let request = TokenizeRequest { model: String::new(), input: Some(Input::Chat(conversation)) };
    let route = app.dispatcher.admit(&caller, name, Work::of_bytes(request.encoded_len()))?;
    record.model(&route);
    let answer = app.dispatcher.tokenize(&route, request, &id.0).await;
    let answer = answer.map_err(|failure| ApiError::from(failure).renamed(&request::names()))?;
    Ok(answer.ids.len())
}

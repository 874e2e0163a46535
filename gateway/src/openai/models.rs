//! `/v1/models`: every known model, whether a worker is ready or not.
use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::{Path, State},
};
use belay_proto::inference::{TokenizeRequest, tokenize_request::Input};
use serde::Serialize;

use crate::{edge::ApiError, keys::Key, life::Failure, measure::Work, serve::App};

/// How long a list waits for workers to say how long a context they serve.
const PATIENCE: Duration = Duration::from_millis(500);

/// A model.
#[derive(Debug, Serialize)]
pub struct Model {
    id: String,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
    /// Longest prompt + completion, as vLLM calls it; left out while no worker is there to ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<u32>,
}

/// Models.
#[derive(Debug, Serialize)]
pub struct Models {
    object: &'static str,
    data: Vec<Model>,
}

async fn model(app: &App, id: &str, created: i64, is_ready: bool) -> Model {
    let max_model_len = if is_ready { longest_context(app, id).await } else { None };
    Model { id: id.to_owned(), object: "model", created, owned_by: "belay", max_model_len }
}

/// Asks a worker of this model.
pub async fn longest_context(app: &App, model: &str) -> Option<u32> {
    let input = Some(Input::Text(" ".to_owned()));
    let route = app.dispatcher.fleet.route(model, Work::default());
    let request = TokenizeRequest { model: String::new(), input };
    let asking = app.dispatcher.tokenize(&route, request, "models");
    let answer = tokio::time::timeout(PATIENCE, asking).await.ok()?;
    answer.ok().map(|answer| answer.max_context_tokens)
}

/// A model that the key may not ask for is not there.
fn allows(key: &Option<Extension<Arc<Key>>>, model: &str) -> bool {
    key.as_ref().is_none_or(|key| key.allows(model))
}

/// `GET /v1/models`.
pub async fn list(State(app): State<App>, key: Option<Extension<Arc<Key>>>) -> Json<Models> {
    let view = app.dispatcher.fleet.view();
    let models = view.models.iter().filter(|(id, _)| allows(&key, id));
    let models = models.map(|(id, state)| model(&app, id, state.created, state.ready() > 0));
    Json(Models { object: "list", data: futures::future::join_all(models).await })
}

/// `GET /v1/models/{id}`.
pub async fn retrieve(
    State(app): State<App>,
    key: Option<Extension<Arc<Key>>>,
    Path(id): Path<String>,
) -> Result<Json<Model>, ApiError> {
    let view = app.dispatcher.fleet.view();
    let state = view.models.get(&id).filter(|_| allows(&key, &id));
    let state = state.ok_or_else(|| ApiError::from(Failure::UnknownModel(id.clone())))?;
    Ok(Json(model(&app, &id, state.created, state.ready() > 0).await))
}

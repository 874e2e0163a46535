//! `/v1/models`: every known model, whether a worker is ready or not.
use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;

use crate::{life::Failure, routing::ModelState, serve::App};

use super::ApiError;

/// A model.
#[derive(Debug, Serialize)]
pub struct Model {
    id: String,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
}

/// Models.
#[derive(Debug, Serialize)]
pub struct Models {
    object: &'static str,
    data: Vec<Model>,
}

fn model(id: &str, state: &ModelState) -> Model {
    Model { id: id.to_owned(), object: "model", created: state.created, owned_by: "belay" }
}

/// `GET /v1/models`.
pub async fn list(State(app): State<App>) -> Json<Models> {
    let view = app.dispatcher.fleet.view();
    let data = view.models.iter().map(|(id, state)| model(id, state)).collect();
    Json(Models { object: "list", data })
}

/// `GET /v1/models/{id}`.
pub async fn retrieve(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Model>, ApiError> {
    let view = app.dispatcher.fleet.view();
    let state = view.models.get(&id).ok_or_else(|| ApiError::from(Failure::UnknownModel(id.clone())))?;
    Ok(Json(model(&id, state)))
}

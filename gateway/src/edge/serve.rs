//! The way of a request through an HTTP API, up to its first piece: what goes wrong until then is answered by a status
//! of its own.
use axum::extract::Request;
use belay_proto::inference::GenerateResponse;
use serde_json::{Map, Value};

use crate::{
    life::{Call, Caller, Choices},
    observe::Record,
    request_id::RequestId,
    serve::App,
};

use super::{Answers, ApiError, body};

/// Pairs of names: a field of the worker's request, and the parameter that it came from.
pub type Names = Vec<(&'static str, &'static str)>;

/// A request, translated.
#[derive(Debug)]
pub struct Asked<F> {
    /// What the answer should look like.
    pub form: F,
    /// What workers are asked: one call a prompt.
    pub calls: Vec<Call>,
    /// For errors that only workers find.
    pub names: Names,
    /// What the body calls its session.
    pub session: Option<String>,
}

/// A body that must be a JSON object.
pub async fn object(app: &App, request: Request) -> Result<Map<String, Value>, ApiError> {
    let bytes = body::read(request.into_body(), app.max_body_bytes, app.body_time).await?;
    body::object(bytes).await
}

/// A request under way.
#[derive(Debug)]
pub struct Begun<F> {
    /// As in [`Asked`].
    pub form: F,
    /// The answers.
    pub choices: Choices,
    /// Already taken from them.
    pub first: Option<GenerateResponse>,
    /// As in [`Asked`].
    pub names: Names,
}

/// Reads, translates and asks; ends with the first piece.
pub async fn begin<F>(
    app: &App,
    id: &RequestId,
    request: Request,
    read: impl FnOnce(&Map<String, Value>) -> Result<Asked<F>, ApiError>,
    record: &mut Record,
) -> Result<Begun<F>, ApiError> {
    let caller = Caller::of(request.headers(), request.extensions());
    let Asked { form, mut calls, names, session } = read(&object(app, request).await?)?;
    let caller = caller.or_session(session.as_deref());
    let many = calls.len() > 1;
    for (index, call) in calls.iter_mut().enumerate() {
        let id = if many { format!("{}-{index}", id.0) } else { id.0.clone() };
        call.set_request_id(&id);
    }
    record.answers_per_prompt(calls.first().map_or(1, Call::answers));
    let mut choices = Choices::new(&app.dispatcher, &caller, calls).map_err(ApiError::from)?;
    record.model(choices.route());
    let first =
        choices.next().await.transpose().map_err(|failure| ApiError::from(failure).renamed(&names))?;
    Ok(Begun { form, choices, first, names })
}

/// Reads the answers to their end; the record gets the status.
pub async fn whole<F>(
    begun: Begun<F>,
    answers_per_prompt: usize,
    record: &mut Record,
) -> Result<Answers, ApiError> {
    let Begun { mut choices, first, names, .. } = begun;
    let answers = Answers::collect(&mut choices, first, answers_per_prompt, record).await;
    let answers = answers.map_err(|failure| ApiError::from(failure).renamed(&names));
    record.outcome(answers.as_ref().err().map_or(200, |error| error.status.as_u16()));
    answers
}

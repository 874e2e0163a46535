//! The record of one request: counted while it runs, logged and measured when it ends, however it ends.
use std::{sync::Arc, time::Instant};

use belay_proto::inference::{GenerateResponse, Usage};

use crate::{edge::Tally, keys::Ticket, measure::ModelMeter, request_id::RequestId, routing::Route};

use super::{Flight, Flights, Metrics};

/// See the module. Dropped without an outcome, the client went away.
#[derive(Debug)]
pub struct Record {
    metrics: Arc<Metrics>,
    _flight: Flight,
    id: RequestId,
    path: &'static str,
    model: String,
    meter: Option<Arc<ModelMeter>>,
    ticket: Option<Arc<Ticket>>,
    begin: Instant,
    first_token: Option<f64>,
    tally: Tally,
    code: Option<String>,
}

impl Record {
    /// A request begins.
    pub fn begin(metrics: &Arc<Metrics>, flights: &Flights, id: RequestId, path: &'static str) -> Self {
        metrics.in_flight.inc();
        Self {
            metrics: metrics.clone(),
            _flight: flights.begin(),
            id,
            path,
            model: String::new(),
            meter: None,
            ticket: None,
            begin: Instant::now(),
            first_token: None,
            tally: Tally::new(1),
            code: None,
        }
    }

    /// The model, once it is certain that there is one of that name.
    pub fn model(&mut self, route: &Route) {
        self.model.clone_from(&route.target.model);
        route.meter.arrive();
        self.meter = Some(route.meter.clone());
        self.ticket.clone_from(&route.ticket);
    }

    /// How many answers each prompt gets; 1 unless told otherwise.
    pub fn answers_per_prompt(&mut self, answers: u32) {
        self.tally = Tally::new(answers as usize);
    }

    /// A piece goes to the client.
    pub fn piece(&mut self, piece: &GenerateResponse) {
        if self.first_token.is_none() && !piece.ids.is_empty() {
            let elapsed = self.begin.elapsed();
            self.first_token = Some(elapsed.as_secs_f64());
            self.metrics.first_token(&self.model, elapsed.as_secs_f64());
            if let Some(meter) = &self.meter {
                meter.first_token.observe(elapsed);
            }
        }
        self.tally.piece(piece);
    }

    /// How it ended: an HTTP status, or the name of a gRPC code. The first word counts.
    pub fn outcome(&mut self, code: impl ToString) {
        self.code.get_or_insert_with(|| code.to_string());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self { metrics, id, path, model, .. } = self;
        let seconds = self.begin.elapsed().as_secs_f64();
        let code = self.code.take().unwrap_or_else(|| "client_gone".to_owned());
        let Usage { prompt_tokens, completion_tokens, .. } = self.tally.total();
        metrics.in_flight.dec();
        if let Some(ticket) = &self.ticket {
            ticket.settle(u64::from(prompt_tokens) + u64::from(completion_tokens));
        }
        if let Some(meter) = &self.meter {
            meter.touch();
        }
        metrics.tokens(model, prompt_tokens, completion_tokens);
        let (request, first_token) = (&id.0, self.first_token);
        let key = self.ticket.as_ref().map(|ticket| ticket.key_name());
        let key = key.as_deref();
        tracing::info!(
            request,
            path,
            model,
            key,
            code,
            seconds,
            first_token,
            prompt_tokens,
            completion_tokens,
            "request"
        );
        metrics.finished(model, path, code, seconds);
    }
}

//! `belay.gateway.v1.Measurements`.
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use belay_proto::gateway::{
    Model, ReadRequest, ReadResponse, Revision,
    measurements_server::{self, MeasurementsServer},
};
use tonic::{Request, Response, Status, service::Routes};
use uuid::Uuid;

use crate::routing::Fleet;

use super::{Meters, ModelMeter, RevisionMeter};

/// See the module.
#[derive(Clone, Debug)]
pub struct Measurements {
    instance: String,
    fleet: Arc<Fleet>,
}

impl Measurements {
    /// Of a gateway with this fleet: an instance of its own.
    pub fn new(fleet: Arc<Fleet>) -> Self {
        Self { instance: Uuid::new_v4().to_string(), fleet }
    }

    /// The gRPC service.
    pub fn routes(self) -> Routes {
        Routes::new(MeasurementsServer::new(self))
    }

    /// Everything, now: every model that exists, and what is still remembered of those that do not.
    pub fn read(&self) -> ReadResponse {
        let meters = self.fleet.meters();
        let view = self.fleet.view();
        forget(meters, &self.fleet);
        let measured = meters.models();
        let mut names: BTreeSet<&str> = view.models.keys().map(String::as_str).collect();
        names.extend(measured.iter().map(|(name, _)| name.as_str()));
        let model = |name: &str| {
            let mut model = model(name, &meters.model(name));
            if let Some(state) = view.models.get(name) {
                model.namespace.clone_from(&state.namespace);
                model.deployment.clone_from(&state.deployment);
            }
            model
        };
        ReadResponse { instance: self.instance.clone(), models: names.into_iter().map(model).collect() }
    }
}

/// Drops what neither exists nor was asked for in a while.
pub(super) fn forget(meters: &Meters, fleet: &Fleet) {
    let view = fleet.view();
    meters.forget(Instant::now(), |model, revision| {
        let state = view.models.get(model);
        state.is_some_and(|state| revision.is_none_or(|revision| state.has_revision(revision)))
    });
}

fn model(name: &str, meter: &ModelMeter) -> Model {
    Model {
        name: name.to_owned(),
        held: meter.held.requests(),
        held_tokens: meter.held.tokens(),
        outstanding: meter.outstanding.requests(),
        outstanding_tokens: meter.outstanding.tokens(),
        arrived: meter.arrived.load(Ordering::Relaxed),
        refused: meter.refused.load(Ordering::Relaxed),
        idle_milliseconds: whole_milliseconds(meter.idle()),
        first_token: Some(meter.first_token.message()),
        revisions: meter.revisions().iter().map(|(name, meter)| revision(name, meter)).collect(),
        ..Model::default()
    }
}

fn revision(name: &str, meter: &RevisionMeter) -> Revision {
    Revision {
        revision: name.to_owned(),
        served: meter.served.load(Ordering::Relaxed),
        failed: meter.failed.load(Ordering::Relaxed),
        rejected: meter.rejected.load(Ordering::Relaxed),
        passed_on: meter.passed_on.load(Ordering::Relaxed),
        first_token: Some(meter.first_token.message()),
        inter_token: Some(meter.inter_token.message()),
        prompt_tokens: meter.prompt_tokens.load(Ordering::Relaxed),
        completion_tokens: meter.completion_tokens.load(Ordering::Relaxed),
    }
}

fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[tonic::async_trait]
impl measurements_server::Measurements for Measurements {
    async fn read(&self, _: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        Ok(Response::new(Self::read(self)))
    }
}

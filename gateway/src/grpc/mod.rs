//! The gRPC services of the API address: `belay.inference.v1.Inference`, the KServe open inference protocol, health,
//! reflection. The workers' admin service is never passed through.
mod deadline;
mod inference;
mod kserve;
mod reflection;

use anyhow::Context;
use belay_proto::{
    inference::inference_server::InferenceServer,
    kserve::grpc_inference_service_server::GrpcInferenceServiceServer,
};
use tonic::{codec::CompressionEncoding, server::NamedService, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{life::Caller, request_id::RequestId, serve::App};

type Text = InferenceServer<inference::Service>;
type Kserve = GrpcInferenceServiceServer<kserve::Service>;

const SERVICES: [&str; 3] = ["", Text::NAME, Kserve::NAME];

/// All services, and the switch of the health service.
pub async fn routes(app: App) -> anyhow::Result<(HealthReporter, Routes)> {
    let limit = app.max_body_bytes;
    let text = Text::new(inference::Service::new(app.clone()))
        .max_decoding_message_size(limit)
        .accept_compressed(CompressionEncoding::Gzip);
    let kserve = Kserve::new(kserve::Service::new(app))
        .max_decoding_message_size(limit)
        .accept_compressed(CompressionEncoding::Gzip);
    let (reporter, health) = tonic_health::server::health_reporter();
    report(&reporter, ServingStatus::Serving).await;
    let files = reflection::files().context("the descriptors of the services cannot be read")?;
    let v1 = reflection::builder(&files).build_v1().context("reflection v1")?;
    let v1alpha = reflection::builder(&files).build_v1alpha().context("reflection v1alpha")?;
    let routes =
        Routes::new(text).add_service(kserve).add_service(health).add_service(v1).add_service(v1alpha);
    Ok((reporter, routes))
}

/// From now on the health service says "not serving".
pub async fn leave(reporter: &HealthReporter) {
    report(reporter, ServingStatus::NotServing).await;
}

async fn report(reporter: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

/// Who sent a request.
fn caller<T>(request: &tonic::Request<T>) -> Caller {
    Caller::of(request.metadata().as_ref(), request.extensions())
}

fn code_name(code: tonic::Code) -> String {
    format!("{code:?}")
}

fn request_id<T>(request: &tonic::Request<T>) -> RequestId {
    request.extensions().get::<RequestId>().cloned().unwrap_or_else(RequestId::new)
}

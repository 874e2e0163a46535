//! KEDA's external scaler: what gateways measure, for those who scale by KEDA in the place of `spec.autoscaling`. Served by
//! every operator, whether it leads or not: it only reads.
use std::{net::SocketAddr, pin::Pin, str::FromStr, sync::Arc};

use anyhow::Context as _;
use belay_proto::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
    external_scaler_server::{ExternalScaler, ExternalScalerServer},
};
use futures::{Stream, StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use crate::gateways::{Gateways, Measure};

/// Seconds after the last request for which a model counts as used, if the trigger does not say.
const ACTIVE_SECONDS: u64 = 60;

/// See the module.
#[derive(Clone, Debug)]
pub struct Scaler {
    gateways: Arc<Gateways>,
    stop: CancellationToken,
}

/// What a trigger asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    QueuedTokens,
    OutstandingTokens,
    HeldRequests,
}

impl Metric {
    fn name(self) -> &'static str {
        match self {
            Self::QueuedTokens => "queuedTokens",
            Self::OutstandingTokens => "outstandingTokens",
            Self::HeldRequests => "heldRequests",
        }
    }

    /// Target for each group of triggers that name none.
    fn target(self) -> u64 {
        match self {
            Self::QueuedTokens => 4096,
            Self::OutstandingTokens => 16384,
            Self::HeldRequests => 8,
        }
    }

    fn of(self, measure: &Measure) -> u64 {
        match self {
            Self::QueuedTokens => measure.held_tokens,
            Self::OutstandingTokens => measure.held_tokens.saturating_add(measure.outstanding_tokens),
            Self::HeldRequests => measure.held,
        }
    }
}

/// A trigger, checked.
#[derive(Debug)]
struct Trigger {
    namespace: String,
    deployment: String,
    metric: Metric,
    target: u64,
    active_seconds: u64,
}

impl Trigger {
    fn new(object: ScaledObjectRef) -> Result<Self, Status> {
        let wrong = |message: String| Status::invalid_argument(message);
        let value = |key: &str| object.scaler_metadata.get(key).map(String::as_str);
        let deployment = value("modelDeployment").ok_or_else(|| {
            wrong("metadata.modelDeployment: names the ModelDeployment, and is missing".to_owned())
        })?;
        let metric = match value("metric") {
            None => Metric::OutstandingTokens,
            Some(name) => [Metric::QueuedTokens, Metric::OutstandingTokens, Metric::HeldRequests]
                .into_iter()
                .find(|metric| metric.name() == name)
                .ok_or_else(|| {
                    wrong(format!(
                        "metadata.metric: \"{name}\" is none of queuedTokens, outstandingTokens and heldRequests"
                    ))
                })?,
        };
        let number = |key: &str, otherwise: u64| match value(key).map(u64::from_str) {
            None => Ok(otherwise),
            Some(Ok(number)) if number > 0 => Ok(number),
            Some(_) => Err(wrong(format!("metadata.{key}: must be a whole number of at least 1"))),
        };
        Ok(Self {
            deployment: deployment.to_owned(),
            metric,
            target: number("target", metric.target())?,
            active_seconds: number("activeSeconds", ACTIVE_SECONDS)?,
            namespace: object.namespace,
        })
    }
}

impl Scaler {
    /// Tells what `gateways` know, until `stop`.
    pub fn new(gateways: Arc<Gateways>, stop: CancellationToken) -> Self {
        Self { gateways, stop }
    }

    /// What is known of all of a deployment's requests. What is not known is an error, not a number: on an error KEDA leaves
    /// everything as it is.
    fn measure(&self, trigger: &Trigger) -> Result<Measure, Status> {
        let silent = self.gateways.silent();
        if silent > 0 {
            return Err(Status::unavailable(format!("{silent} gateways do not answer")));
        }
        let Trigger { namespace, deployment, .. } = trigger;
        self.gateways.measure(namespace, deployment).ok_or_else(|| {
            Status::unavailable(format!("no gateway tells of ModelDeployment {namespace}/{deployment}"))
        })
    }

    fn active(&self, trigger: &Trigger) -> Result<bool, Status> {
        let measure = self.measure(trigger)?;
        let quiet = measure.held == 0 && measure.outstanding == 0;
        // not `idle`: with every gateway that starts, all models at zero would be woken for nobody
        let lately = measure.asked.is_some_and(|asked| asked.as_secs() < trigger.active_seconds);
        Ok(!quiet || lately)
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    type StreamIsActiveStream = Answers;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let trigger = Trigger::new(request.into_inner())?;
        Ok(Response::new(IsActiveResponse { result: self.active(&trigger)? }))
    }

    async fn stream_is_active(&self, request: Request<ScaledObjectRef>) -> Result<Response<Answers>, Status> {
        let trigger = Trigger::new(request.into_inner())?;
        let mut rounds = self.gateways.rounds();
        rounds.mark_changed();
        let state = (self.clone(), trigger, rounds, None);
        // while nothing is known, nothing is told
        let changes = stream::unfold(state, async |(scaler, trigger, mut rounds, told)| {
            loop {
                rounds.changed().await.ok()?;
                match scaler.active(&trigger) {
                    Ok(active) if told != Some(active) => {
                        let answer = Ok(IsActiveResponse { result: active });
                        return Some((answer, (scaler, trigger, rounds, Some(active))));
                    }
                    _ => {}
                }
            }
        });
        Ok(Response::new(Box::pin(changes.take_until(self.stop.clone().cancelled_owned()))))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let trigger = Trigger::new(request.into_inner())?;
        let spec = MetricSpec {
            metric_name: trigger.metric.name().to_owned(),
            target_size: i64::try_from(trigger.target).unwrap_or(i64::MAX),
            target_size_float: trigger.target as f64,
        };
        Ok(Response::new(GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let object = request.into_inner().scaled_object_ref;
        let trigger =
            Trigger::new(object.ok_or_else(|| Status::invalid_argument("scaledObjectRef is missing"))?)?;
        let value = trigger.metric.of(&self.measure(&trigger)?);
        let value = MetricValue {
            metric_name: trigger.metric.name().to_owned(),
            metric_value: i64::try_from(value).unwrap_or(i64::MAX),
            metric_value_float: value as f64,
        };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }
}

/// Serves until `stop`.
///
/// # Errors
/// When the address cannot be bound or serving fails.
pub async fn serve(
    address: SocketAddr,
    gateways: Arc<Gateways>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    serve_on(listener, gateways, stop).await
}

/// Serves on a listener until `stop`.
///
/// # Errors
/// When serving fails.
pub async fn serve_on(
    listener: TcpListener,
    gateways: Arc<Gateways>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let service = ExternalScalerServer::new(Scaler::new(gateways, stop.clone()));
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stop.cancelled_owned(),
        )
        .await
        .context("serve the external scaler")
}

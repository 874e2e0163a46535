//! The external scaler as KEDA calls it, over real sockets: a gateway on one side, a client on the other.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "the played gateway is shared")]

#[path = "apiserver/played_gateway.rs"]
mod played_gateway;

use std::{sync::Arc, time::Duration};

use belay_operator::{external_scaler, gateways::Gateways};
use belay_proto::{
    externalscaler::{GetMetricsRequest, ScaledObjectRef, external_scaler_client::ExternalScalerClient},
    gateway::Model,
};
use played_gateway::PlayedGateway;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};

struct Setup {
    gateway: PlayedGateway,
    gateways: Arc<Gateways>,
    client: ExternalScalerClient<Channel>,
    stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

async fn setup() -> Setup {
    let gateway = PlayedGateway::start().await;
    let gateways = Arc::new(Gateways::new(Some(gateway.address().to_owned())));
    let stop = CancellationToken::new();
    let (asks, asks_stop) = (gateways.clone(), stop.clone());
    drop(tokio::spawn(async move { asks.run(asks_stop).await }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(external_scaler::serve_on(listener, gateways.clone(), stop.clone()));
    let client = ExternalScalerClient::connect(address).await.unwrap();
    Setup { gateway, gateways, client, stop, serving }
}

fn object(metadata: &[(&str, &str)]) -> ScaledObjectRef {
    ScaledObjectRef {
        name: "nano".into(),
        namespace: "models".into(),
        scaler_metadata: metadata.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
    }
}

impl Setup {
    async fn value(&mut self, metric: &str) -> Result<f64, tonic::Status> {
        let request = GetMetricsRequest {
            scaled_object_ref: Some(object(&[("modelDeployment", "nano"), ("metric", metric)])),
            metric_name: metric.into(),
        };
        let answer = self.client.get_metrics(request).await?.into_inner().metric_values.remove(0);
        assert_eq!(
            (answer.metric_name.as_str(), answer.metric_value),
            (metric, answer.metric_value_float as i64)
        );
        Ok(answer.metric_value_float)
    }

    /// Tells it, and waits until it is known.
    async fn tell(&self, model: Model) {
        self.gateway.tell("models", "nano", model.clone());
        let mut rounds = self.gateways.rounds();
        let known = || {
            let measure = self.gateways.measure("models", "nano");
            measure
                .is_some_and(|measure| measure.held == model.held && measure.outstanding == model.outstanding)
        };
        tokio::time::timeout(Duration::from_secs(30), async {
            while !known() {
                rounds.changed().await.unwrap();
            }
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn tells_what_gateways_measure_with_its_target() {
    let mut setup = setup().await;
    let unknown = setup.value("queuedTokens").await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable, "what is not known is no number");
    setup
        .tell(Model {
            held: 3,
            held_tokens: 700,
            outstanding: 4,
            outstanding_tokens: 2000,
            ..Model::default()
        })
        .await;
    assert_eq!(setup.value("queuedTokens").await.unwrap(), 700.0);
    assert_eq!(setup.value("outstandingTokens").await.unwrap(), 2700.0);
    assert_eq!(setup.value("heldRequests").await.unwrap(), 3.0);

    let plain = object(&[("modelDeployment", "nano")]);
    let spec = setup.client.get_metric_spec(plain).await.unwrap().into_inner().metric_specs.remove(0);
    assert_eq!(
        (spec.metric_name.as_str(), spec.target_size, spec.target_size_float),
        ("outstandingTokens", 16384, 16384.0)
    );
    let set = object(&[("modelDeployment", "nano"), ("metric", "heldRequests"), ("target", "5")]);
    let spec = setup.client.get_metric_spec(set).await.unwrap().into_inner().metric_specs.remove(0);
    assert_eq!((spec.metric_name.as_str(), spec.target_size), ("heldRequests", 5));

    for (metadata, words) in [
        (&[("metric", "queuedTokens")][..], "modelDeployment"),
        (&[("modelDeployment", "nano"), ("metric", "cpu")], "\"cpu\" is none of"),
        (&[("modelDeployment", "nano"), ("target", "0")], "metadata.target"),
        (&[("modelDeployment", "nano"), ("activeSeconds", "1m")], "metadata.activeSeconds"),
    ] {
        let refusal = setup.client.get_metric_spec(object(metadata)).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument);
        assert!(refusal.message().contains(words), "{refusal}");
    }
}

#[tokio::test]
async fn tells_when_a_model_is_used_and_when_no_more() {
    let mut setup = setup().await;
    let trigger = || object(&[("modelDeployment", "nano"), ("activeSeconds", "5")]);
    let mut changes = setup.client.stream_is_active(trigger()).await.unwrap().into_inner();
    let idle = Model { idle_milliseconds: 600_000, arrived: 1, ..Model::default() };
    for (model, active) in [
        // it has just started, and nobody has asked
        (Model { idle_milliseconds: 1, ..Model::default() }, false),
        (Model { held: 1, arrived: 1, ..Model::default() }, true),
        (idle, false),
        // nothing is under way, but a moment ago something was
        (Model { idle_milliseconds: 1, arrived: 1, ..Model::default() }, true),
    ] {
        setup.gateway.tell("models", "nano", model);
        let told = tokio::time::timeout(Duration::from_secs(30), changes.message()).await.unwrap();
        assert_eq!(told.unwrap().unwrap().result, active);
        assert_eq!(setup.client.is_active(trigger()).await.unwrap().into_inner().result, active);
    }
    // a stream that nobody ends does not hold up the end
    setup.stop.cancel();
    assert!(changes.message().await.is_ok_and(|message| message.is_none()));
    tokio::time::timeout(Duration::from_secs(30), setup.serving).await.unwrap().unwrap().unwrap();
}

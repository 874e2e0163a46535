//! Who answers: a gateway if there is one, else a worker, either through a port-forward.
use std::sync::Arc;

use anyhow::{Result, bail};
use belay_proto::inference::inference_client::InferenceClient;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use tonic::transport::Channel;

use crate::{
    cluster::{Cluster, Deployment},
    workers::{self, port_forward::PortForward},
};

/// Selects gateways.
const GATEWAYS: &str = "app.kubernetes.io/name=belay-gateway";
/// Name of a gateway's port for clients, and its usual number.
const GATEWAY_PORT: (&str, u16) = ("api", 8080);
/// Port of the inference service in every worker pod.
const WORKER_PORT: u16 = 50051;

/// Somebody who answers.
#[derive(Clone, Debug)]
pub struct Source {
    /// For people: `gateway belay/belay-gateway-x`, `pod models/nano-0-0`.
    pub name: String,
    /// Whether it is a gateway, which may ask for a key.
    pub is_gateway: bool,
    /// The way there.
    pub client: InferenceClient<Channel>,
}

/// Which of them may be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Via {
    /// A gateway if one is ready, else a worker
    #[default]
    Any,
    /// A gateway
    Gateway,
    /// A worker, past the gateway
    Worker,
}

/// Finds those who can answer, the best first.
///
/// # Errors
/// If there is nobody.
pub async fn find(cluster: &Cluster, deployment: &Deployment, via: Via) -> Result<Vec<Source>> {
    let mut sources = vec![];
    let mut gateways = vec![];
    if via != Via::Worker {
        gateways = self::gateways(cluster).await.unwrap_or_default();
        sources.extend(gateways.iter().filter(|pod| is_ready(pod)).map(|pod| gateway(cluster.client(), pod)));
    }
    if via != Via::Gateway {
        let mut pods = cluster.owned(deployment).await?.pods;
        pods.retain(|pod| is_ready(pod) && !is_draining(pod));
        sources.extend(pods.iter().map(|pod| source(cluster.client(), "pod", pod, WORKER_PORT)));
    }
    if sources.is_empty() {
        let at = format!("modeldeployment {}/{}", cluster.namespace(), deployment.name);
        let state = deployment.troubles().into_iter().next();
        let state = state.map_or_else(String::new, |trouble| format!(" ({trouble})"));
        match via {
            Via::Gateway if gateways.is_empty() => bail!("no gateway is found; --via worker asks a worker"),
            Via::Gateway => bail!("no gateway is ready"),
            Via::Any | Via::Worker => {
                bail!("{at}: no worker is ready{state}; kubectl belay status {}", deployment.name)
            }
        }
    }
    Ok(sources)
}

/// Of all namespaces; of this one alone, if others may not be looked at.
async fn gateways(cluster: &Cluster) -> Result<Vec<Pod>, kube::Error> {
    let params = ListParams::default().labels(GATEWAYS);
    match Api::<Pod>::all(cluster.client()).list(&params).await {
        Ok(list) => Ok(list.items),
        Err(_) => Ok(cluster.pods().list(&params).await?.items),
    }
}

fn gateway(client: Client, pod: &Pod) -> Source {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.find(|port| port.name.as_deref() == Some(GATEWAY_PORT.0));
    let port = named.and_then(|port| u16::try_from(port.container_port).ok()).unwrap_or(GATEWAY_PORT.1);
    source(client, "gateway", pod, port)
}

fn source(client: Client, kind: &str, pod: &Pod, port: u16) -> Source {
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let reach = PortForward::new(Api::namespaced(client, &namespace), port);
    let (channel, _) = workers::channel(Arc::new(reach), name.clone());
    Source {
        client: InferenceClient::new(channel),
        is_gateway: kind == "gateway",
        name: format!("{kind} {namespace}/{name}"),
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

fn is_draining(pod: &Pod) -> bool {
    pod.annotations().get(belay_crds::labels::DRAINING).is_some_and(|value| value == "true")
}

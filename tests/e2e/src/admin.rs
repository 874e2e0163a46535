//! A worker's admin service, asked from this machine.

use std::process::Stdio;

use anyhow::{Context, Result};
use belay_proto::admin::{GetExpertLoadRequest, GetStatusRequest, WorkerStatus, admin_client::AdminClient};
use tokio::task;
use tonic::transport::{Channel, Endpoint};

use crate::{kubectl::Kubectl, routing::Load, tunnel::Tunnel};

/// Port of the service.
const PORT: u16 = 50052;

/// A way to one worker's admin service.
#[derive(Debug)]
pub struct Admin {
    tunnel: Tunnel,
    client: AdminClient<Channel>,
}

impl Admin {
    /// Opens a tunnel to a pod.
    ///
    /// # Errors
    /// If it does not open.
    pub async fn open(kubectl: &Kubectl, pod: &str) -> Result<Self> {
        let (kubectl, pod) = (kubectl.clone(), pod.to_owned());
        // its complaints are what a lost pod is expected to cause
        let open = move || Tunnel::open(&kubectl, &pod, PORT, Stdio::null());
        let tunnel = task::spawn_blocking(open).await.context("the tunnel's opening was cut off")??;
        let client = AdminClient::new(Endpoint::from_shared(tunnel.url())?.connect_lazy());
        Ok(Self { tunnel, client })
    }

    /// Whether the tunnel is still open.
    pub fn is_open(&mut self) -> bool {
        self.tunnel.is_open()
    }

    /// What the worker says of itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status(&mut self) -> Result<WorkerStatus> {
        Ok(self.client.get_status(GetStatusRequest {}).await?.into_inner())
    }

    /// Where its tokens went, of late more than long ago.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn load(&mut self) -> Result<Load> {
        Ok(Load::of(&self.client.get_expert_load(GetExpertLoadRequest {}).await?.into_inner()))
    }
}

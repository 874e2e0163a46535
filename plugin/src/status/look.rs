//! Asks the API server and the workers what the tree is made from.
use std::{collections::BTreeMap, sync::Arc};

use anyhow::Result;
use belay_proto::admin::WorkerStatus;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::grow::Seen;
use crate::{
    cluster::Cluster,
    workers::{ADMIN_PORT, ANSWER_LIMIT, Workers, port_forward::PortForward},
};

/// Looks again and again, over connections that it keeps.
pub struct Look {
    cluster: Cluster,
    workers: Workers,
}

impl Look {
    /// Workers are reached by port-forward.
    pub fn new(cluster: Cluster) -> Self {
        let reach = PortForward::new(cluster.pods(), ADMIN_PORT);
        Self { workers: Workers::new(Arc::new(reach), ANSWER_LIMIT), cluster }
    }

    /// Everything about a deployment at this moment.
    ///
    /// # Errors
    /// When the API server does not tell. A worker that does not answer is an observation, not an error.
    pub async fn at(&self, name: &str) -> Result<Seen> {
        let deployment = self.cluster.deployment(name).await?;
        let (owned, events) = tokio::join!(self.cluster.owned(&deployment), self.cluster.events(&deployment));
        let owned = owned?;
        let workers = self.ask(&owned.pods).await;
        Ok(Seen { deployment, owned, workers, events, now: Timestamp::now() })
    }

    /// What the workers in running pods say, by pod UID.
    pub async fn ask(&self, pods: &[Pod]) -> BTreeMap<String, Result<WorkerStatus, String>> {
        let running = pods.iter().filter(|pod| runs(pod));
        let answers = running.map(async |pod: &Pod| {
            let answer = self.workers.status(&pod.name_any()).await.map_err(|error| error.to_string());
            Some((pod.uid()?, answer))
        });
        join_all(answers).await.into_iter().flatten().collect()
    }
}

/// Whether the worker process runs, as far as the kubelet has told.
fn runs(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    let mut states = statuses.unwrap_or_default().iter().filter_map(|status| status.state.as_ref());
    states.any(|state| state.running.is_some())
}

//! Discovery from the Kubernetes API: ModelDeployments and worker pods become the routing table.
//!
//! The watches start over by themselves. While the API server is away, the last table stays.
use std::sync::Arc;

use belay_crds::{ModelDeployment, labels};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt, reflector, watcher},
};

use crate::routing::Fleet;

use super::objects::{Deployment, table};

/// Changes that arrive together make one new table.
const BATCH: usize = 256;

/// Watches for ever, and tells the fleet of every change. `namespace`: only there; `None`: everywhere.
///
/// ModelDeployments are read as dynamic objects: the gateway needs one field of them, and serves on when an object
/// of another version has fields that it cannot read.
pub async fn watch(client: Client, namespace: Option<String>, fleet: Arc<Fleet>) {
    let resource = ApiResource::erase::<ModelDeployment>(&());
    let (deployments, pods): (Api<DynamicObject>, Api<Pod>) = match &namespace {
        Some(namespace) => {
            (Api::namespaced_with(client.clone(), namespace, &resource), Api::namespaced(client, namespace))
        }
        None => (Api::all_with(client.clone(), &resource), Api::all(client)),
    };
    let workers = watcher::Config::default().labels(&format!("{}={}", labels::NAME, labels::NAME_VALUE));

    let deployment_writer = reflector::store::Writer::new(resource);
    let pod_writer = reflector::store::Writer::new(());
    let (deployment_store, pod_store) = (deployment_writer.as_reader(), pod_writer.as_reader());
    let deployment_news =
        news(watcher(deployments, watcher::Config::default()), deployment_writer, Kind::Deployments);
    let pod_news = news(watcher(pods, workers), pod_writer, Kind::Pods);

    let mut listed = Listed::default();
    let mut last = None;
    let mut batches = std::pin::pin!(futures::stream::select(deployment_news, pod_news).ready_chunks(BATCH));
    while let Some(batch) = batches.next().await {
        batch.iter().for_each(|news| listed.note(news));
        if listed.deployments && listed.pods {
            let found: Vec<Deployment> =
                deployment_store.state().iter().filter_map(|o| Deployment::of(o)).collect();
            let table = table(&found, &pod_store.state());
            // most news are heartbeats of no consequence here
            if last.as_ref() != Some(&table) {
                fleet.update(&table);
                last = Some(table);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Deployments,
    Pods,
}

/// A change of the stores.
struct News {
    kind: Kind,
    is_whole_list: bool,
}

/// Which kinds have been listed as a whole at least once. Before that a missing object means nothing.
#[derive(Default)]
struct Listed {
    deployments: bool,
    pods: bool,
}

impl Listed {
    fn note(&mut self, news: &News) {
        match news.kind {
            Kind::Deployments => self.deployments |= news.is_whole_list,
            Kind::Pods => self.pods |= news.is_whole_list,
        }
    }
}

/// Keeps a store by a watch; yields when the store may have changed.
fn news<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    writer: reflector::store::Writer<K>,
    kind: Kind,
) -> impl Stream<Item = News> + Send
where
    K: kube::Resource + ResourceExt + Clone + Send + Sync + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone + Send + Sync,
{
    events
        .modify(|object| object.managed_fields_mut().clear())
        .default_backoff()
        .reflect(writer)
        .filter_map(move |event| async move {
            match event {
                // a list under way changes the store only when it is complete
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
                Ok(watcher::Event::InitDone) => Some(News { kind, is_whole_list: true }),
                Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_)) => {
                    Some(News { kind, is_whole_list: false })
                }
                Err(error) => {
                    tracing::warn!(%error, "the Kubernetes API is away; what is known of it stays in use");
                    None
                }
            }
        })
        .boxed()
}

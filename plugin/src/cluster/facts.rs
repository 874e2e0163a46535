//! Objects as they are, for commands that look at more than groups.
use anyhow::{Context as _, Result};
use belay_crds::{ModelDeployment, labels};
use k8s_openapi::api::{
    apps::v1::ControllerRevision,
    core::v1::{ConfigMap, Event, Node, Pod, Service},
};
use kube::{
    Api,
    api::{DynamicObject, ListParams},
    core::ApiResource,
};

use super::{Cluster, Deployment, owned};

/// What the API server has of a deployment.
#[derive(Clone, Debug, Default)]
pub struct Owned {
    /// Pods of its workers.
    pub pods: Vec<Pod>,
    /// The records of its groups.
    pub services: Vec<Service>,
}

/// All that the operator made for a deployment, as far as it decides about groups by it.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// Pods of its workers.
    pub pods: Vec<Pod>,
    /// The records of its groups.
    pub services: Vec<Service>,
    /// Placements.
    pub config_maps: Vec<ConfigMap>,
    /// Revisions.
    pub revisions: Vec<ControllerRevision>,
}

impl Cluster {
    /// The same cluster, another namespace.
    #[must_use]
    pub fn within(&self, namespace: &str) -> Self {
        Self { client: self.client.clone(), namespace: namespace.to_owned() }
    }

    /// A deployment as the API server has it.
    ///
    /// # Errors
    /// If it does not exist, or can't be read.
    pub async fn object(&self, name: &str) -> Result<DynamicObject> {
        self.deployments().get(name).await.with_context(|| self.what(name))
    }

    /// The same; `None` if it does not exist.
    ///
    /// # Errors
    /// If it can't be read.
    pub async fn object_if_any(&self, name: &str) -> Result<Option<DynamicObject>> {
        self.deployments().get_opt(name).await.with_context(|| self.what(name))
    }

    /// All nodes and all pods of the cluster.
    ///
    /// # Errors
    /// If they can't be read.
    pub async fn inventory(&self) -> Result<(Vec<Node>, Vec<Pod>)> {
        let (nodes, pods) = (Api::<Node>::all(self.client.clone()), Api::<Pod>::all(self.client.clone()));
        let everything = ListParams::default();
        let (nodes, pods) = tokio::join!(nodes.list(&everything), pods.list(&everything));
        let (mut nodes, pods) =
            (nodes.context("nodes")?.items, pods.context("pods of all namespaces")?.items);
        nodes.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        Ok((nodes, pods))
    }

    /// All that the operator made for a deployment.
    ///
    /// # Errors
    /// If it can't be read.
    pub async fn holdings(&self, deployment: &Deployment) -> Result<Holdings> {
        let params = ListParams::default().labels(&labels::selector(&deployment.name));
        let (pods, services, config_maps, revisions) = (
            self.pods(),
            Api::<Service>::namespaced(self.client.clone(), &self.namespace),
            Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace),
            Api::<ControllerRevision>::namespaced(self.client.clone(), &self.namespace),
        );
        let lists = tokio::try_join!(
            pods.list(&params),
            services.list(&params),
            config_maps.list(&params),
            revisions.list(&params),
        );
        let (pods, services, config_maps, revisions) =
            lists.with_context(|| format!("objects of {}", self.what(&deployment.name)))?;
        let uid = deployment.uid();
        Ok(Holdings {
            pods: owned(pods, uid),
            services: owned(services, uid),
            config_maps: owned(config_maps, uid),
            revisions: owned(revisions, uid),
        })
    }

    /// The deployments of the namespace, or of all, by namespace and name.
    ///
    /// # Errors
    /// If they can't be read.
    pub async fn list_deployments(&self, everywhere: bool) -> Result<Vec<Deployment>> {
        let resource = ApiResource::erase::<ModelDeployment>(&());
        let api: Api<DynamicObject> = match everywhere {
            true => Api::all_with(self.client.clone(), &resource),
            false => self.deployments(),
        };
        let list = api.list(&ListParams::default()).await;
        let list = list.context(match everywhere {
            true => "modeldeployments of all namespaces".to_owned(),
            false => format!("modeldeployments of namespace {}", self.namespace),
        })?;
        let mut deployments: Vec<Deployment> = list.items.into_iter().map(Deployment::of).collect();
        deployments.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(deployments)
    }

    /// Pods and Services of a deployment.
    ///
    /// # Errors
    /// If they can't be read.
    pub async fn owned(&self, deployment: &Deployment) -> Result<Owned> {
        let params = ListParams::default().labels(&labels::selector(&deployment.name));
        let services = Api::<Service>::namespaced(self.client.clone(), &self.namespace);
        let what = |kind: &str| format!("{kind} of {}", self.what(&deployment.name));
        let pods = self.pods();
        let (pods, services) = tokio::join!(pods.list(&params), services.list(&params));
        Ok(Owned {
            pods: owned(pods.with_context(|| what("pods"))?, &deployment.uid),
            // who may not see them learns less about drains, and the rest all the same
            services: services.map(|list| owned(list, &deployment.uid)).unwrap_or_default(),
        })
    }

    /// Events about a deployment, and warnings about its pods. None where they may not be read: they are a help, not a
    /// source.
    pub async fn events(&self, deployment: &Deployment) -> Vec<Event> {
        let api = Api::<Event>::namespaced(self.client.clone(), &self.namespace);
        let about = format!("involvedObject.kind=ModelDeployment,involvedObject.name={}", deployment.name);
        let (own, warnings) = (
            ListParams::default().fields(&about),
            ListParams::default().fields("involvedObject.kind=Pod,type=Warning"),
        );
        let (own, warnings) = tokio::join!(api.list(&own), api.list(&warnings));
        let is_ours = |event: &Event| {
            let object = &event.involved_object;
            match object.kind.as_deref() {
                Some("Pod") => object.name.as_deref().is_some_and(|pod| {
                    pod.strip_prefix(deployment.name.as_str()).is_some_and(|rest| rest.starts_with('-'))
                }),
                _ => object.uid.as_deref().is_none_or(|uid| uid == deployment.uid),
            }
        };
        [own, warnings]
            .into_iter()
            .filter_map(Result::ok)
            .flat_map(|list| list.items)
            .filter(is_ours)
            .collect()
    }
}

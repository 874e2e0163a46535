//! PodGroups. They are not watched: they are written with the pods that they are for, and removed with their group.
use belay_crds::labels;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{ApplyError, OrContext as _};
use crate::pod_group::{PodGroup, native, volcano};

/// Writes PodGroups. Answers with the groups whose cannot be: nobody serves them, or not to the operator.
pub async fn write(
    client: &Client,
    namespace: &str,
    pod_groups: &[PodGroup],
) -> Result<Vec<(String, String)>, ApplyError> {
    let mut missing = vec![];
    for pod_group in pod_groups {
        let (written, kind) = match pod_group {
            PodGroup::Volcano(object) => (put(client, namespace, object).await, "scheduling.volcano.sh"),
            PodGroup::Native(object) => (put(client, namespace, object).await, "scheduling.k8s.io/v1beta1"),
        };
        let name = pod_group.name();
        match written {
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                missing.push((name, format!("its PodGroup ({kind}) is not taken: {}", status.message)));
            }
            other => other.or_context("apply PodGroup", &name)?,
        }
    }
    Ok(missing)
}

/// Server-side apply of what is not watched.
async fn put<K>(client: &Client, namespace: &str, object: &K) -> Result<(), kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(labels::OPERATOR).force();
    api.patch(&object.name_any(), &params, &Patch::Apply(object)).await.map(drop)
}

/// Removes one, if it is there.
pub async fn delete(client: &Client, namespace: &str, pod_group: &PodGroup) -> Result<(), ApplyError> {
    let (name, params) = (pod_group.name(), DeleteParams::background());
    let deleted = match pod_group {
        PodGroup::Volcano(_) => {
            let api: Api<volcano::PodGroup> = Api::namespaced(client.clone(), namespace);
            api.delete(&name, &params).await.map(drop)
        }
        PodGroup::Native(_) => {
            let api: Api<native::PodGroup> = Api::namespaced(client.clone(), namespace);
            api.delete(&name, &params).await.map(drop)
        }
    };
    match deleted {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.or_context("delete PodGroup", &name),
    }
}

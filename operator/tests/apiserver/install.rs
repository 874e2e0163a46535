//! What a cluster must have before the operator runs.
use belay_crds::ModelDeployment;
use belay_operator::rbac;
use k8s_openapi::{
    api::rbac::v1::{ClusterRole, ClusterRoleBinding},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client, CustomResourceExt as _, api::PostParams};
use serde_json::json;

use crate::control_plane::OPERATOR;

/// The definition of our resource, and the operator's role.
pub async fn install(client: &Client) {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    crds.create(&PostParams::default(), &ModelDeployment::crd()).await.unwrap();
    let established = kube::runtime::wait::conditions::is_crd_established();
    kube::runtime::wait::await_condition(crds, ModelDeployment::crd_name(), established).await.unwrap();
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.create(&PostParams::default(), &rbac::cluster_role("belay-operator")).await.unwrap();
    let binding = json!({ "metadata": { "name": "belay-operator" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "belay-operator" },
        "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": OPERATOR }] });
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
}

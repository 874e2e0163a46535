//! Files that are made from code, committed, and compared with the code by a test.
use anyhow::Context as _;
use belay_crds::ModelDeployment;
use kube::CustomResourceExt as _;

use crate::rbac;

/// The CustomResourceDefinition as YAML.
///
/// # Errors
/// When the definition cannot be written as YAML.
pub fn crd_yaml() -> anyhow::Result<String> {
    let yaml = serde_saphyr::to_string(&ModelDeployment::crd()).context("write the definition as YAML")?;
    Ok(format!("# Made by `belay-operator crd`; do not edit.\n{yaml}"))
}

/// The operator's ClusterRole as YAML.
///
/// # Errors
/// When the role cannot be written as YAML.
pub fn rbac_yaml() -> anyhow::Result<String> {
    let role = rbac::cluster_role("belay-operator");
    let yaml = serde_saphyr::to_string(&role).context("write the role as YAML")?;
    Ok(format!("# Made by `belay-operator rbac`; do not edit.\n{yaml}"))
}

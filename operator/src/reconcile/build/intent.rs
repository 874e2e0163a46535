//! The ConfigMap of a group: the placement in force, and the change under way.
use std::collections::BTreeMap;

use belay_crds::labels;
use k8s_openapi::api::core::v1::ConfigMap;
use serde::Serialize;

use super::{BuildError, IntentWrite, metadata};
use crate::{
    group::Group,
    reconcile::{
        observe::{OPERATION_KEY, PLACEMENT_KEY},
        plan::Experts,
        validate::Validated,
    },
    recovery::Rebalances,
};

/// The ConfigMap that says what is intended. It carries the version that it replaces: the API server refuses it if somebody
/// else has written in between.
pub fn write(wanted: &Validated, group: &Group, experts: &Experts) -> Result<IntentWrite, BuildError> {
    let mut metadata =
        metadata(wanted, labels::placement_name(&group.name), Some(&group.revision), Some(&group.name));
    metadata.resource_version.clone_from(&group.written);
    if experts.rebalances != Rebalances::default() {
        let record = json(&experts.rebalances, &group.name)?;
        metadata.annotations = Some(BTreeMap::from([(labels::REBALANCES.to_owned(), record)]));
    }
    let mut data = BTreeMap::new();
    if let Some(placement) = &experts.intent.in_force {
        data.insert(PLACEMENT_KEY.to_owned(), json(placement, &group.name)?);
    }
    if let Some(operation) = &experts.intent.operation {
        data.insert(OPERATION_KEY.to_owned(), json(operation, &group.name)?);
    }
    let config_map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
    Ok(IntentWrite { group: group.name.clone(), config_map, is_new: group.written.is_none() })
}

fn json(document: &impl Serialize, group: &str) -> Result<String, BuildError> {
    serde_json::to_string(document)
        .map_err(|source| BuildError::Json { what: format!("placement of {group}"), source })
}

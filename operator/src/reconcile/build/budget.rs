//! The disruption budget: what evictions must leave alone.
//!
//! A group works only as a whole, so a budget that counts pods over all groups would allow one pod of each. This one
//! selects the pods of the groups that must stay, and lets none of them go; groups that are not named may be evicted.
//! Changing the selection is a single write, so there is no moment in which nothing is protected.
use belay_crds::labels;
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
        util::intstr::IntOrString,
    },
};

use super::metadata;
use crate::{group::Group, reconcile::validate::Validated};

/// The budget that protects some groups; `None` if there is nothing to protect.
pub fn budget(wanted: &Validated, groups: &[Group], protected: &[String]) -> Option<PodDisruptionBudget> {
    if protected.is_empty() {
        return None;
    }
    let pods: usize =
        groups.iter().filter(|group| protected.contains(&group.name)).map(|g| g.slots.len()).sum();
    let requirement = |key: &str, values: Vec<String>| LabelSelectorRequirement {
        key: key.to_owned(),
        operator: "In".to_owned(),
        values: Some(values),
    };
    Some(PodDisruptionBudget {
        metadata: metadata(wanted, wanted.name.clone(), None, None),
        spec: Some(PodDisruptionBudgetSpec {
            // a number: for a percentage Kubernetes would ask /scale how many pods there are, and get groups
            min_available: Some(IntOrString::Int(i32::try_from(pods).unwrap_or(i32::MAX))),
            selector: Some(LabelSelector {
                match_expressions: Some(vec![
                    requirement(labels::GROUP, protected.to_vec()),
                    requirement(labels::MODEL_DEPLOYMENT, vec![wanted.name.clone()]),
                ]),
                ..LabelSelector::default()
            }),
            // a pod that does not serve must not keep a node from being emptied
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    })
}

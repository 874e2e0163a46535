//! The disruption budget: what evictions must leave alone.
//!
//! Groups are what counts, so a budget that counts pods over all groups would allow one pod of each. This one selects the
//! pods of the groups that must stay, and lets none of them go; groups that are not named may be evicted, and so may pods
//! with the label [`labels::MAY_LEAVE`]: without those, every expert has a live copy. Changing the selection is a single write, so
//! there is no moment in which nothing is protected.
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
    let requirement = |key: &str, operator: &str, values: Option<Vec<String>>| LabelSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values,
    };
    Some(PodDisruptionBudget {
        metadata: metadata(wanted, wanted.name.clone(), None, None),
        spec: Some(PodDisruptionBudgetSpec {
            // all slots, so at least as many as are selected: nothing that is selected may go. A number, because for a
            // percentage Kubernetes would ask /scale how many pods there are, and get groups
            min_available: Some(IntOrString::Int(i32::try_from(pods).unwrap_or(i32::MAX))),
            selector: Some(LabelSelector {
                match_expressions: Some(vec![
                    requirement(labels::GROUP, "In", Some(protected.to_vec())),
                    requirement(labels::MODEL_DEPLOYMENT, "In", Some(vec![wanted.name.clone()])),
                    requirement(labels::MAY_LEAVE, "DoesNotExist", None),
                ]),
                ..LabelSelector::default()
            }),
            // a pod that is not ready may hold the last copy of an expert, and give it to its peers; one that holds nothing has
            // the label
            unhealthy_pod_eviction_policy: Some("IfHealthyBudget".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    })
}

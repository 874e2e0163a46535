//! What the operator may do: the least it needs. The chart's roles are made from this list
//! (`belay-operator rbac` prints them), so that code and chart cannot drift apart.
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::ObjectMeta;

const READ: [&str; 3] = ["get", "list", "watch"];

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..PolicyRule::default()
    }
}

/// Rules on what lies in namespaces: bind them in every namespace that the operator looks after, or in the
/// whole cluster when it looks after all.
pub fn namespaced_rules() -> Vec<PolicyRule> {
    let manage = ["get", "list", "watch", "create", "patch", "delete"];
    vec![
        rule("serving.belay.dev", &["modeldeployments"], &READ),
        rule("serving.belay.dev", &["modeldeployments/status", "modeldeployments/scale"], &["get", "patch"]),
        // children may block the deletion of their owner (foreground deletion), which OpenShift-like clusters
        // and the admission plugin OwnerReferencesPermissionEnforcement ask this verb for
        rule("serving.belay.dev", &["modeldeployments/finalizers"], &["update"]),
        rule("", &["pods", "services", "configmaps"], &manage),
        // the key of a group's fabric: made and removed, never read
        rule("", &["secrets"], &["create", "delete"]),
        rule("apps", &["controllerrevisions"], &manage),
        rule("policy", &["poddisruptionbudgets"], &manage),
        // written before the pods of a group, removed after them, never read
        rule("scheduling.volcano.sh", &["podgroups"], &["create", "patch", "delete"]),
        rule("scheduling.k8s.io", &["podgroups"], &["create", "patch", "delete"]),
        // why a pod does not start: the kubelet says it in events only
        rule("", &["events"], &["list"]),
        rule("events.k8s.io", &["events"], &["create", "patch"]),
    ]
}

/// Rules on what belongs to the cluster: whether a node still answers.
pub fn cluster_rules() -> Vec<PolicyRule> {
    vec![rule("", &["nodes"], &READ)]
}

/// Rules in the operator's own namespace: leader election.
pub fn lease_rules() -> Vec<PolicyRule> {
    vec![rule("coordination.k8s.io", &["leases"], &["get", "create", "update"])]
}

/// One ClusterRole with every rule, for an operator that looks after all namespaces.
pub fn cluster_role(name: &str) -> ClusterRole {
    ClusterRole {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        rules: Some([namespaced_rules(), cluster_rules(), lease_rules()].concat()),
        aggregation_rule: None,
    }
}

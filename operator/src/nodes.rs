//! What is known of the nodes: whether they answer, whether they are being emptied, and what they are near to.
use belay_crds::labels;
use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use kube::{
    ResourceExt as _,
    runtime::reflector::{ObjectRef, Store},
};

/// Labels that say what a node is part of.
const DOMAINS: [&str; 3] = [labels::RACK, labels::SUPERPOD, labels::ZONE];

/// The state of a node that matters to its pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeState {
    /// Whether its kubelet reports that it is ready.
    pub ready: bool,
    /// Since when.
    pub since: Timestamp,
    /// Whether it takes no new pods.
    pub unschedulable: bool,
    /// What is likely to be lost at once with it, beyond itself: its rack of a superpod, else the superpod, else its zone.
    pub domain: Option<String>,
}

impl NodeState {
    /// From the API object. A node that never reported counts as not ready since the beginning of time.
    pub fn of(node: &Node) -> Self {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready = conditions.and_then(|conditions| conditions.iter().find(|c| c.type_ == "Ready"));
        Self {
            ready: ready.is_some_and(|condition| condition.status == "True"),
            since: ready
                .and_then(|condition| condition.last_transition_time.as_ref())
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            unschedulable: node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false),
            domain: domain(node),
        }
    }

    /// Whether it has not been ready for so long that its pods are given up.
    pub fn lost(&self, after_seconds: i64, now: Timestamp) -> bool {
        !self.ready && now.as_second() - self.since.as_second() >= after_seconds
    }
}

/// The narrowest that is known. Racks are numbered anew in each superpod.
fn domain(node: &Node) -> Option<String> {
    let label = |key: &str| node.labels().get(key).cloned();
    match (label(labels::SUPERPOD), label(labels::RACK)) {
        (Some(superpod), Some(rack)) => Some(format!("{superpod}/{rack}")),
        (Some(superpod), None) => Some(superpod),
        (None, _) => label(labels::ZONE),
    }
}

/// Looks nodes up.
pub trait Nodes: Send + Sync {
    /// The state of a node; `None` if there is no such node.
    fn state(&self, name: &str) -> Option<NodeState>;
}

impl Nodes for Store<Node> {
    fn state(&self, name: &str) -> Option<NodeState> {
        self.get(&ObjectRef::new(name)).map(|node| NodeState::of(&node))
    }
}

/// Leaves only what [`NodeState`] is made from: nodes carry long lists of images.
pub fn strip(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.annotations_mut().clear();
    node.labels_mut().retain(|key, _| DOMAINS.contains(&key.as_str()));
    if let Some(status) = node.status.take() {
        let conditions = status.conditions.map(|conditions| {
            conditions.into_iter().filter(|condition| condition.type_ == "Ready").collect()
        });
        node.status.get_or_insert_default().conditions = conditions;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(status: &str, since: i64) -> Node {
        let since = Timestamp::from_second(since).unwrap().to_string();
        serde_json::from_value(json!({ "metadata": { "name": "n" }, "status": { "conditions": [
            { "type": "MemoryPressure", "status": "False" },
            { "type": "Ready", "status": status, "lastTransitionTime": since } ] } }))
        .unwrap()
    }

    #[test]
    fn node_is_lost_only_after_a_while() {
        let now = Timestamp::from_second(1000).unwrap();
        for status in ["False", "Unknown"] {
            assert!(NodeState::of(&node(status, 990)).lost(10, now));
            assert!(!NodeState::of(&node(status, 991)).lost(10, now));
        }
        assert!(!NodeState::of(&node("True", 0)).lost(10, now));
    }

    #[test]
    fn stripping_keeps_the_state() {
        let mut whole = node("Unknown", 5);
        whole.labels_mut().insert(labels::ZONE.into(), "east".into());
        let mut stripped = whole.clone();
        strip(&mut stripped);
        assert_eq!(NodeState::of(&stripped), NodeState::of(&whole));
    }

    #[test]
    fn superpod_is_narrower_than_a_zone() {
        let mut node = node("True", 5);
        assert_eq!(NodeState::of(&node).domain, None);
        node.labels_mut().insert(labels::ZONE.into(), "east".into());
        assert_eq!(NodeState::of(&node).domain.as_deref(), Some("east"));
        node.labels_mut().insert(labels::SUPERPOD.into(), "3".into());
        assert_eq!(NodeState::of(&node).domain.as_deref(), Some("3"));
        node.labels_mut().insert(labels::RACK.into(), "7".into());
        assert_eq!(
            NodeState::of(&node).domain.as_deref(),
            Some("3/7"),
            "a rack is narrower than its superpod"
        );
        let mut stripped = node.clone();
        strip(&mut stripped);
        assert_eq!(NodeState::of(&stripped), NodeState::of(&node));
    }
}

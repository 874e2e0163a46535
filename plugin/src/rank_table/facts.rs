//! What is known of a worker, from its pod and its node.
use belay_crds::{AscendChip, labels};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;

use super::annotation::KEYS;

/// Label of nodes: the chip's name, as Ascend's device plugin has found it.
const CHIP_NAME: &str = "node.kubernetes.io/npu.chip.name";

/// A worker of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerFacts {
    /// Name of its pod.
    pub pod: String,
    /// Its index in the group.
    pub worker: u32,
    /// Its node; empty while it has none.
    pub node: String,
    /// The node's address.
    pub host_address: Option<String>,
    /// The pod's address, unless that is the node's.
    pub pod_address: Option<String>,
    /// The chip that its container was made for: `BELAY_ASCEND_CHIP`.
    pub chip: Option<String>,
    /// How many workers its group has.
    pub workers: Option<u32>,
    /// How many devices it has.
    pub devices: Option<usize>,
    /// What the node's label says of the chip.
    pub node_chip: Option<String>,
    /// The superpod by the node's label.
    pub node_superpod: Option<String>,
    /// The annotation.
    pub configuration: Option<String>,
}

impl WorkerFacts {
    /// From the objects; without the node's labels if it is not given.
    #[must_use]
    pub fn of(pod: &Pod, node: Option<&Node>) -> Self {
        let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
        // what the template says comes behind what the operator sets, and counts
        let variable = |name: &str| {
            let mut variables = spec?.containers.iter().flat_map(|container| container.env.iter().flatten());
            variables.rfind(|variable| variable.name == name)?.value.clone()
        };
        let on_host = spec.and_then(|spec| spec.host_network).unwrap_or_default();
        let label = |key: &str| node?.labels().get(key).cloned();
        Self {
            pod: pod.name_any(),
            worker: pod.labels().get(labels::WORKER).and_then(|text| text.parse().ok()).unwrap_or_default(),
            node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            host_address: status.and_then(|status| status.host_ip.clone()),
            pod_address: status.and_then(|status| status.pod_ip.clone()).filter(|_| !on_host),
            chip: variable("BELAY_ASCEND_CHIP"),
            workers: variable("BELAY_GROUP_WORKERS").and_then(|text| text.parse().ok()),
            devices: variable("BELAY_DEVICES_PER_WORKER").and_then(|text| text.parse().ok()),
            node_chip: label(CHIP_NAME),
            node_superpod: label(labels::SUPERPOD),
            configuration: KEYS.iter().find_map(|key| pod.annotations().get(*key)).cloned(),
        }
    }

    /// The chip that its node has, if the name is one of a single generation: A3 nodes are labelled `Ascend910`, as older
    /// ones are.
    #[must_use]
    pub fn chip_of_node(&self) -> Option<AscendChip> {
        let name = self.node_chip.as_deref()?.trim_start_matches("Ascend");
        [
            ("910B", AscendChip::A2),
            ("910_93", AscendChip::A3),
            ("950PR", AscendChip::Ascend950PR),
            ("950DT", AscendChip::Ascend950DT),
        ]
        .into_iter()
        .find_map(|(prefix, chip)| name.starts_with(prefix).then_some(chip))
    }
}

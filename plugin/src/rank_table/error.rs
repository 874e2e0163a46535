//! Why there is no table. A wrong one is worse than none: HCCL takes it, and hangs or goes by a slow way.
use thiserror::Error;

use super::annotation::KEYS;

/// What is missing or contradicts itself, and in which pod.
#[derive(Debug, Error)]
pub enum RankTableError {
    /// No pod of a worker.
    #[error(
        "worker {worker} of {workers} has no pod that stays: a table of the others would not be the group's"
    )]
    NoPod {
        /// The worker.
        worker: u32,
        /// Workers of the group.
        workers: u32,
    },
    /// Several pods of a worker.
    #[error("pods {first} and {second} are both worker {worker}")]
    TwoPods {
        /// The worker.
        worker: u32,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// Not scheduled.
    #[error("pod {pod}: it has no node yet")]
    NoNode {
        /// The pod.
        pod: String,
    },
    /// No annotation.
    #[error(
        "pod {pod}: no annotation {} or {}: Ascend's device plugin writes it once the pod has its devices (not with other \
         plugins, nor with resource claims)", KEYS[0], KEYS[1]
    )]
    NoAnnotation {
        /// The pod.
        pod: String,
    },
    /// An annotation that is not understood.
    #[error("pod {pod}: its device annotation cannot be read")]
    Unreadable {
        /// The pod.
        pod: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A chip that the table is not for.
    #[error(
        "pod {pod}: its worker is made for {found}, the table is to be for {wanted}: --chip says for which chip a group of \
         an earlier revision is"
    )]
    OtherChip {
        /// The pod.
        pod: String,
        /// Its chip.
        found: String,
        /// The table's.
        wanted: &'static str,
    },
    /// A node with another chip.
    #[error("pod {pod}: its node {node} has {found}, the table is to be for {wanted}")]
    OtherNode {
        /// The pod.
        pod: String,
        /// Its node.
        node: String,
        /// The chip's name by the node's label.
        found: String,
        /// The table's.
        wanted: &'static str,
    },
    /// A field that is empty or absent.
    #[error("pod {pod}: its device annotation has no {field}")]
    NoField {
        /// The pod.
        pod: String,
        /// The field.
        field: &'static str,
    },
    /// The pod in the place of the host.
    #[error(
        "pod {pod}: server_id {server} is the address of the pod: two pods of one host would count as two hosts, and talk by \
         way of the network"
    )]
    ServerIsPod {
        /// The pod.
        pod: String,
        /// What it says.
        server: String,
    },
    /// One name, two hosts.
    #[error("pods {first} and {second}: both have server_id {server}, but are on different nodes")]
    OneServerTwoNodes {
        /// One pod.
        first: String,
        /// The other.
        second: String,
        /// The name.
        server: String,
    },
    /// Two names, one host.
    #[error("pods {first} and {second}: both are on node {node}, but have different server_id")]
    OneNodeTwoServers {
        /// One pod.
        first: String,
        /// The other.
        second: String,
        /// The node.
        node: String,
    },
    /// More or fewer devices than ranks.
    #[error("pod {pod}: its device annotation has {found} devices, the worker {wanted}")]
    DeviceCount {
        /// The pod.
        pod: String,
        /// Devices of the annotation.
        found: usize,
        /// Devices of the worker.
        wanted: usize,
    },
    /// Not a number.
    #[error("pod {pod}: {field} {value:?} of a device is not a number")]
    NotANumber {
        /// The pod.
        pod: String,
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// No address, or none that is one.
    #[error(
        "pod {pod}, device {device}: device_ip {value:?} is not an address: set one with hccn_tool on its node"
    )]
    DeviceAddress {
        /// The pod.
        pod: String,
        /// The device.
        device: u32,
        /// What it says.
        value: String,
    },
    /// One thing in two places.
    #[error("pods {first} and {second}: both have {what}")]
    Twice {
        /// One pod.
        first: String,
        /// The other, or the same.
        second: String,
        /// What.
        what: String,
    },
    /// A device that is in no superpod.
    #[error("pod {pod}, device {device}: it has no {field}, which version 1.2 needs")]
    NoSuperDevice {
        /// The pod.
        pod: String,
        /// The device.
        device: u32,
        /// The field.
        field: &'static str,
    },
    /// A host that is in no superpod.
    #[error(
        "pod {pod}: neither its device annotation (super_pod_id) nor the label {label} of its node {node} names a superpod",
        label = belay_crds::labels::SUPERPOD
    )]
    NoSuperPod {
        /// The pod.
        pod: String,
        /// Its node.
        node: String,
    },
    /// A host that is in two superpods.
    #[error(
        "pod {pod}: superpod {annotation} by its device annotation, {label} by the label of its node {node}"
    )]
    TwoSuperPods {
        /// The pod.
        pod: String,
        /// Its node.
        node: String,
        /// By the annotation.
        annotation: String,
        /// By the label.
        label: String,
    },
    /// No networks.
    #[error(
        "pod {pod}, device {device}: no levelList in the device annotation. The networks of a 950 device are what its \
         device plugin has read from the topology of the host; nothing else tells them"
    )]
    NoLevels {
        /// The pod.
        pod: String,
        /// The device.
        device: u32,
    },
    /// Several networks where the table has room for one.
    #[error("pod {pod}, device {device}: several kinds of network at level {level}: {kinds}")]
    SeveralNetworks {
        /// The pod.
        pod: String,
        /// The device.
        device: u32,
        /// The layer.
        level: u32,
        /// Their names.
        kinds: String,
    },
    /// A network that others have.
    #[error(
        "pod {pod}, device {device}: it has no {kind} network, by which other devices of the group reach each other"
    )]
    NoOuterNetwork {
        /// The pod.
        pod: String,
        /// The device.
        device: u32,
        /// The kind.
        kind: &'static str,
    },
    /// Ranks that do not reach each other.
    #[error(
        "pods {first} and {second}: their outermost networks are {first_network} and {second_network}: no way between them"
    )]
    Apart {
        /// One pod.
        first: String,
        /// The other.
        second: String,
        /// Its network.
        first_network: String,
        /// Its network.
        second_network: String,
    },
}

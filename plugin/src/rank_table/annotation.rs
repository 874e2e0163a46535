//! What Ascend's device plugin writes on a pod that has got its devices: JSON in an annotation.
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// Keys of the annotation: of devices offered as `huawei.com/Ascend910`, and of those offered as `huawei.com/npu`.
pub const KEYS: [&str; 2] = [
    "ascend.kubectl.kubernetes.io/ascend-910-configuration",
    "ascend.kubectl.kubernetes.io/ascend-npu-configuration",
];

/// The devices of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Configuration {
    /// The host: an address of it, as a rule.
    #[serde(default)]
    pub server_id: String,
    /// Address of the host.
    #[serde(default)]
    pub host_ip: String,
    /// The superpod; negative where the node is in none.
    #[serde(default, deserialize_with = "text")]
    pub super_pod_id: String,
    /// The devices.
    #[serde(default)]
    pub devices: Vec<Device>,
}

/// A device of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Device {
    /// Its number on the host.
    #[serde(default, deserialize_with = "text")]
    pub device_id: String,
    /// Its address in the network of the devices.
    #[serde(default)]
    pub device_ip: String,
    /// Its number in the superpod.
    #[serde(default, deserialize_with = "text")]
    pub super_device_id: String,
    /// 950 only: the networks that it is in, from the innermost to the outermost.
    #[serde(default, rename = "levelList", deserialize_with = "list")]
    pub levels: Vec<DeviceLevel>,
}

/// A layer of networks that a device is in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct DeviceLevel {
    /// 0 is the innermost.
    pub level: u32,
    /// What there is at this layer, by kind of network: `UB`, `UBOE`, `ROCE`, …
    #[serde(default)]
    pub info: BTreeMap<String, Level>,
}

/// A layer of a rank: the same in the annotation and in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// The layer.
    pub net_layer: u32,
    /// The instance of the network: ranks with the same one reach each other by this layer.
    pub net_instance_id: String,
    /// `TOPO_FILE_DESC` or `CLOS`.
    pub net_type: String,
    /// Attributes; empty as a rule.
    #[serde(default)]
    pub net_attr: String,
    /// Addresses of the rank in it.
    #[serde(default, deserialize_with = "list")]
    pub rank_addr_list: Vec<Address>,
}

/// An address of a rank.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// `EID` or `IPV4`.
    pub addr_type: String,
    /// The address.
    pub addr: String,
    /// Ports of the device that lead there, as die/port.
    #[serde(default, deserialize_with = "list")]
    pub ports: Vec<String>,
    /// The plane that it is in.
    #[serde(default)]
    pub plane_id: String,
}

/// A number or its digits: which of the two differs from field to field and from release to release.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Text(String),
        Number(i64),
    }
    Ok(match Option::<Given>::deserialize(deserializer)? {
        Some(Given::Text(text)) => text,
        Some(Given::Number(number)) => number.to_string(),
        None => String::new(),
    })
}

/// An empty list may be written as null.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

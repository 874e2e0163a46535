//! Rank tables as HCCL reads them. The form is bound to the chip: another one's is refused (EI0014).
use belay_crds::AscendChip;
use serde::Serialize;

use super::annotation::Level;

/// All ranks of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum RankTable {
    /// Versions 1.0 and 1.2.
    ByServer(ServerTable),
    /// Version 2.0.
    ByRank(ListTable),
}

/// Ranks by host. Numbers are texts in these versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerTable {
    /// `completed`.
    pub status: &'static str,
    /// `1.0`, or `1.2` with superpods.
    pub version: &'static str,
    /// How many hosts there are.
    pub server_count: String,
    /// The hosts, by their lowest rank.
    pub server_list: Vec<Server>,
    /// The superpods, by their lowest rank. Version 1.2 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub super_pod_list: Vec<SuperPod>,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Server {
    /// Names the host: two ranks of one host must have the same, else their rows go by way of the network.
    pub server_id: String,
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<String>,
    /// Its devices that have ranks.
    pub device: Vec<ServerDevice>,
}

/// A device of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerDevice {
    /// Its number on the host.
    pub device_id: String,
    /// Its address.
    pub device_ip: String,
    /// Its number in the superpod. Version 1.2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub super_device_id: Option<String>,
    /// Its rank.
    pub rank_id: String,
}

/// A superpod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SuperPod {
    /// Names it.
    pub super_pod_id: String,
    /// Its hosts.
    pub server_list: Vec<SuperPodServer>,
}

/// A host of a superpod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SuperPodServer {
    /// As in the list of hosts.
    pub server_id: String,
}

/// Ranks as one list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListTable {
    /// `completed`.
    pub status: &'static str,
    /// `2.0`.
    pub version: &'static str,
    /// How many ranks there are.
    pub rank_count: usize,
    /// The ranks, in their order.
    pub rank_list: Vec<Rank>,
}

/// A rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rank {
    /// The rank.
    pub rank_id: usize,
    /// The device's place in the topology file of its host.
    pub local_id: u32,
    /// The device's number on the host.
    pub device_id: u32,
    /// The networks that it is in, the innermost first.
    pub level_list: Vec<Level>,
}

/// The version that a chip takes.
#[must_use]
pub fn version(chip: AscendChip) -> &'static str {
    match chip {
        AscendChip::A2 => "1.0",
        AscendChip::A3 => "1.2",
        AscendChip::Ascend950PR | AscendChip::Ascend950DT => "2.0",
    }
}

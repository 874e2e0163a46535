//! The rank table: a JSON file that lists the ranks. Its form is bound to the generation of the chip.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use crate::config::Chip;
use crate::failure::{Outcome, fail};
use crate::hccl::codes;

/// Where the ranks of a table meet when it names no port.
pub const PORT: u16 = 60000;

/// What a rank table says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankTable {
    /// The number of ranks.
    pub ranks: u32,
    /// The address of rank 0's host.
    pub root: IpAddr,
    /// The port there, when the table has it.
    pub port: Option<u16>,
}

fn refuse<T>(text: impl Into<String>) -> Outcome<T> {
    fail(codes::PARA, format!("rank table: {}", text.into()))
}

// numbers are texts in the older forms
fn number(value: &Value, field: &str) -> Outcome<u64> {
    let given = &value[field];
    match given.as_u64().or_else(|| given.as_str()?.parse().ok()) {
        Some(number) => Ok(number),
        None => refuse(format!("{field} is {given}, expected a number")),
    }
}

fn text<'a>(value: &'a Value, field: &str) -> Outcome<&'a str> {
    match value[field].as_str() {
        Some(text) => Ok(text),
        None => refuse(format!("{field} is {}, expected a text", value[field])),
    }
}

fn list<'a>(value: &'a Value, field: &str) -> Outcome<&'a [Value]> {
    match value[field].as_array() {
        Some(list) => Ok(list),
        None => refuse(format!("{field} is {}, expected a list", value[field])),
    }
}

/// The address of each rank's host, and its port.
type Hosts = BTreeMap<u64, (Option<IpAddr>, Option<u16>)>;

impl RankTable {
    /// Reads a table for a chip: version 1.0 for A2, 1.2 for A3, 2.0 for the 950 generation.
    pub fn parse(json: &str, chip: Chip) -> Outcome<Self> {
        let table: Value = serde_json::from_str(json).or_else(|error| refuse(error.to_string()))?;
        let expected = match chip {
            Chip::A2 => "1.0",
            Chip::A3 => "1.2",
            Chip::Pr950 | Chip::Dt950 => "2.0",
        };
        let version = text(&table, "version")?;
        if version != expected {
            return refuse(format!("version {version:?} does not fit {chip:?}, which takes {expected:?}"));
        }
        // the older forms have it always, the newest may leave it out
        if !(chip.is_950() && table["status"].is_null()) && text(&table, "status")? != "completed" {
            return refuse(format!("status is {}", table["status"]));
        }
        let hosts = if chip.is_950() { by_rank(&table)? } else { by_server(&table, chip)? };
        if hosts.is_empty() || !hosts.keys().copied().eq(0..hosts.len() as u64) {
            return refuse(format!("the ranks are {:?}", hosts.keys()));
        }
        match hosts[&0] {
            (Some(root), port) => Ok(Self { ranks: hosts.len() as u32, root, port }),
            (None, _) => refuse("rank 0's host has no address"),
        }
    }

    /// Where the ranks meet.
    pub fn meeting(&self, base_port: Option<u16>) -> SocketAddr {
        SocketAddr::new(self.root, base_port.or(self.port).unwrap_or(PORT))
    }
}

fn enter(hosts: &mut Hosts, rank: u64, host: Option<IpAddr>, port: Option<u16>) -> Outcome {
    if hosts.insert(rank, (host, port)).is_some() {
        return refuse(format!("rank {rank} is there twice"));
    }
    Ok(())
}

fn by_server(table: &Value, chip: Chip) -> Outcome<Hosts> {
    let servers = list(table, "server_list")?;
    if number(table, "server_count")? != servers.len() as u64 {
        return refuse(format!("server_count is {}, there are {}", table["server_count"], servers.len()));
    }
    let mut hosts = Hosts::new();
    for server in servers {
        let id = text(server, "server_id")?;
        let host = server["host_ip"].as_str().unwrap_or(id).parse().ok();
        for device in list(server, "device")? {
            number(device, "device_id")?;
            if chip == Chip::A3 {
                number(device, "super_device_id")?;
            }
            enter(&mut hosts, number(device, "rank_id")?, host, None)?;
        }
    }
    if chip == Chip::A3 {
        let pods = list(table, "super_pod_list")?;
        let mut members = Vec::new();
        for pod in pods {
            text(pod, "super_pod_id")?;
            for server in list(pod, "server_list")? {
                members.push(text(server, "server_id")?);
            }
        }
        if let Some(alone) =
            servers.iter().find(|server| !members.iter().any(|id| server["server_id"] == *id))
        {
            return refuse(format!("server {} is in no super pod", alone["server_id"]));
        }
    }
    Ok(hosts)
}

fn by_rank(table: &Value) -> Outcome<Hosts> {
    let ranks = list(table, "rank_list")?;
    if number(table, "rank_count")? != ranks.len() as u64 {
        return refuse(format!("rank_count is {}, there are {}", table["rank_count"], ranks.len()));
    }
    let mut hosts = Hosts::new();
    for rank in ranks {
        number(rank, "local_id")?;
        number(rank, "device_id")?;
        // the outermost layer with an IPv4 address: layer 3 is the host's own, where there is one
        let mut best: Option<(u64, IpAddr)> = None;
        for level in list(rank, "level_list")? {
            let layer = number(level, "net_layer")?;
            let mut addresses = list(level, "rank_addr_list")?.iter();
            let address = addresses.find_map(|address| address["addr"].as_str()?.parse().ok());
            if let Some(address) = address.filter(|_| best.is_none_or(|(other, _)| layer > other)) {
                best = Some((layer, address));
            }
        }
        let port = rank["host_port"].as_u64().and_then(|port| u16::try_from(port).ok());
        enter(&mut hosts, number(rank, "rank_id")?, best.map(|(_, address)| address), port)?;
    }
    Ok(hosts)
}

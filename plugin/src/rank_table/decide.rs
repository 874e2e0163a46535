//! From what is known of the workers to their table.
use std::{collections::BTreeMap, net::IpAddr};

use belay_crds::AscendChip;

use super::{
    annotation::{Configuration, Device},
    error::RankTableError,
    facts::WorkerFacts,
    levels,
    table::{
        ListTable, Rank, RankTable, Server, ServerDevice, ServerTable, SuperPod, SuperPodServer, version,
    },
};

/// All ranks are there: HCCL waits for this word.
const COMPLETED: &str = "completed";

/// A worker and its devices, by their number.
struct Worker<'a> {
    facts: &'a WorkerFacts,
    configuration: Configuration,
    devices: Vec<(u32, Device)>,
}

/// The table of a group. Ranks are numbered by worker, then by the devices' numbers on their host, which is how a process
/// counts those that it was given.
///
/// # Errors
/// What is missing, or would make a wrong table, with the pod.
pub fn make(chip: AscendChip, workers: &[WorkerFacts]) -> Result<RankTable, RankTableError> {
    let workers = complete(workers)?;
    let workers: Vec<Worker<'_>> =
        workers.into_iter().map(|facts| worker(chip, facts)).collect::<Result<_, _>>()?;
    let place = |worker: &Worker<'_>, id: u32| format!("device {id} of node {}", worker.facts.node);
    once(&workers, |worker, id, _| Some(place(worker, id)))?;
    if chip.is_950() {
        return by_rank(chip, &workers).map(RankTable::ByRank);
    }
    one_name_each(&workers)?;
    by_server(chip, &workers).map(RankTable::ByServer)
}

/// One pod for each worker, in their order.
fn complete(given: &[WorkerFacts]) -> Result<Vec<&WorkerFacts>, RankTableError> {
    let mut pods: BTreeMap<u32, &WorkerFacts> = BTreeMap::new();
    for facts in given {
        if let Some(other) = pods.insert(facts.worker, facts) {
            return Err(RankTableError::TwoPods {
                worker: facts.worker,
                first: other.pod.clone(),
                second: facts.pod.clone(),
            });
        }
    }
    let seen = pods.keys().last().map_or(0, |last| last.saturating_add(1));
    let workers = given.iter().filter_map(|facts| facts.workers).fold(seen.max(1), u32::max);
    match (0..workers).find(|worker| !pods.contains_key(worker)) {
        Some(worker) => Err(RankTableError::NoPod { worker, workers }),
        None => Ok(pods.into_values().collect()),
    }
}

/// Reads what was written on a worker's pod, and whether that fits.
fn worker(chip: AscendChip, facts: &WorkerFacts) -> Result<Worker<'_>, RankTableError> {
    let pod = || facts.pod.clone();
    if facts.node.is_empty() {
        return Err(RankTableError::NoNode { pod: pod() });
    }
    if let Some(found) = facts.chip.as_ref().filter(|found| *found != chip.as_str()) {
        return Err(RankTableError::OtherChip { pod: pod(), found: found.clone(), wanted: chip.as_str() });
    }
    if facts.chip_of_node().is_some_and(|other| other != chip) {
        let (node, found) = (facts.node.clone(), facts.node_chip.clone().unwrap_or_default());
        return Err(RankTableError::OtherNode { pod: pod(), node, found, wanted: chip.as_str() });
    }
    let Some(text) = &facts.configuration else {
        return Err(RankTableError::NoAnnotation { pod: pod() });
    };
    let mut configuration: Configuration =
        serde_json::from_str(text).map_err(|source| RankTableError::Unreadable { pod: pod(), source })?;
    let mut devices = std::mem::take(&mut configuration.devices)
        .into_iter()
        .map(|device| Ok((number(facts, "device_id", &device.device_id)?, device)))
        .collect::<Result<Vec<_>, _>>()?;
    if devices.is_empty() {
        return Err(RankTableError::NoField { pod: pod(), field: "devices" });
    }
    if let Some(wanted) = facts.devices.filter(|wanted| *wanted != devices.len()) {
        return Err(RankTableError::DeviceCount { pod: pod(), found: devices.len(), wanted });
    }
    devices.sort_by_key(|(id, _)| *id);
    Ok(Worker { facts, configuration, devices })
}

fn number(facts: &WorkerFacts, field: &'static str, value: &str) -> Result<u32, RankTableError> {
    value.trim().parse().map_err(|_| RankTableError::NotANumber {
        pod: facts.pod.clone(),
        field,
        value: value.to_owned(),
    })
}

/// What `name` says of a device, it says of no other.
fn once(
    workers: &[Worker<'_>],
    name: impl Fn(&Worker<'_>, u32, &Device) -> Option<String>,
) -> Result<(), RankTableError> {
    let mut holders: BTreeMap<String, &str> = BTreeMap::new();
    for worker in workers {
        for (id, device) in &worker.devices {
            let Some(what) = name(worker, *id, device) else { continue };
            if let Some(first) = holders.insert(what.clone(), &worker.facts.pod) {
                let (first, second) = (first.to_owned(), worker.facts.pod.clone());
                return Err(RankTableError::Twice { first, second, what });
            }
        }
    }
    Ok(())
}

/// A `server_id` is one host's, and a host has one.
fn one_name_each(workers: &[Worker<'_>]) -> Result<(), RankTableError> {
    for (index, worker) in workers.iter().enumerate() {
        let (facts, server) = (worker.facts, &worker.configuration.server_id);
        if server.is_empty() {
            return Err(RankTableError::NoField { pod: facts.pod.clone(), field: "server_id" });
        }
        if facts.pod_address.as_ref() == Some(server) {
            return Err(RankTableError::ServerIsPod { pod: facts.pod.clone(), server: server.clone() });
        }
        for other in &workers[..index] {
            let (first, second) = (other.facts.pod.clone(), facts.pod.clone());
            match (other.configuration.server_id == *server, other.facts.node == facts.node) {
                (true, false) => {
                    let server = server.clone();
                    return Err(RankTableError::OneServerTwoNodes { first, second, server });
                }
                (false, true) => {
                    let node = facts.node.clone();
                    return Err(RankTableError::OneNodeTwoServers { first, second, node });
                }
                _ => (),
            }
        }
    }
    Ok(())
}

fn by_server(chip: AscendChip, workers: &[Worker<'_>]) -> Result<ServerTable, RankTableError> {
    let has_superpods = chip == AscendChip::A3;
    let (mut servers, mut superpods): (Vec<Server>, Vec<SuperPod>) = (vec![], vec![]);
    let mut rank = 0;
    for worker in workers {
        let id = &worker.configuration.server_id;
        if has_superpods {
            join(&mut superpods, superpod(worker)?, id);
        }
        let place = servers.iter().position(|server| server.server_id == *id).unwrap_or_else(|| {
            let host_ip = Some(worker.configuration.host_ip.clone()).filter(|address| !address.is_empty());
            servers.push(Server {
                server_id: id.clone(),
                host_ip: host_ip.or_else(|| worker.facts.host_address.clone()),
                device: vec![],
            });
            servers.len() - 1
        });
        for (device_id, device) in &worker.devices {
            let device = server_device(has_superpods, worker.facts, *device_id, device, rank)?;
            servers[place].device.push(device);
            rank += 1;
        }
    }
    once(workers, |_, _, device| Some(format!("device_ip {}", device.device_ip)))?;
    if has_superpods {
        let name = |worker: &Worker<'_>, device: &Device| {
            let superpod = superpod(worker).ok()?;
            Some(format!("super_device_id {} of superpod {superpod}", device.super_device_id))
        };
        once(workers, |worker, _, device| name(worker, device))?;
    }
    Ok(ServerTable {
        status: COMPLETED,
        version: version(chip),
        server_count: servers.len().to_string(),
        server_list: servers,
        super_pod_list: superpods,
    })
}

fn server_device(
    has_superpods: bool,
    facts: &WorkerFacts,
    id: u32,
    device: &Device,
    rank: usize,
) -> Result<ServerDevice, RankTableError> {
    if device.device_ip.parse::<IpAddr>().is_err() {
        let (pod, value) = (facts.pod.clone(), device.device_ip.clone());
        return Err(RankTableError::DeviceAddress { pod, device: id, value });
    }
    let field = "super_device_id";
    if has_superpods && device.super_device_id.is_empty() {
        return Err(RankTableError::NoSuperDevice { pod: facts.pod.clone(), device: id, field });
    }
    if has_superpods {
        number(facts, field, &device.super_device_id)?;
    }
    Ok(ServerDevice {
        device_id: id.to_string(),
        device_ip: device.device_ip.clone(),
        super_device_id: has_superpods.then(|| device.super_device_id.clone()),
        rank_id: rank.to_string(),
    })
}

/// The superpod of a worker's host. The device plugin writes a negative one for a host that is in none.
fn superpod(worker: &Worker<'_>) -> Result<String, RankTableError> {
    let facts = worker.facts;
    let written = &worker.configuration.super_pod_id;
    let written = (!written.is_empty() && !written.starts_with('-')).then(|| written.clone());
    let (pod, node) = (facts.pod.clone(), facts.node.clone());
    match (written, facts.node_superpod.clone()) {
        (Some(annotation), Some(label)) if annotation != label => {
            Err(RankTableError::TwoSuperPods { pod, node, annotation, label })
        }
        (Some(id), _) | (None, Some(id)) => Ok(id),
        (None, None) => Err(RankTableError::NoSuperPod { pod, node }),
    }
}

fn join(superpods: &mut Vec<SuperPod>, id: String, server: &str) {
    let server = SuperPodServer { server_id: server.to_owned() };
    match superpods.iter_mut().find(|superpod| superpod.super_pod_id == id) {
        Some(superpod) if superpod.server_list.contains(&server) => (),
        Some(superpod) => superpod.server_list.push(server),
        None => superpods.push(SuperPod { super_pod_id: id, server_list: vec![server] }),
    }
}

fn by_rank(chip: AscendChip, workers: &[Worker<'_>]) -> Result<ListTable, RankTableError> {
    let devices = workers.iter().flat_map(|worker| worker.devices.iter().map(|(_, device)| device));
    let outer = levels::outer(devices);
    let mut ranks: Vec<Rank> = vec![];
    let mut first: Option<(&str, String)> = None;
    for worker in workers {
        let pod = worker.facts.pod.as_str();
        for (id, device) in &worker.devices {
            let level_list = levels::layers(pod, *id, device, outer)?;
            let network = level_list
                .last()
                .map(|level| format!("{} at layer {}", level.net_instance_id, level.net_layer))
                .unwrap_or_default();
            let (first_pod, first_network) = first.get_or_insert_with(|| (pod, network.clone()));
            if *first_network != network {
                return Err(RankTableError::Apart {
                    first: (*first_pod).to_owned(),
                    second: pod.to_owned(),
                    first_network: first_network.clone(),
                    second_network: network,
                });
            }
            // no annotation tells a place in the topology file apart from the number: MindCluster's operator writes that, too
            ranks.push(Rank { rank_id: ranks.len(), local_id: *id, device_id: *id, level_list });
        }
    }
    Ok(ListTable { status: COMPLETED, version: version(chip), rank_count: ranks.len(), rank_list: ranks })
}

//! `kubectl belay rank-table`: the table of each version, what is refused, and that each device has one rank.
use std::collections::BTreeSet;

use belay_crds::AscendChip;
use k8s_openapi::api::core::v1::{Node, Pod};
use kubectl_belay::{
    error::describe,
    rank_table::{self, annotation::KEYS, facts::WorkerFacts, table::RankTable},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{
    api_server::ApiServer,
    group::{self, Size},
};

/// A worker on a node, as JSON, to be changed.
#[derive(Clone, Debug)]
struct Case {
    pod: Value,
    node: Value,
    configuration: Value,
    key: &'static str,
}

impl Case {
    fn facts(&self) -> WorkerFacts {
        let mut pod = self.pod.clone();
        if !self.configuration.is_null() {
            pod["metadata"]["annotations"][self.key] = self.configuration.to_string().into();
        }
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let node: Node = serde_json::from_value(self.node.clone()).unwrap();
        WorkerFacts::of(&pod, Some(&node))
    }
}

/// What differs from chip to chip: its name in the spec, its name on nodes, and the annotation's key.
fn words(chip: AscendChip) -> (&'static str, &'static str, &'static str) {
    match chip {
        AscendChip::A2 => ("A2", "910B3", KEYS[0]),
        AscendChip::A3 => ("A3", "Ascend910", KEYS[0]),
        AscendChip::Ascend950PR => ("Ascend950PR", "Ascend950PR", KEYS[1]),
        AscendChip::Ascend950DT => ("Ascend950DT", "Ascend950DT", KEYS[1]),
    }
}

fn levels(host: u32, device: u32) -> Value {
    let addresses = |kind: &str, address: String| {
        let ports = ["0/1", "0/2"];
        json!([{"addr_type": kind, "addr": address, "ports": ports, "plane_id": "plane0"}])
    };
    let eid = addresses("EID", format!("0000000000000020001000000{host:03x}{device:04x}"));
    let level = |layer: u32, instance: String, kind: &str, addresses: Value| {
        json!({
            "net_layer": layer, "net_instance_id": instance, "net_type": kind, "net_attr": "",
            "rank_addr_list": addresses,
        })
    };
    let outer = addresses("IPV4", format!("192.0.{host}.{device}"));
    json!([
        {"level": 0, "info": {"UB": level(0, format!("1-{host}"), "TOPO_FILE_DESC", Value::Null)}},
        {"level": 1, "info": {"UB": level(1, "1".into(), "CLOS", eid.clone())}},
        {"level": 2, "info": {"UBG": level(2, "cluster".into(), "CLOS", eid)}},
        {"level": 3, "info": {"ROCE": level(3, "cluster".into(), "CLOS", outer)}},
    ])
}

/// A worker with devices of a host.
fn case(chip: AscendChip, worker: u32, workers: u32, host: u32, devices: &[u32]) -> Case {
    let (name, node_name, key) = words(chip);
    let device = |id: &u32| {
        let mut device = json!({"device_id": id.to_string(), "device_ip": format!("10.{host}.0.{}", id + 1)});
        match chip {
            AscendChip::A2 => (),
            AscendChip::A3 => device["super_device_id"] = (host * 65_536 + id).to_string().into(),
            _ => {
                device["device_ip"] = "".into();
                device["levelList"] = levels(host, *id);
            }
        }
        device
    };
    let variable = |name: &str, value: String| json!({"name": name, "value": value});
    Case {
        pod: json!({
            "metadata": {
                "name": format!("pro-0a1b2c3d-0-{worker}"),
                "labels": {"serving.belay.dev/worker": worker.to_string()},
            },
            "spec": {"nodeName": format!("node-{host}"), "containers": [{"name": "worker", "env": [
                variable("BELAY_ASCEND_CHIP", name.into()),
                variable("BELAY_GROUP_WORKERS", workers.to_string()),
                variable("BELAY_DEVICES_PER_WORKER", devices.len().to_string()),
            ]}]},
            "status": {"hostIP": format!("172.16.0.{host}"), "podIP": format!("10.244.{host}.{worker}")},
        }),
        node: json!({"metadata": {"name": format!("node-{host}"), "labels": {
            "node.kubernetes.io/npu.chip.name": node_name, "huawei.com/topotree.superpodid": "3",
        }}}),
        configuration: json!({
            "pod_name": worker.to_string(), "server_id": format!("172.16.0.{host}"), "super_pod_id": 3,
            "devices": devices.iter().map(device).collect::<Value>(),
        }),
        key,
    }
}

fn pair(chip: AscendChip) -> Vec<Case> {
    vec![case(chip, 0, 2, 1, &[0, 1]), case(chip, 1, 2, 2, &[5, 4])]
}

fn table(chip: AscendChip, cases: &[Case]) -> Result<RankTable, String> {
    let facts: Vec<WorkerFacts> = cases.iter().map(Case::facts).collect();
    rank_table::make(chip, &facts).map_err(|error| describe(&error))
}

#[test]
fn each_chip_has_the_version_that_is_bound_to_it() {
    for (name, chip) in [("a2", AscendChip::A2), ("a3", AscendChip::A3), ("950", AscendChip::Ascend950DT)] {
        let text = serde_json::to_string_pretty(&table(chip, &pair(chip)).unwrap()).unwrap();
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn two_pods_of_a_node_are_one_server() {
    for chip in [AscendChip::A2, AscendChip::A3] {
        let cases =
            [case(chip, 2, 3, 1, &[2, 3]), case(chip, 0, 3, 1, &[6, 7]), case(chip, 1, 3, 2, &[0, 1])];
        let RankTable::ByServer(table) = table(chip, &cases).unwrap() else { panic!("{chip:?}") };
        let ranks = |server: usize| -> Vec<(&str, &str)> {
            let devices = table.server_list[server].device.iter();
            devices.map(|device| (device.device_id.as_str(), device.rank_id.as_str())).collect()
        };
        assert_eq!((table.server_count.as_str(), table.server_list.len()), ("2", 2));
        assert_eq!(ranks(0), [("6", "0"), ("7", "1"), ("2", "4"), ("3", "5")]);
        assert_eq!(ranks(1), [("0", "2"), ("1", "3")]);
        let members: usize = table.super_pod_list.iter().map(|superpod| superpod.server_list.len()).sum();
        assert_eq!(members, if chip == AscendChip::A3 { 2 } else { 0 });
    }
}

#[test]
fn superpods_are_told_by_annotation_or_by_label() {
    let mut cases = pair(AscendChip::A3);
    // the device plugin writes a negative one where it knows none
    cases[0].configuration["super_pod_id"] = json!(-2);
    cases[1].configuration["super_pod_id"] = "4".into();
    cases[1].node["metadata"]["labels"]["huawei.com/topotree.superpodid"] = Value::Null;
    cases[1].node["metadata"]["labels"].as_object_mut().unwrap().remove("huawei.com/topotree.superpodid");
    let RankTable::ByServer(table) = table(AscendChip::A3, &cases).unwrap() else { panic!() };
    let superpods: Vec<&str> =
        table.super_pod_list.iter().map(|superpod| superpod.super_pod_id.as_str()).collect();
    assert_eq!(superpods, ["3", "4"]);
}

#[test]
fn one_outer_network_is_named_and_inner_ones_are_enough_without() {
    let mut cases = pair(AscendChip::Ascend950PR);
    let layers = |cases: &[Case]| -> Vec<u32> {
        let RankTable::ByRank(table) = table(AscendChip::Ascend950PR, cases).unwrap() else { panic!() };
        assert_eq!(table.rank_count, table.rank_list.len());
        table.rank_list[0].level_list.iter().map(|level| level.net_layer).collect()
    };
    assert_eq!(layers(&cases), [0, 1, 3]);
    let without = |cases: &mut [Case], level: usize| {
        for case in cases {
            for device in case.configuration["devices"].as_array_mut().unwrap() {
                device["levelList"].as_array_mut().unwrap().remove(level);
            }
        }
    };
    without(&mut cases, 3);
    assert_eq!(layers(&cases), [0, 1, 2]);
    without(&mut cases, 2);
    assert_eq!(layers(&cases), [0, 1]);
    without(&mut cases, 1);
    let refused = table(AscendChip::Ascend950PR, &cases).unwrap_err();
    assert!(refused.contains("1-1 at layer 0 and 1-2 at layer 0: no way between them"), "{refused}");
}

type Change = fn(&mut Vec<Case>);

#[test]
fn what_would_be_wrong_is_refused_with_the_pod_and_the_field() {
    use AscendChip::{A2, A3, Ascend950DT as Dt};
    let refusals: [(AscendChip, Change, &str); 29] = [
        (A2, |cases| _ = cases.pop(), "worker 1 of 2 has no pod that stays"),
        (A2, |cases| _ = cases.remove(0), "worker 0 of 2 has no pod that stays"),
        (
            A2,
            |cases| cases.push(cases[1].clone()),
            "pods pro-0a1b2c3d-0-1 and pro-0a1b2c3d-0-1 are both worker 1",
        ),
        (
            A2,
            |cases| cases[1].pod["spec"]["nodeName"] = Value::Null,
            "pod pro-0a1b2c3d-0-1: it has no node yet",
        ),
        (
            A2,
            |cases| cases[1].configuration = Value::Null,
            "pod pro-0a1b2c3d-0-1: no annotation ascend.kubectl",
        ),
        (
            A2,
            |cases| cases[1].configuration = json!("none"),
            "pod pro-0a1b2c3d-0-1: its device annotation cannot be read: invalid type",
        ),
        (
            A2,
            |cases| cases[1] = case(A3, 1, 2, 2, &[4, 5]),
            "pod pro-0a1b2c3d-0-1: its worker is made for A3, the table is to be for A2",
        ),
        (
            A2,
            |cases| {
                cases[1].node["metadata"]["labels"]["node.kubernetes.io/npu.chip.name"] = "Ascend950PR".into()
            },
            "pod pro-0a1b2c3d-0-1: its node node-2 has Ascend950PR, the table is to be for A2",
        ),
        (
            A3,
            |cases| cases[0].node["metadata"]["labels"]["node.kubernetes.io/npu.chip.name"] = "910B2".into(),
            "its node node-1 has 910B2",
        ),
        (
            A2,
            |cases| cases[1].configuration["devices"] = json!([]),
            "pod pro-0a1b2c3d-0-1: its device annotation has no devices",
        ),
        (
            A2,
            |cases| _ = cases[1].configuration["devices"].as_array_mut().unwrap().pop(),
            "annotation has 1 devices, the worker 2",
        ),
        (
            A2,
            |cases| cases[1].configuration["devices"][0]["device_id"] = "five".into(),
            "pod pro-0a1b2c3d-0-1: device_id \"five\" of a device is not a number",
        ),
        (
            A2,
            |cases| cases[1].configuration["devices"][0]["device_id"] = "4".into(),
            "both have device 4 of node node-2",
        ),
        (
            A2,
            |cases| cases[1].configuration["devices"][0]["device_ip"] = "".into(),
            "pod pro-0a1b2c3d-0-1, device 5: device_ip \"\" is not an address",
        ),
        (
            A3,
            |cases| cases[1].configuration["devices"][0]["device_ip"] = Value::Null,
            "cannot be read: invalid type: null",
        ),
        (
            A3,
            |cases| _ = cases[1].configuration["devices"][0].as_object_mut().unwrap().remove("device_ip"),
            "device 5: device_ip \"\" is not an address",
        ),
        (
            A2,
            |cases| cases[1].configuration["devices"][0]["device_ip"] = "10.1.0.1".into(),
            "pods pro-0a1b2c3d-0-0 and pro-0a1b2c3d-0-1: both have device_ip 10.1.0.1",
        ),
        (
            A2,
            |cases| cases[1] = case(A2, 1, 2, 1, &[1, 2]),
            "pods pro-0a1b2c3d-0-0 and pro-0a1b2c3d-0-1: both have device 1 of node node-1",
        ),
        (
            A2,
            |cases| cases[1].configuration["server_id"] = "".into(),
            "pod pro-0a1b2c3d-0-1: its device annotation has no server_id",
        ),
        (
            A2,
            |cases| cases[1].configuration["server_id"] = "10.244.2.1".into(),
            "server_id 10.244.2.1 is the address of the pod",
        ),
        (
            A2,
            |cases| cases[1].configuration["server_id"] = "172.16.0.1".into(),
            "both have server_id 172.16.0.1, but are on different nodes",
        ),
        (
            A2,
            |cases| {
                cases[1] = case(A2, 1, 2, 1, &[4, 5]);
                cases[1].configuration["server_id"] = "host-1".into();
            },
            "both are on node node-1, but have different server_id",
        ),
        (
            A3,
            |cases| cases[1].configuration["devices"][0]["super_device_id"] = "".into(),
            "pod pro-0a1b2c3d-0-1, device 5: it has no super_device_id",
        ),
        (
            A3,
            |cases| cases[1].configuration["devices"][0]["super_device_id"] = "65536".into(),
            "both have super_device_id 65536 of superpod 3",
        ),
        (
            A3,
            |cases| {
                cases[1].configuration["super_pod_id"] = json!(-1);
                cases[1].node["metadata"]["labels"] = json!({});
            },
            "pod pro-0a1b2c3d-0-1: neither its device annotation (super_pod_id) nor the label huawei.com/topotree.superpodid of its node node-2",
        ),
        (
            A3,
            |cases| cases[1].configuration["super_pod_id"] = json!(4),
            "superpod 4 by its device annotation, 3 by the label of its node node-2",
        ),
        (
            Dt,
            |cases| {
                for case in cases {
                    for device in case.configuration["devices"].as_array_mut().unwrap() {
                        device["levelList"] = Value::Null;
                    }
                }
            },
            "pod pro-0a1b2c3d-0-0, device 0: no levelList",
        ),
        (
            Dt,
            |cases| _ = cases[1].configuration["devices"][0]["levelList"].as_array_mut().unwrap().pop(),
            "pod pro-0a1b2c3d-0-1, device 5: it has no ROCE network",
        ),
        (
            Dt,
            |cases| {
                let info = &mut cases[1].configuration["devices"][0]["levelList"][0]["info"];
                info["UBC"] = info["UB"].clone();
            },
            "pod pro-0a1b2c3d-0-1, device 5: several kinds of network at level 0: UB, UBC",
        ),
    ];
    for (chip, change, expected) in refusals {
        let mut cases = pair(chip);
        change(&mut cases);
        match table(chip, &cases) {
            Err(told) => assert!(told.contains(expected), "{expected}: {told}"),
            Ok(table) => panic!("{expected}: {table:?}"),
        }
    }
}

/// On the host's network, the pod's address is the host's.
#[test]
fn on_the_network_of_the_host_the_address_of_the_pod_is_a_server() {
    let mut cases = pair(AscendChip::A2);
    cases[1].pod["status"]["podIP"] = "172.16.0.2".into();
    assert!(table(AscendChip::A2, &cases).unwrap_err().contains("is the address of the pod"));
    cases[1].pod["spec"]["hostNetwork"] = true.into();
    assert!(table(AscendChip::A2, &cases).is_ok());
}

#[tokio::test]
async fn the_command_reads_pods_and_nodes_and_writes_a_file() {
    let api = ApiServer::start().await;
    let known = group::group(Size::SMALL);
    api.knows(&known, json!({"group": {"workers": 2, "device": "Ascend", "ascend": {"chip": "A3"}}}));
    {
        let mut objects = api.objects.lock().unwrap();
        let cases = pair(AscendChip::A3);
        for (pod, case) in objects.pods.iter_mut().zip(&cases) {
            pod["metadata"]["annotations"] = json!({case.key: case.configuration.to_string()});
            pod["spec"]["nodeName"] = case.node["metadata"]["name"].clone();
            pod["status"]["hostIP"] = case.pod["status"]["hostIP"].clone();
        }
        let mut leaving = objects.pods[1].clone();
        leaving["metadata"]["name"] = "before".into();
        leaving["metadata"]["deletionTimestamp"] = "2026-11-27T10:00:00Z".into();
        objects.pods.insert(0, leaving);
        objects.lists.insert("/api/v1/nodes".into(), cases.into_iter().map(|case| case.node).collect());
    }
    let ran = api.run(&["rank-table", "nano"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let expected = serde_json::to_value(table(AscendChip::A3, &pair(AscendChip::A3)).unwrap()).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), expected);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hccl.json");
    let to_file = api.run(&["rank-table", "nano", "-g", &known.name, "-o", file.to_str().unwrap()]).await;
    assert_eq!((to_file.code, to_file.stdout.as_str(), to_file.stderr.as_str()), (0, "", ""));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), ran.stdout);

    let other = api.run(&["rank-table", "nano", "-g", "other"]).await;
    assert_eq!(other.code, 1);
    assert!(other.stderr.contains("no pods of group other; it has nano-ec7356da-0"), "{}", other.stderr);

    // whoever may not read nodes is told what was not compared
    api.objects.lock().unwrap().lists.clear();
    let blind = api.run(&["rank-table", "nano", "--chip", "A2"]).await;
    assert_eq!(blind.code, 0, "{}", blind.stderr);
    assert!(
        blind.stderr.contains("node node-1: ") && blind.stderr.contains("its labels are not looked at"),
        "{}",
        blind.stderr
    );
    assert_eq!(serde_json::from_str::<Value>(&blind.stdout).unwrap()["version"], "1.0");

    // a second group, and a deployment on CPUs
    let mut second = api.objects.lock().unwrap().pods[1].clone();
    second["metadata"]["labels"]["serving.belay.dev/group"] = "nano-ec7356da-1".into();
    api.objects.lock().unwrap().pods.push(second);
    let several = api.run(&["rank-table", "nano"]).await;
    assert!(several.stderr.contains("--group nano-ec7356da-0, nano-ec7356da-1"), "{}", several.stderr);
    api.objects.lock().unwrap().deployment["spec"] = json!({"group": {"workers": 2, "device": "CPU"}});
    let cpu = api.run(&["rank-table", "nano"]).await;
    assert_eq!(cpu.code, 1);
    assert!(cpu.stderr.contains("spec.group.ascend.chip is not set"), "{}", cpu.stderr);
}

/// Rank and place of each device, however the version writes it.
fn ranks(table: &RankTable) -> Vec<(usize, String)> {
    match table {
        RankTable::ByServer(table) => {
            let devices = |server: &rank_table::table::Server| -> Vec<(usize, String)> {
                let place = |id: &str| format!("{}/{id}", server.server_id);
                server
                    .device
                    .iter()
                    .map(|device| (device.rank_id.parse().unwrap(), place(&device.device_id)))
                    .collect()
            };
            table.server_list.iter().flat_map(devices).collect()
        }
        RankTable::ByRank(table) => {
            // a rank of this version does not name its host but by its innermost network
            let place = |rank: &rank_table::table::Rank| {
                format!("{}/{}", rank.level_list[0].net_instance_id, rank.device_id)
            };
            table.rank_list.iter().map(|rank| (rank.rank_id, place(rank))).collect()
        }
    }
}

/// Workers on hosts of eight devices: which host each is on, and how many devices each has.
fn groups() -> impl Strategy<Value = (AscendChip, Vec<u32>, u32, bool)> {
    let chip = prop::sample::select(vec![AscendChip::A2, AscendChip::A3, AscendChip::Ascend950PR]);
    (chip, prop::collection::vec(0u32..4, 1..9), 1u32..3, any::<bool>())
}

proptest! {
    #[test]
    fn ranks_are_contiguous_and_each_device_has_one((chip, hosts, per_worker, backwards) in groups()) {
        let mut taken = [0u32; 4];
        let mut expected = BTreeSet::new();
        let mut cases = vec![];
        let workers = u32::try_from(hosts.len()).unwrap();
        for (worker, host) in (0..).zip(&hosts) {
            let first = taken[*host as usize];
            taken[*host as usize] += per_worker;
            let mut devices: Vec<u32> = (first..first + per_worker).collect();
            expected.extend(devices.iter().map(|device| match chip.is_950() {
                true => format!("1-{host}/{device}"),
                false => format!("172.16.0.{host}/{device}"),
            }));
            if backwards {
                devices.reverse();
            }
            cases.push(case(chip, worker, workers, *host, &devices));
        }
        if backwards {
            cases.reverse();
        }
        let table = table(chip, &cases).unwrap();
        let mut found = ranks(&table);
        found.sort();
        let numbers: Vec<usize> = found.iter().map(|(rank, _)| *rank).collect();
        prop_assert_eq!(numbers, (0..expected.len()).collect::<Vec<_>>());
        // by worker, then by device: the same order as the ranks of the group
        for (rank, (_, place)) in found.iter().enumerate() {
            let host = hosts[rank / per_worker as usize];
            prop_assert!(place.contains(&format!("-{host}/")) || place.contains(&format!(".{host}/")), "{place}");
        }
        let places: BTreeSet<String> = found.into_iter().map(|(_, place)| place).collect();
        prop_assert_eq!(places, expected);
    }
}

//! What is built for NPUs: the examples word for word, and what each choice changes of them.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "each test takes what it needs of the common part")]
mod common;

use std::collections::BTreeSet;

use belay_crds::{ModelDeployment, labels};
use belay_operator::{
    pod_group::{PodGroup, volcano},
    reconcile::{
        build::{Prepared, build},
        observe::{Objects, Observed},
        plan::{Plan, plan},
        validate::{Validated, validate},
    },
    revision::Record,
    rollout::Evidence,
};
use belay_proto::admin::Phase;
use common::{IMAGE, at, group};
use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec};
use serde_json::{Value, json};

const EXAMPLES: [&str; 5] = ["flash-a2", "flash-a3", "pro-w4a8-a2", "pro-w4a8-a3", "flash-950"];

fn example(name: &str) -> Value {
    let path = format!("{}/../examples/ascend/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let mut object: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    object["metadata"]["uid"] = json!("7d1f6b42-0c1e-4f5a-8e5b-3f9a1c2d4e05");
    object
}

/// An example with other values in `spec.group.ascend`, and in `spec.group`.
fn changed(name: &str, ascend: Value, group: Value) -> ModelDeployment {
    let mut object = example(name);
    for (part, change) in [("/spec/group/ascend", ascend), ("/spec/group", group)] {
        object
            .pointer_mut(part)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
    }
    serde_json::from_value(object).unwrap()
}

fn plain(name: &str) -> ModelDeployment {
    changed(name, json!({}), json!({}))
}

fn planned(deployment: &ModelDeployment) -> (Validated, Plan) {
    deployment.validate_cel().unwrap();
    let wanted = validate(deployment).unwrap();
    let plan = plan(&wanted, &[], &[], Some(IMAGE), &Evidence::default(), at(0)).unwrap();
    (wanted, plan)
}

fn prepared(deployment: &ModelDeployment) -> Prepared {
    let (wanted, plan) = planned(deployment);
    let nothing = Observed { groups: vec![], revisions: vec![], objects: Objects::default(), now: at(0) };
    build(&wanted, &nothing, &plan).unwrap()
}

fn first_pod(deployment: &ModelDeployment) -> Pod {
    *prepared(deployment).pods.remove(0).pod
}

fn parts(pod: Pod) -> (PodSpec, Container) {
    let mut spec = pod.spec.unwrap();
    let container = spec.containers.remove(0);
    (spec, container)
}

fn variable(container: &Container, name: &str) -> Option<EnvVar> {
    let mut found = container.env.iter().flatten().filter(|variable| variable.name == name);
    let first = found.next().cloned();
    assert!(found.next().is_none(), "{name} is set twice");
    first
}

fn mounted(container: &Container) -> BTreeSet<String> {
    container.volume_mounts.iter().flatten().map(|mount| mount.mount_path.clone()).collect()
}

#[test]
fn pods_of_the_examples() {
    for name in EXAMPLES {
        let prepared = prepared(&plain(name));
        let workers = plain(name).spec.group.workers;
        assert_eq!(prepared.pods.len(), usize::try_from(workers).unwrap());
        assert!(prepared.pod_groups.is_empty());
        insta::assert_yaml_snapshot!(name.replace('-', "_"), prepared.pods[0].pod);
    }
}

#[test]
fn objects_of_a_gang() {
    let gang = json!({ "scheduling": { "scheduler": "Gang" } });
    let template = json!({ "template": { "priorityClassName": "urgent" } });
    let prepared = prepared(&changed("pro-w4a8-a3", gang, template));
    let [PodGroup::Native(pod_group)] = prepared.pod_groups.as_slice() else {
        panic!("one of Kubernetes' own")
    };
    insta::assert_yaml_snapshot!("pro_w4a8_a3_gang_group", pod_group);
    for new in &prepared.pods {
        assert_eq!(new.scheduling_group, pod_group.metadata.name);
        assert_eq!(new.pod.spec.as_ref().unwrap().scheduler_name, None, "the cluster's own");
        assert!(!new.pod.metadata.annotations.as_ref().unwrap().contains_key(labels::POD_GROUP));
    }
}

fn of_volcano(prepared: &Prepared) -> &volcano::PodGroup {
    match prepared.pod_groups.as_slice() {
        [PodGroup::Volcano(pod_group)] => pod_group,
        other => panic!("not one of Volcano: {other:?}"),
    }
}

#[test]
fn objects_with_volcano() {
    let volcano = json!({ "scheduling": { "scheduler": "Volcano", "queue": "serving" } });
    let prepared = prepared(&changed("pro-w4a8-a3", volcano, json!({})));
    insta::assert_yaml_snapshot!("pro_w4a8_a3_volcano_group", of_volcano(&prepared));
    assert!(prepared.pods.iter().all(|new| new.scheduling_group.is_none()));
    insta::assert_yaml_snapshot!("pro_w4a8_a3_volcano_pod", prepared.pods[1].pod);
}

#[test]
fn pod_with_a_claim() {
    let claim = json!({ "resourceClaimTemplateName": "npus" });
    insta::assert_yaml_snapshot!("flash_a3_claim", first_pod(&changed("flash-a3", claim, json!({}))));
}

#[test]
fn pod_without_the_runtime() {
    let mounts = json!({ "runtime": "Mounts" });
    insta::assert_yaml_snapshot!("pro_w4a8_a2_mounts", first_pod(&changed("pro-w4a8-a2", mounts, json!({}))));
}

#[test]
fn every_device_is_asked_for_once_and_limited() {
    for name in EXAMPLES {
        let deployment = plain(name);
        let group = deployment.spec.group.clone();
        let (_, container) = parts(first_pod(&deployment));
        let resource = if name.contains("950") { "huawei.com/npu" } else { "huawei.com/Ascend910" };
        let resources = container.resources.unwrap();
        for list in [resources.requests.unwrap(), resources.limits.unwrap()] {
            assert_eq!(list[resource].0, group.devices_per_worker.to_string());
            let ours = list.keys().filter(|key| key.starts_with("huawei.com/"));
            assert_eq!(ours.count(), 1);
        }
    }
}

#[test]
fn another_plugin_has_its_own_resource_and_nodes() {
    let hami = json!({ "deviceResource": "huawei.com/Ascend910B3", "devicesPerWorker": 2,
        "template": { "resources": { "limits": { "huawei.com/Ascend910B3-memory": "65536" } } } });
    let (spec, container) = parts(first_pod(&changed("flash-a2", json!({}), hami)));
    let limits = container.resources.unwrap().limits.unwrap();
    assert_eq!(limits["huawei.com/Ascend910B3"].0, "2");
    assert_eq!(limits["huawei.com/Ascend910B3-memory"].0, "65536", "what belongs to it passes through");
    assert!(!limits.contains_key("huawei.com/Ascend910"));
    assert!(spec.node_selector.is_none(), "its nodes are labelled in other ways");
}

#[test]
fn node_selector_of_the_template_wins() {
    let template = json!({ "template": { "nodeSelector": { "accelerator": "mine", "disk": "fast" } } });
    let (spec, _) = parts(first_pod(&changed("flash-a2", json!({}), template)));
    let selector = spec.node_selector.unwrap();
    assert_eq!((selector["accelerator"].as_str(), selector.len()), ("mine", 2));
}

/// Set by hand, it contradicts what the device plugin tells the runtime.
#[test]
fn visible_devices_are_named_only_where_volcano_picks_them_for_the_runtime() {
    let name = "ASCEND_VISIBLE_DEVICES";
    let volcano = |runtime: &str| {
        let ascend =
            json!({ "runtime": runtime, "scheduling": { "scheduler": "Volcano", "policy": "chip8-node8" } });
        parts(first_pod(&changed("flash-950", ascend, json!({})))).1
    };
    let source = variable(&volcano("Ascend"), name).unwrap().value_from.unwrap();
    assert_eq!(source.field_ref.unwrap().field_path, "metadata.annotations['huawei.com/npu']");
    assert!(variable(&volcano("Mounts"), name).is_none());
    for example in EXAMPLES {
        assert!(variable(&parts(first_pod(&plain(example))).1, name).is_none());
    }
}

#[test]
fn variables_of_the_template_come_before_ours() {
    let env = json!([{ "name": "HCCL_OP_EXPANSION_MODE", "value": "HOST" }, { "name": "HCCL_BUFFSIZE", "value": "800" }]);
    let template = json!({ "template": { "env": env } });
    let (_, container) = parts(first_pod(&changed("flash-a2", json!({}), template)));
    assert_eq!(variable(&container, "HCCL_OP_EXPANSION_MODE").unwrap().value.as_deref(), Some("HOST"));
    assert_eq!(variable(&container, "HCCL_BUFFSIZE").unwrap().value.as_deref(), Some("800"));
    let address = variable(&container, "HCCL_IF_IP").unwrap().value_from.unwrap().field_ref.unwrap();
    assert_eq!(address.field_path, "status.podIP");
    let names: Vec<&str> = container.env.iter().flatten().map(|variable| variable.name.as_str()).collect();
    assert_eq!(names.last(), Some(&"HCCL_BUFFSIZE"), "the template's are the last");
    let of_950 = parts(first_pod(&plain("flash-950"))).1;
    assert!(variable(&of_950, "HCCL_OP_EXPANSION_MODE").is_none(), "950 chooses by itself");
}

/// Without it, groups of several nodes were seen to answer nonsense: a node that lacks it must not start the pod.
#[test]
fn addresses_of_the_network_are_mounted_where_a_group_has_several_nodes() {
    let file = "/etc/hccn.conf";
    for runtime in ["Ascend", "Mounts"] {
        let pod =
            |name: &str, group: Value| parts(first_pod(&changed(name, json!({ "runtime": runtime }), group)));
        for name in ["pro-w4a8-a2", "pro-w4a8-a3"] {
            let (spec, container) = pod(name, json!({}));
            assert!(mounted(&container).contains(file), "{name} {runtime}");
            let volumes = spec.volumes.unwrap();
            let source =
                volumes.iter().filter_map(|volume| volume.host_path.as_ref()).find(|host| host.path == file);
            assert_eq!(source.unwrap().type_.as_deref(), Some("File"));
        }
        for (name, group) in
            [("flash-a2", json!({})), ("flash-a3", json!({})), ("flash-950", json!({ "workers": 2 }))]
        {
            assert!(!mounted(&pod(name, group).1).contains(file), "{name} {runtime}");
        }
    }
}

/// A namespace of the restricted level takes the pods of groups on one node whose runtime mounts the driver.
#[test]
fn pods_of_one_node_need_no_path_of_it() {
    for name in ["flash-a2", "flash-a3", "flash-950"] {
        let (spec, container) = parts(first_pod(&plain(name)));
        assert!(spec.volumes.unwrap().iter().all(|volume| volume.host_path.is_none()));
        let pod = spec.security_context.unwrap();
        assert_eq!((pod.run_as_non_root, pod.supplemental_groups), (Some(true), Some(vec![1000])));
        let context = container.security_context.unwrap();
        assert_eq!((context.privileged, context.read_only_root_filesystem), (None, Some(true)));
    }
    let group = json!({ "deviceGroupId": 1907 });
    let (spec, _) = parts(first_pod(&changed("flash-a2", group, json!({}))));
    assert_eq!(spec.security_context.unwrap().supplemental_groups, Some(vec![1907]));
}

#[test]
fn network_of_the_node_is_a_choice() {
    let (spec, _) = parts(first_pod(&plain("flash-a2")));
    assert_eq!((spec.host_network, spec.dns_policy), (None, None));
    let (spec, _) = parts(first_pod(&changed("flash-a2", json!({ "network": "Host" }), json!({}))));
    assert_eq!(
        (spec.host_network, spec.dns_policy.as_deref()),
        (Some(true), Some("ClusterFirstWithHostNet"))
    );
}

#[test]
fn workers_on_a3_prefer_one_superpod_unless_the_template_says_where() {
    let near = |deployment: &ModelDeployment| {
        let affinity = parts(first_pod(deployment)).0.affinity.unwrap();
        affinity.pod_affinity.map(|near| {
            assert!(
                near.required_during_scheduling_ignored_during_execution.is_none(),
                "a lost worker must come back"
            );
            near.preferred_during_scheduling_ignored_during_execution.unwrap()[0]
                .pod_affinity_term
                .topology_key
                .clone()
        })
    };
    assert_eq!(near(&plain("pro-w4a8-a3")).as_deref(), Some(labels::SUPERPOD));
    for name in ["flash-a3", "pro-w4a8-a2", "flash-950"] {
        assert_eq!(near(&plain(name)), None, "{name}");
    }
    let own = json!({ "template": { "affinity": { "nodeAffinity": {} } } });
    assert_eq!(near(&changed("pro-w4a8-a3", json!({}), own)), None);
}

#[test]
fn pod_group_follows_chip_shape_and_choice() {
    let notes = |name: &str, scheduling: Value| {
        let mut volcano = json!({ "scheduler": "Volcano" });
        volcano.as_object_mut().unwrap().extend(scheduling.as_object().unwrap().clone());
        let prepared = prepared(&changed(name, json!({ "scheduling": volcano }), json!({})));
        let group = of_volcano(&prepared).clone();
        for new in &prepared.pods {
            assert_eq!(
                new.pod.metadata.annotations.as_ref().unwrap()[labels::POD_GROUP],
                *group.metadata.name.as_ref().unwrap()
            );
            assert_eq!(new.pod.spec.as_ref().unwrap().scheduler_name.as_deref(), Some("volcano"));
        }
        assert_eq!(usize::try_from(group.spec.min_member).unwrap(), prepared.pods.len());
        let notes = group.metadata.annotations.unwrap();
        let get = |key: &str| notes.get(key).cloned();
        (get(labels::SCHEDULE_POLICY), get(labels::SUPERPOD_BLOCK), get(labels::SCHEDULE_MIN_AVAILABLE))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(notes("flash-a2", json!({})), (some("chip8-node8"), None, some("1")));
    assert_eq!(notes("pro-w4a8-a2", json!({})), (some("chip8-node8"), None, some("4")));
    assert_eq!(notes("flash-a3", json!({})), (some("chip2-node16"), None, some("1")));
    assert_eq!(notes("pro-w4a8-a3", json!({})), (some("chip2-node16-sp"), some("32"), some("2")));
    let one_node = json!({ "superPodDevices": 16, "policy": "chip2-node16-sp" });
    assert_eq!(notes("pro-w4a8-a3", one_node), (some("chip2-node16-sp"), some("16"), some("2")));
    let superpod = json!({ "policy": "chip8-node8-ra64-sp", "superPodDevices": 8 });
    assert_eq!(notes("flash-950", superpod), (some("chip8-node8-ra64-sp"), some("8"), some("1")));
}

/// Of a group that exists: written again before a pod of it is made, and removed with the group.
#[test]
fn pod_group_goes_with_its_group() {
    let volcano = json!({ "scheduling": { "scheduler": "Volcano" } });
    let deployment = changed("pro-w4a8-a3", volcano, json!({}));
    let (wanted, first) = planned(&deployment);
    let look = |record: &Record, groups: Vec<belay_operator::group::Group>| {
        let revisions = vec![record.clone()];
        let plan = plan(&wanted, &groups, &revisions, Some(IMAGE), &Evidence::default(), at(0)).unwrap();
        let observed = Observed { groups, revisions, objects: Objects::default(), now: at(0) };
        build(&wanted, &observed, &plan).unwrap()
    };
    let whole = group(&first.target, "pro", 0, Phase::Ready);
    let at_rest = look(&first.target, vec![whole.clone()]);
    assert!(at_rest.pod_groups.is_empty() && at_rest.cleared_pod_groups.is_empty(), "it is there, and stays");
    let mut lacking = whole.clone();
    lacking.slots[1] = None;
    assert_eq!(look(&first.target, vec![lacking]).pod_groups.len(), 1);
    let mut gone = whole;
    gone.draining_since = Some(at(-10));
    gone.slots = vec![None, None];
    let name = gone.name.clone();
    let cleared = look(&first.target, vec![gone]).cleared_pod_groups;
    assert_eq!(cleared.iter().map(PodGroup::name).collect::<Vec<_>>(), [name]);
}

#[test]
fn what_contradicts_itself_is_refused_with_its_field() {
    let refused =
        |name: &str, ascend: Value, group: Value| validate(&changed(name, ascend, group)).unwrap_err().field;
    let none = || json!({});
    assert_eq!(refused("flash-a2", none(), json!({ "device": "CPU" })), "spec.group.ascend");
    assert_eq!(refused("flash-a3", none(), json!({ "devicesPerWorker": 3 })), "spec.group.devicesPerWorker");
    let twice = json!({ "deviceResource": "huawei.com/Ascend910" });
    let claim = json!({ "resourceClaimTemplateName": "npus" });
    assert_eq!(refused("flash-a3", claim, twice), "spec.group.deviceResource");
    let own = json!({ "template": { "resources": { "limits": { "huawei.com/Ascend910": "8" } } } });
    assert_eq!(refused("flash-a2", none(), own), "spec.group.template.resources");
    let block = json!({ "scheduling": { "scheduler": "Volcano", "superPodDevices": 24 } });
    assert_eq!(refused("pro-w4a8-a3", block, none()), "spec.group.ascend.scheduling.superPodDevices");
    let claim = json!({ "resourceClaimTemplateName": "npus", "scheduling": { "scheduler": "Volcano" } });
    assert_eq!(refused("flash-a3", claim, none()), "spec.group.ascend.resourceClaimTemplateName");
    let volcano = json!({ "scheduling": { "scheduler": "Volcano" } });
    assert_eq!(refused("flash-950", volcano, none()), "spec.group.ascend.scheduling.policy");
    let mut cpu = example("flash-a2");
    cpu["spec"]["group"] = json!({ "device": "CPU", "deviceResource": "huawei.com/npu" });
    assert_eq!(
        validate(&serde_json::from_value(cpu.clone()).unwrap()).unwrap_err().field,
        "spec.group.deviceResource"
    );
    cpu["spec"]["group"] = json!({ "device": "CPU" });
    cpu["spec"]["deviceFaults"] = json!({ "other": "Ignore" });
    assert_eq!(validate(&serde_json::from_value(cpu).unwrap()).unwrap_err().field, "spec.deviceFaults");
}

#[test]
fn settings_of_pods_make_a_revision_and_the_policy_of_faults_does_not() {
    let hash = |deployment: &ModelDeployment| validate(deployment).unwrap().content.hash(0).unwrap();
    let settings = [
        json!({}),
        json!({ "runtime": "Mounts" }),
        json!({ "network": "Host" }),
        json!({ "sharedMemory": "1Gi" }),
        json!({ "deviceGroupId": 7 }),
        json!({ "resourceClaimTemplateName": "npus" }),
        json!({ "scheduling": { "scheduler": "Volcano" } }),
        json!({ "chip": "A3" }),
    ];
    let hashes: BTreeSet<String> =
        settings.iter().map(|ascend| hash(&changed("flash-a2", ascend.clone(), json!({})))).collect();
    assert_eq!(hashes.len(), settings.len());
    let mut faults = example("flash-a2");
    faults["spec"]["deviceFaults"] = json!({ "restartNPU": "Drain" });
    assert_eq!(hash(&serde_json::from_value(faults).unwrap()), hash(&plain("flash-a2")));
}

/// The schema refuses templates that set what the operator sets; the list must be complete.
#[test]
fn every_variable_of_the_operator_is_reserved() {
    for name in EXAMPLES {
        let (_, container) = parts(first_pod(&plain(name)));
        for variable in container.env.unwrap() {
            let ours = variable.name.starts_with("BELAY_");
            assert_eq!(ours, belay_crds::RESERVED_ENV.contains(&variable.name.as_str()), "{}", variable.name);
        }
    }
}

//! Deployments on NPUs: reports of a device plugin, and Volcano. Both are played; the NPUs are only asked for.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use belay_crds::{ModelDeployment, ModelDeploymentStatus};
use belay_operator::pod_group::{native, volcano::PodGroup};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    scenarios::{Cluster, NAMESPACE},
    settled::{condition, settled},
};

/// One group of two workers with two devices each.
fn spec(ascend: Value) -> Value {
    json!({
        "model": { "source": { "hostPath": { "path": "/models/nano" } } },
        "group": { "workers": 2, "device": "Ascend", "devicesPerWorker": 2, "ascend": ascend },
    })
}

fn covered(status: &ModelDeploymentStatus) {
    assert_eq!(condition(status, "ExpertsCovered").0, "True", "{status:#?}");
}

fn node(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().node_name.clone().unwrap()
}

impl Cluster {
    pub async fn ascend(&mut self) {
        eprintln!("-- faults_of_devices_lead_to_what_is_wanted");
        self.faults_of_devices_lead_to_what_is_wanted().await;
        eprintln!("-- gangs_are_told_to_kubernetes");
        self.gangs_are_told_to_kubernetes().await;
        eprintln!("-- waits_for_volcano_and_makes_its_pod_groups");
        self.waits_for_volcano_and_makes_its_pod_groups().await;
    }

    /// As the device plugin writes it after it has given devices to a pod.
    async fn give_devices(&self, pod: &Pod, devices: &str) {
        let patch =
            Patch::Merge(json!({ "metadata": { "annotations": { "huawei.com/AscendReal": devices } } }));
        self.api::<Pod>().patch(&pod.name_any(), &PatchParams::default(), &patch).await.unwrap();
    }

    /// As the device plugin writes it: every field, JSON within strings.
    async fn report(&self, node: &str, faults: Value) {
        let names: Vec<&str> =
            faults.as_array().unwrap().iter().filter_map(|f| f["npu_name"].as_str()).collect();
        let info = json!({ "DeviceInfo": { "DeviceList": {
                "huawei.com/Ascend910": "Ascend910-6,Ascend910-7",
                "huawei.com/Ascend910-Fault": faults.to_string(), "huawei.com/Ascend910-NetworkUnhealthy": "",
                "huawei.com/Ascend910-Recovering": "", "huawei.com/Ascend910-Unhealthy": names.join(",") },
            "UpdateTime": 1_800_000_000 }, "SuperPodID": -2, "ServerIndex": -2, "CheckCode": "0f" });
        let switch = json!({ "FaultCode": [], "FaultLevel": "", "UpdateTime": 0, "NodeStatus": "Healthy" });
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": format!("mindx-dl-deviceinfo-{node}") },
            "data": { "DeviceInfoCfg": info.to_string(), "SwitchInfoCfg": switch.to_string(), "ManuallySeparateNPU": "" } });
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), "kube-system");
        let name = object["metadata"]["name"].as_str().unwrap();
        api.patch(name, &PatchParams::apply("device-plugin").force(), &Patch::Apply(&object)).await.unwrap();
    }

    /// The pod of a worker of `npu`.
    async fn of_worker(&self, worker: &str) -> Pod {
        let mut pods = self.pods("npu").await;
        pods.retain(|pod| pod.labels()["serving.belay.dev/worker"] == worker);
        assert_eq!(pods.len(), 1);
        pods.remove(0)
    }

    /// Waits until the pod of a worker is another one and the group is whole; `always` holds meanwhile.
    async fn until_anew(&self, worker: &str, before: &Pod, always: impl Fn(&ModelDeploymentStatus)) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let pods = self.pods("npu").await;
            let found = pods.iter().find(|pod| pod.labels()["serving.belay.dev/worker"] == worker);
            always(&self.status("npu").await);
            if found.is_some_and(|pod| pod.uid() != before.uid()) {
                break;
            }
            assert!(Instant::now() < end, "the pod stays: {:#?}", self.status("npu").await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // the plugin gives the new one other devices, and takes back what it said
        self.give_devices(&self.of_worker(worker).await, "Ascend910-6,Ascend910-7").await;
        self.report(&node(before), json!([])).await;
        let whole = |status: &ModelDeploymentStatus| settled(status) && status.ready_replicas == 1;
        self.until_while("npu", "the group is whole", whole, always).await;
    }

    async fn faults_of_devices_lead_to_what_is_wanted(&self) {
        self.create("npu", spec(json!({ "chip": "A2" }))).await;
        self.until("npu", "one ready group", |status| settled(status) && status.ready_replicas == 1).await;
        for (worker, devices) in [("0", "Ascend910-0,Ascend910-1"), ("1", "Ascend910-2,Ascend910-3")] {
            self.give_devices(&self.of_worker(worker).await, devices).await;
        }
        let entry = |device: &str, level: &str| {
            json!([{ "fault_type": "CardUnhealthy", "npu_name": device, "large_model_fault_level": level,
                "fault_level": level, "fault_handling": level, "fault_code": "80E01801",
                "fault_time_and_level_map": { "80E01801": { "fault_time": 0, "fault_level": level } } }])
        };
        let told = |words: &'static str| {
            move |status: &ModelDeploymentStatus| {
                let (_, reason, message) = condition(status, "Degraded");
                reason == "DeviceFault" && message.contains(words)
            }
        };

        // drained: no moment in which an expert has no copy
        let (first, second) = (self.of_worker("0").await, self.of_worker("1").await);
        self.report(&node(&first), entry("Ascend910-1", "PreSeparateNPU")).await;
        self.until_anew("0", &first, covered).await;
        assert_eq!(self.of_worker("1").await.uid(), second.uid(), "the other worker is the same");
        self.until_told("npu", &["DeviceFault", "PodReplaced"]).await;

        // replaced at once
        self.report(&node(&second), entry("Ascend910-2", "SeparateNPU")).await;
        self.until_anew("1", &second, |_| {}).await;

        // left alone, until the policy is another one: that moves no pod by itself
        let first = self.of_worker("0").await;
        self.report(&node(&first), entry("Ascend910-7", "SubHealthFault")).await;
        let before = self.uids("npu").await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(self.uids("npu").await, before);
        assert!(settled(&self.status("npu").await));
        let revision = self.status("npu").await.updated_revision;
        self.report(&node(&first), entry("Ascend910-5", "SeparateNPU")).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(self.uids("npu").await, before, "a device of nobody's");
        self.report(&node(&first), entry("Ascend910-7", "SubHealthFault")).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.change("npu", json!({ "deviceFaults": { "subHealthFault": "Replace" } })).await;
        self.until("npu", "the fault is told", told("level SubHealthFault")).await;
        self.until_anew("0", &first, |_| {}).await;
        assert_eq!(self.status("npu").await.updated_revision, revision);
        self.remove("npu").await;
    }

    async fn waits_for_volcano_and_makes_its_pod_groups(&self) {
        let volcano = json!({ "chip": "A3", "scheduling": { "scheduler": "Volcano", "queue": "serving" } });
        self.create("gang", spec(volcano)).await;
        let missing = |status: &ModelDeploymentStatus| condition(status, "Degraded").1 == "SchedulerMissing";
        self.until("gang", "Volcano is missed", missing).await;
        assert!(self.pods("gang").await.is_empty(), "nobody would find nodes for them");
        self.until_told("gang", &["SchedulerMissing"]).await;

        let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let definition = json!({ "metadata": { "name": "podgroups.scheduling.volcano.sh" }, "spec": {
            "group": "scheduling.volcano.sh", "scope": "Namespaced",
            "names": { "kind": "PodGroup", "plural": "podgroups", "singular": "podgroup", "listKind": "PodGroupList" },
            "versions": [{ "name": "v1beta1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }] } });
        let definition: CustomResourceDefinition = serde_json::from_value(definition).unwrap();
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        definitions.create(&PostParams::default(), &definition).await.unwrap();
        let status =
            self.until("gang", "it serves", |status| settled(status) && status.ready_replicas == 1).await;
        let name = status.groups[0].name.clone();
        let pod_group = self.api::<PodGroup>().get(&name).await.unwrap();
        assert_eq!((pod_group.spec.min_member, pod_group.spec.queue.as_deref()), (2, Some("serving")));
        let annotations: &BTreeMap<String, String> = pod_group.annotations();
        assert_eq!(annotations["sp-block"], "4");
        assert_eq!(pod_group.owner_references()[0].name, "gang");
        for pod in self.pods("gang").await {
            assert_eq!(pod.annotations()["scheduling.k8s.io/group-name"], name);
            assert_eq!(pod.spec.unwrap().scheduler_name.as_deref(), Some("volcano"));
        }
        self.scale("gang", 0).await;
        self.until("gang", "nothing is left", |status| status.replicas == 0).await;
        assert!(self.api::<PodGroup>().get_opt(&name).await.unwrap().is_none(), "it goes with its group");
        self.remove("gang").await;
    }

    /// The API server has the PodGroup and the field of pods: what it does not know, it would drop.
    async fn gangs_are_told_to_kubernetes(&self) {
        self.create("band", spec(json!({ "chip": "A3", "scheduling": { "scheduler": "Gang" } }))).await;
        let serves = |status: &ModelDeploymentStatus| settled(status) && status.ready_replicas == 1;
        let name = self.until("band", "it serves", serves).await.groups[0].name.clone();
        let pod_group = self.api::<native::PodGroup>().get(&name).await.unwrap();
        assert_eq!(pod_group.spec.scheduling_policy.gang.min_count, 2);
        let pods: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), NAMESPACE, &ApiResource::erase::<Pod>(&()));
        let victim = format!("{name}-1");
        for life in ["the first", "the second"] {
            let pod = pods.get(&victim).await.unwrap();
            assert_eq!(pod.data["spec"]["schedulingGroup"]["podGroupName"], name.as_str(), "{life}");
            self.api::<Pod>().delete(&victim, &DeleteParams::default()).await.unwrap();
            let anew = |status: &ModelDeploymentStatus| {
                serves(status) && status.groups[0].placement_epoch >= Some(2)
            };
            self.until("band", "the pod is back", anew).await;
        }
        self.scale("band", 0).await;
        self.until("band", "nothing is left", |status| status.replicas == 0).await;
        let left = self.api::<native::PodGroup>().get_opt(&name).await.unwrap();
        assert!(left.is_none_or(|left| left.metadata.deletion_timestamp.is_some()), "it goes with its group");
        self.remove("band").await;
    }

    async fn remove(&self, name: &str) {
        self.api::<ModelDeployment>().delete(name, &DeleteParams::default()).await.unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !self.pods(name).await.is_empty() {
            assert!(Instant::now() < end, "pods of a deleted deployment stay");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

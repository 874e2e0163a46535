//! The reports of all nodes. They are watched from the first look at a deployment on NPUs on.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
};

use belay_crds::DeviceFaultsSpec;
use futures::{StreamExt as _, channel::mpsc::UnboundedSender};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    judge::{Devices, judge},
    report::{self, Fault},
};
use crate::{error::describe, group::Group};

/// A fault, and since when it is known.
type Known = (Fault, Timestamp);

/// Faults of the devices of all nodes.
pub struct Faults {
    /// Namespace of the reports; empty: they are not looked at.
    namespace: String,
    /// What their names begin with; the name of the node follows.
    prefix: String,
    nodes: RwLock<BTreeMap<String, Vec<Known>>>,
    is_wanted: watch::Sender<bool>,
}

impl Faults {
    /// Of reports with such names. Nothing is watched until somebody wants to know.
    pub fn new(namespace: &str, prefix: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            prefix: prefix.to_owned(),
            nodes: RwLock::default(),
            is_wanted: watch::Sender::new(false),
        }
    }

    /// Says of each pod what follows from faults of its devices.
    pub fn note(
        &self,
        policy: &DeviceFaultsSpec,
        resource: Option<&str>,
        pods: &[Arc<Pod>],
        groups: &mut [Group],
        now: Timestamp,
    ) {
        self.is_wanted.send_if_modified(|is_wanted| !std::mem::replace(is_wanted, true));
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        for seen in groups.iter_mut().flat_map(|group| &mut group.slots).flatten() {
            let object = pods.iter().find(|pod| pod.uid().as_deref() == Some(seen.uid.as_str()));
            let faults = seen.node.as_ref().and_then(|node| nodes.get(node));
            let (Some(object), Some(faults)) = (object, faults) else { continue };
            let created = object.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |created| created.0);
            seen.fault = judge(faults, policy, &Devices::of(object, resource), created, now);
        }
    }

    /// Keeps the reports up to date until `stop`, and tells the nodes whose faults have changed.
    pub async fn watch(&self, client: Client, changed: UnboundedSender<String>, stop: CancellationToken) {
        if self.namespace.is_empty() {
            return;
        }
        let mut wanted = self.is_wanted.subscribe();
        tokio::select! {
            // the sender lives as long as this
            _ = wanted.wait_for(|&is_wanted| is_wanted) => {}
            () = stop.cancelled() => return,
        }
        let api: Api<ConfigMap> = Api::namespaced(client, &self.namespace);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut listed = BTreeSet::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = stop.cancelled() => return,
            };
            let news = match event {
                None => return,
                Some(Ok(event)) => self.apply(event, &mut listed, Timestamp::now()),
                Some(Err(error)) => {
                    warn!(
                        namespace = self.namespace,
                        error = describe(&error),
                        "watch of device faults broke; it is taken up again"
                    );
                    continue;
                }
            };
            for node in news {
                // nobody listens any more: the end is near
                let _ = changed.unbounded_send(node);
            }
        }
    }

    /// Takes note of an event; answers with the nodes whose faults have changed.
    fn apply(
        &self,
        event: watcher::Event<ConfigMap>,
        listed: &mut BTreeSet<String>,
        now: Timestamp,
    ) -> BTreeSet<String> {
        use watcher::Event;
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                let Some(node) = self.node(&object) else { return BTreeSet::new() };
                listed.insert(node.clone());
                return self.put(node, &object, now);
            }
            Event::Apply(object) => {
                let Some(node) = self.node(&object) else { return BTreeSet::new() };
                return self.put(node, &object, now);
            }
            Event::Delete(object) => {
                let gone = self.node(&object);
                return self.forget(|node| gone.as_deref() == Some(node));
            }
            Event::InitDone => return self.forget(|node| !listed.contains(node)),
        }
        BTreeSet::new()
    }

    /// The node that a report is about.
    fn node(&self, object: &ConfigMap) -> Option<String> {
        object.name_any().strip_prefix(&self.prefix).filter(|node| !node.is_empty()).map(str::to_owned)
    }

    fn put(&self, node: String, object: &ConfigMap, now: Timestamp) -> BTreeSet<String> {
        let told = report::read(&node, object.data.as_ref().unwrap_or(&BTreeMap::new()));
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let before = nodes.get(&node);
        let next: Vec<Known> = told.into_iter().map(|fault| known(before, fault, now)).collect();
        let words = |known: &[Known]| -> Vec<Fault> {
            known.iter().map(|(fault, _)| Fault { since: None, ..fault.clone() }).collect()
        };
        let is_news = words(before.map(Vec::as_slice).unwrap_or_default()) != words(&next);
        nodes.insert(node.clone(), next);
        is_news.then_some(node).into_iter().collect()
    }

    fn forget(&self, which: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<String> = nodes.keys().filter(|node| which(node)).cloned().collect();
        gone.into_iter().filter(|node| nodes.remove(node).is_some_and(|faults| !faults.is_empty())).collect()
    }
}

/// Since when a fault is known: the earliest of what it says now, what was known of it, and now. The plugin moves the time of a
/// fault that goes on, and its clock is another one.
fn known(before: Option<&Vec<Known>>, fault: Fault, now: Timestamp) -> Known {
    let same = |known: &&Known| {
        (&known.0.device, &known.0.code, &known.0.level) == (&fault.device, &fault.code, &fault.level)
    };
    let earlier = before.into_iter().flatten().find(same).map(|(_, since)| *since);
    let since = [Some(now), fault.since, earlier].into_iter().flatten().min().unwrap_or(now);
    (fault, since)
}

#[cfg(test)]
mod tests {
    use belay_crds::{FaultAction, labels};
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use super::*;
    use crate::group::WorkerPod;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn report(name: &str, faults: serde_json::Value) -> ConfigMap {
        let info =
            json!({ "DeviceInfo": { "DeviceList": { "huawei.com/Ascend910-Fault": faults.to_string() } } });
        serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "kube-system" },
            "data": { "DeviceInfoCfg": info.to_string() } }))
        .unwrap()
    }

    fn fault(time: i64) -> serde_json::Value {
        json!([{ "npu_name": "Ascend910-1", "fault_level": "SeparateNPU", "fault_code": "a",
            "fault_time_and_level_map": { "a": { "fault_time": time * 1000, "fault_level": "SeparateNPU" } } }])
    }

    fn since(faults: &Faults, node: &str) -> Vec<Timestamp> {
        faults.nodes.read().unwrap().get(node).into_iter().flatten().map(|(_, since)| *since).collect()
    }

    #[test]
    fn reports_are_news_when_faults_come_and_go() {
        let faults = Faults::new("kube-system", "mindx-dl-deviceinfo-");
        let mut listed = BTreeSet::new();
        let mut apply = |event, second| faults.apply(event, &mut listed, at(second));
        assert!(apply(Event::Init, 1).is_empty());
        assert!(
            apply(Event::InitApply(report("mindx-dl-deviceinfo-a", json!([]))), 1).is_empty(),
            "all is well"
        );
        assert_eq!(
            apply(Event::InitApply(report("mindx-dl-deviceinfo-b", fault(50))), 100),
            ["b".into()].into()
        );
        assert!(apply(Event::InitApply(report("another", fault(1))), 1).is_empty());
        assert!(apply(Event::InitDone, 1).is_empty());
        assert_eq!(since(&faults, "b"), [at(50)]);
        // the plugin writes it again every few minutes, and may move its time
        assert!(apply(Event::Apply(report("mindx-dl-deviceinfo-b", fault(200))), 210).is_empty());
        assert_eq!(since(&faults, "b"), [at(50)]);
        assert_eq!(apply(Event::Apply(report("mindx-dl-deviceinfo-b", json!([]))), 220), ["b".into()].into());
        assert_eq!(
            apply(Event::Apply(report("mindx-dl-deviceinfo-b", fault(200))), 230),
            ["b".into()].into()
        );
        assert_eq!(since(&faults, "b"), [at(200)], "it was gone in between");
        assert_eq!(
            apply(Event::Delete(report("mindx-dl-deviceinfo-b", json!([]))), 240),
            ["b".into()].into()
        );
        apply(Event::Apply(report("mindx-dl-deviceinfo-a", fault(300))), 250);
        apply(Event::Init, 260);
        assert_eq!(apply(Event::InitDone, 260), ["a".into()].into(), "what is not listed is gone");
    }

    #[test]
    fn report_is_about_the_pods_on_its_node_that_have_the_device() {
        let faults = Faults::new("kube-system", "p-");
        let pod = |name: &str, devices: &str| {
            let object = json!({ "metadata": { "name": name, "uid": name, "creationTimestamp": "1970-01-01T00:00:05Z",
                "annotations": { labels::REAL_DEVICES: devices } } });
            Arc::new(serde_json::from_value::<Pod>(object).unwrap())
        };
        let pods =
            [pod("mine", "Ascend910-0,Ascend910-1"), pod("near", "Ascend910-2"), pod("far", "Ascend910-1")];
        let slot = |name: &str, node: &str| {
            Some(WorkerPod { uid: name.into(), node: Some(node.into()), ..WorkerPod::default() })
        };
        let slots = vec![slot("mine", "a"), slot("near", "a"), slot("far", "b"), None];
        let mut groups = [Group { slots, ..Group::default() }];
        assert!(!*faults.is_wanted.borrow());
        faults.apply(Event::Apply(report("p-a", fault(50))), &mut BTreeSet::new(), at(60));
        faults.note(&DeviceFaultsSpec::default(), None, &pods, &mut groups, at(70));
        assert!(*faults.is_wanted.borrow(), "the first look starts the watch");
        let found: Vec<Option<FaultAction>> = groups[0]
            .slots
            .iter()
            .map(|slot| slot.as_ref()?.fault.as_ref().map(|fault| fault.action))
            .collect();
        assert_eq!(found, [Some(FaultAction::Replace), None, None, None]);
    }

    #[test]
    fn clock_of_a_node_that_is_ahead_does_not_count() {
        let faults = Faults::new("kube-system", "p-");
        faults.apply(Event::Apply(report("p-a", fault(1000))), &mut BTreeSet::new(), at(10));
        assert_eq!(since(&faults, "a"), [at(10)]);
    }
}

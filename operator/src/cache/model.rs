//! A model of a server whose watch tells late: who waits for his own writes never looks at what was before them.
use std::collections::{BTreeMap, VecDeque};

use belay_crds::labels;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{ResourceExt as _, runtime::watcher::Event};
use proptest::prelude::*;
use serde_json::json;

use super::{
    kind::{Key, Kind, Watched as _},
    writes::Expected,
};

#[derive(Clone, Debug)]
enum Step {
    /// We create it, or write to it.
    Write(u8),
    /// We delete it.
    Delete(u8),
    /// Somebody else creates it, or writes to it.
    OthersWrite(u8),
    /// Somebody else deletes it.
    OthersDelete(u8),
    /// The watch tells so many events.
    Tell(u8),
    /// The watch breaks: what it had yet to tell is lost, and everything is listed anew.
    List,
    /// It breaks once more while it lists.
    ListHalf,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0..4u8;
    let step = prop_oneof![
        4 => name.clone().prop_map(Step::Write),
        2 => name.clone().prop_map(Step::Delete),
        2 => name.clone().prop_map(Step::OthersWrite),
        1 => name.prop_map(Step::OthersDelete),
        5 => (1..4u8).prop_map(Step::Tell),
        1 => Just(Step::List),
        1 => Just(Step::ListHalf),
    ];
    proptest::collection::vec(step, 1..60)
}

#[derive(Default)]
struct Server {
    version: u64,
    objects: BTreeMap<u8, ConfigMap>,
    untold: VecDeque<Event<ConfigMap>>,
}

impl Server {
    fn write(&mut self, name: u8) -> u64 {
        self.version += 1;
        let uid = self.objects.get(&name).map_or(format!("uid-{}", self.version), |old| old.uid().unwrap());
        let object: ConfigMap = serde_json::from_value(json!({ "metadata": {
            "name": name.to_string(), "namespace": "coast", "uid": uid, "resourceVersion": self.version.to_string(),
            "labels": { labels::MODEL_DEPLOYMENT: "one" } } }))
        .unwrap();
        self.objects.insert(name, object.clone());
        self.untold.push_back(Event::Apply(object));
        self.version
    }

    fn delete(&mut self, name: u8) -> Option<String> {
        let mut object = self.objects.remove(&name)?;
        self.version += 1;
        object.metadata.resource_version = Some(self.version.to_string());
        let uid = object.uid();
        self.untold.push_back(Event::Delete(object));
        uid
    }
}

proptest! {
    #[test]
    fn own_writes_are_never_unseen(steps in steps()) {
        let (kind, mut server) = (Kind::<ConfigMap>::default(), Server::default());
        let (mut open, mut written, mut deleted): (Vec<Expected>, BTreeMap<u8, u64>, Vec<String>) = Default::default();
        kind.apply(Event::Init);
        kind.apply(Event::InitDone);
        for step in steps {
            match step {
                Step::Write(name) => {
                    let version = server.write(name);
                    open.push(Expected::Version { version, lists: kind.progress().seen().lists_begun });
                    written.insert(name, version);
                }
                Step::Delete(name) => if let Some(uid) = server.delete(name) {
                    open.push(Expected::gone(name.to_string(), uid.clone()));
                    deleted.push(uid);
                },
                Step::OthersWrite(name) => drop(server.write(name)),
                Step::OthersDelete(name) => drop(server.delete(name)),
                Step::Tell(count) => for _ in 0..count {
                    server.untold.pop_front().map(|event| kind.apply(event));
                },
                Step::List | Step::ListHalf => {
                    kind.apply(Event::Init);
                    server.untold.clear();
                    let half = matches!(step, Step::ListHalf);
                    let count = if half { server.objects.len() / 2 } else { usize::MAX };
                    for object in server.objects.values().take(count) {
                        kind.apply(Event::InitApply(object.clone()));
                    }
                    if half {
                        // taken up again at once: a watch tells nothing between a broken list and the next
                        kind.apply(Event::Init);
                        for object in server.objects.values() {
                            kind.apply(Event::InitApply(object.clone()));
                        }
                    }
                    kind.apply(Event::InitDone);
                }
            }
            if !open.iter().all(|expected| kind.shows("coast", expected)) {
                continue;
            }
            let key = Key { namespace: "coast".into(), name: "one".into() };
            let seen = kind.labelled(&key);
            for object in &seen {
                prop_assert!(!deleted.contains(&object.uid().unwrap()), "what we deleted is not looked at");
            }
            for (name, version) in &written {
                let shown = seen.iter().find(|object| object.name_any() == name.to_string());
                match shown {
                    Some(object) => prop_assert!(super::version(&**object) >= Some(*version), "{name} is old"),
                    // it is gone by now: its deletion came after our write, and was told
                    None => prop_assert!(
                        server.objects.get(name).is_none_or(|object| super::version(object) > Some(*version)),
                        "{name} is missing"
                    ),
                }
            }
        }
        // once everything is told, nothing is waited for
        while let Some(event) = server.untold.pop_front() {
            kind.apply(event);
        }
        prop_assert!(open.iter().all(|expected| kind.shows("coast", expected)));
        prop_assert_eq!(kind.labelled(&Key { namespace: "coast".into(), name: "one".into() }).len(), server.objects.len());
    }
}

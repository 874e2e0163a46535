//! The objects of one kind, by the deployment that owns them, as the watch of the kind last told.
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use belay_crds::labels;
use kube::{Resource, ResourceExt as _, runtime::watcher::Event};

use super::{
    progress::{self, Progress},
    writes::Expected,
};

/// A deployment: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// The deployment that an object is labelled with.
    fn of<K: Resource>(object: &K) -> Option<Self> {
        let name = object.labels().get(labels::MODEL_DEPLOYMENT)?.clone();
        Some(Self { namespace: object.namespace().unwrap_or_default(), name })
    }
}

/// Objects of one kind. Written by one watch, read by every reconcile.
pub struct Kind<K> {
    objects: RwLock<Objects<K>>,
    progress: Progress,
}

struct Objects<K> {
    present: HashMap<Key, Arc<K>>,
    /// Names of objects, by deployment.
    owned: HashMap<Key, BTreeSet<String>>,
    /// What a list under way has told so far.
    listing: HashMap<Key, Arc<K>>,
}

impl<K> Default for Kind<K> {
    fn default() -> Self {
        let objects = Objects { present: HashMap::new(), owned: HashMap::new(), listing: HashMap::new() };
        Self { objects: RwLock::new(objects), progress: Progress::default() }
    }
}

impl<K: Resource + Clone + PartialEq> Kind<K> {
    /// Takes note of an event. Answers with the deployments for which it is news: what only gives an object another version
    /// is none, and neither is the first list, after which everything is looked at anyway.
    pub fn apply(&self, event: Event<K>) -> BTreeSet<Key> {
        let mut news = BTreeSet::new();
        let mut version = match &event {
            Event::Apply(object) | Event::Delete(object) => progress::version(object),
            // a list counts once it is complete
            Event::Init | Event::InitApply(_) | Event::InitDone => None,
        };
        let (begins, ends) = (matches!(event, Event::Init), matches!(event, Event::InitDone));
        {
            let mut objects = self.write();
            match event {
                Event::Init => objects.listing = HashMap::new(),
                Event::InitApply(object) => {
                    objects.listing.insert(place(&object), Arc::new(object));
                }
                Event::InitDone => {
                    news = objects.replace();
                    version =
                        objects.present.values().filter_map(|object| progress::version(&**object)).max();
                }
                Event::Apply(object) => news.extend(objects.put(place(&object), Arc::new(object))),
                Event::Delete(object) => news.extend(objects.remove(&place(&object))),
            }
        }
        if ends && !self.progress.is_ready() {
            news.clear();
        }
        // told after the objects are there: who waits for it finds them
        self.progress.note(version, begins, ends);
        news
    }

    /// What a deployment owns. An earlier one of the same name may still have objects on their way out: they are left out.
    pub fn of(&self, key: &Key, uid: &str) -> Vec<Arc<K>> {
        let mut of = self.labelled(key);
        of.retain(|object| is_owned(&**object, uid));
        of
    }

    /// The deployments of the objects for which `test` holds.
    pub fn owners_of(&self, test: impl Fn(&K) -> bool) -> BTreeSet<Key> {
        self.read()
            .present
            .values()
            .filter(|object| test(object))
            .filter_map(|object| Key::of(&**object))
            .collect()
    }

    /// What this cache has still to learn of `listed`, the objects of a deployment as the API server has them now.
    pub fn behind(&self, key: &Key, listed: &[K]) -> Vec<Expected> {
        let newest = listed.iter().filter_map(progress::version).max();
        let newest = newest.filter(|&version| version > self.progress.seen().version);
        let present = |object: &Arc<K>| listed.iter().any(|other| other.uid() == object.uid());
        let gone = self.labelled(key).into_iter().filter(|object| !present(object));
        let gone = gone.map(|object| Expected::gone(object.name_any(), object.uid().unwrap_or_default()));
        newest
            .map(|version| Expected::Version { version, lists: self.progress.seen().lists_begun })
            .into_iter()
            .chain(gone)
            .collect()
    }

    pub(super) fn labelled(&self, key: &Key) -> Vec<Arc<K>> {
        let objects = self.read();
        let names = objects.owned.get(key).into_iter().flatten();
        let at = |name: &String| Key { namespace: key.namespace.clone(), name: name.clone() };
        names.filter_map(|name| objects.present.get(&at(name)).cloned()).collect()
    }
}

impl<K> Kind<K> {
    /// How far it has come.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    fn read(&self) -> RwLockReadGuard<'_, Objects<K>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Objects<K>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A kind, whichever it is: what waiting for one's own writes needs to know.
pub trait Watched: Send + Sync {
    /// Whether it shows the effect of a write to an object in `namespace`.
    fn shows(&self, namespace: &str, expected: &Expected) -> bool;
    /// How far it has come.
    fn progress(&self) -> &Progress;
}

impl<K: Resource + Clone + PartialEq + Send + Sync> Watched for Kind<K> {
    fn shows(&self, namespace: &str, expected: &Expected) -> bool {
        match expected {
            Expected::Version { version, lists } => self.progress.has(*version, *lists),
            Expected::Gone { name, uid } => {
                let at = Key { namespace: namespace.to_owned(), name: name.clone() };
                self.read().present.get(&at).is_none_or(|object| {
                    object.meta().deletion_timestamp.is_some() || object.meta().uid.as_ref() != Some(uid)
                })
            }
            Expected::Anything => false,
        }
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl<K: Resource + Clone + PartialEq> Objects<K> {
    fn put(&mut self, at: Key, object: Arc<K>) -> BTreeSet<Key> {
        let owner = Key::of(&*object);
        if let Some(owner) = &owner {
            self.owned.entry(owner.clone()).or_default().insert(at.name.clone());
        }
        let before = self.present.insert(at.clone(), Arc::clone(&object));
        match before {
            Some(before) if same(&*before, &*object) => BTreeSet::new(),
            Some(before) => {
                let former = Key::of(&*before);
                if former != owner {
                    self.disown(former.as_ref(), &at.name);
                }
                former.into_iter().chain(owner).collect()
            }
            None => owner.into_iter().collect(),
        }
    }

    fn remove(&mut self, at: &Key) -> Option<Key> {
        let owner = self.present.remove(at).and_then(|object| Key::of(&*object));
        self.disown(owner.as_ref(), &at.name);
        owner
    }

    fn disown(&mut self, owner: Option<&Key>, name: &str) {
        let Some(owner) = owner else { return };
        if let Some(names) = self.owned.get_mut(owner) {
            names.remove(name);
            if names.is_empty() {
                self.owned.remove(owner);
            }
        }
    }

    /// Puts what was listed in the place of what was known.
    fn replace(&mut self) -> BTreeSet<Key> {
        let listed = std::mem::take(&mut self.listing);
        let gone: Vec<Key> = self.present.keys().filter(|at| !listed.contains_key(at)).cloned().collect();
        let mut news: BTreeSet<Key> = gone.iter().filter_map(|at| self.remove(at)).collect();
        for (at, object) in listed {
            news.extend(self.put(at, object));
        }
        news
    }
}

fn place<K: Resource>(object: &K) -> Key {
    Key { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
}

/// Those of `listed` that the deployment with this UID owns.
pub fn owned<K: Resource>(listed: Vec<K>, uid: &str) -> Vec<Arc<K>> {
    listed.into_iter().filter(|object| is_owned(object, uid)).map(Arc::new).collect()
}

fn is_owned<K: Resource>(object: &K, uid: &str) -> bool {
    object.owner_references().iter().any(|owner| owner.uid == uid)
}

/// Whether two objects say the same, whatever their versions.
fn same<K: Resource + Clone + PartialEq>(one: &K, other: &K) -> bool {
    if one.resource_version() == other.resource_version() {
        return true;
    }
    let mut one = one.clone();
    one.meta_mut().resource_version.clone_from(&other.meta().resource_version);
    one == *other
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "coast".into(), name: name.into() }
    }

    fn object(name: &str, owner: &str, version: u64, text: &str) -> ConfigMap {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "coast", "uid": format!("uid-{name}"),
                "resourceVersion": version.to_string(), "labels": { labels::MODEL_DEPLOYMENT: owner },
                "ownerReferences": [{ "apiVersion": "x/v1", "kind": "X", "name": owner, "uid": format!("uid-{owner}") }] },
            "data": { "text": text } }))
        .unwrap()
    }

    fn listed(objects: Vec<ConfigMap>) -> Kind<ConfigMap> {
        let kind = Kind::default();
        list(&kind, objects);
        kind
    }

    fn list(kind: &Kind<ConfigMap>, objects: Vec<ConfigMap>) -> BTreeSet<Key> {
        kind.apply(Event::Init);
        for object in objects {
            assert!(kind.apply(Event::InitApply(object)).is_empty());
        }
        kind.apply(Event::InitDone)
    }

    fn names(kind: &Kind<ConfigMap>, owner: &str) -> Vec<String> {
        kind.of(&key(owner), &format!("uid-{owner}")).iter().map(|object| object.name_any()).collect()
    }

    #[test]
    fn first_list_is_no_news_and_a_later_one_tells_what_changed() {
        let kind = Kind::default();
        let all = || vec![object("a", "one", 1, "x"), object("b", "one", 2, "x"), object("c", "two", 3, "x")];
        assert!(list(&kind, all()).is_empty());
        assert!(kind.progress().is_ready());
        assert_eq!(names(&kind, "one"), ["a", "b"]);
        assert!(list(&kind, all()).is_empty(), "nothing changed");
        let after =
            vec![object("a", "one", 1, "x"), object("c", "two", 9, "y"), object("d", "three", 8, "x")];
        assert_eq!(list(&kind, after), [key("one"), key("two"), key("three")].into());
        assert_eq!(names(&kind, "one"), ["a"]);
    }

    #[test]
    fn list_that_breaks_off_changes_nothing() {
        let kind = listed(vec![object("a", "one", 1, "x")]);
        kind.apply(Event::Init);
        kind.apply(Event::InitApply(object("b", "one", 2, "x")));
        assert_eq!(names(&kind, "one"), ["a"]);
        assert!(list(&kind, vec![object("a", "one", 1, "x")]).is_empty());
        assert_eq!(names(&kind, "one"), ["a"], "what the broken list told is forgotten");
    }

    #[test]
    fn another_version_of_the_same_is_no_news() {
        let kind = listed(vec![object("a", "one", 1, "x")]);
        assert!(kind.apply(Event::Apply(object("a", "one", 5, "x"))).is_empty());
        assert_eq!(
            kind.of(&key("one"), "uid-one")[0].resource_version().as_deref(),
            Some("5"),
            "but it is kept"
        );
        assert_eq!(kind.apply(Event::Apply(object("a", "one", 6, "y"))), [key("one")].into());
        assert_eq!(kind.apply(Event::Delete(object("a", "one", 7, "y"))), [key("one")].into());
        assert!(names(&kind, "one").is_empty());
    }

    #[test]
    fn object_that_changes_hands_is_news_to_both() {
        let kind = listed(vec![object("a", "one", 1, "x")]);
        assert_eq!(kind.apply(Event::Apply(object("a", "two", 2, "x"))), [key("one"), key("two")].into());
        assert!(names(&kind, "one").is_empty());
        assert_eq!(names(&kind, "two"), ["a"]);
    }

    #[test]
    fn objects_of_an_earlier_deployment_of_the_name_are_left_out() {
        let kind = listed(vec![object("a", "one", 1, "x")]);
        assert!(kind.of(&key("one"), "uid-of-the-next").is_empty());
    }

    #[test]
    fn effect_of_a_write_shows_once_the_watch_has_told_it() {
        let kind = listed(vec![object("a", "one", 4, "x"), object("b", "one", 3, "x")]);
        let lists = kind.progress().seen().lists_begun;
        let written = Expected::Version { version: 7, lists };
        assert!(!kind.shows("coast", &written));
        kind.apply(Event::Apply(object("b", "one", 6, "y")));
        assert!(!kind.shows("coast", &written), "an earlier write");
        kind.apply(Event::Delete(object("b", "one", 8, "y")));
        assert!(kind.shows("coast", &written), "a later event: the write's own went before it");

        let gone = Expected::gone("a".into(), "uid-a".into());
        assert!(!kind.shows("coast", &gone));
        let mut terminating = object("a", "one", 9, "x");
        terminating.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        kind.apply(Event::Apply(terminating));
        assert!(kind.shows("coast", &gone), "it is on its way out");
        let mut next = object("a", "one", 10, "x");
        next.metadata.uid = Some("another".into());
        kind.apply(Event::Apply(next));
        assert!(kind.shows("coast", &gone), "another life");
        assert!(!kind.shows("coast", &Expected::Anything), "only a question to the API server tells");
    }

    #[test]
    fn list_that_began_after_a_write_shows_it() {
        let kind = listed(vec![object("a", "one", 4, "x")]);
        let written = Expected::Version { version: 7, lists: kind.progress().seen().lists_begun };
        // created, and deleted again by somebody else before the watch was taken up again
        list(&kind, vec![object("a", "one", 4, "x")]);
        assert!(kind.shows("coast", &written));
    }

    #[test]
    fn what_a_list_of_the_api_server_has_more_is_waited_for() {
        let kind = listed(vec![object("a", "one", 4, "x"), object("b", "one", 3, "x")]);
        assert!(
            kind.behind(&key("one"), &[object("a", "one", 4, "x"), object("b", "one", 3, "x")]).is_empty()
        );
        let behind = kind.behind(&key("one"), &[object("a", "one", 9, "y")]);
        assert_eq!(behind.len(), 2);
        assert!(behind.iter().all(|expected| !kind.shows("coast", expected)));
        kind.apply(Event::Delete(object("b", "one", 8, "x")));
        kind.apply(Event::Apply(object("a", "one", 9, "y")));
        assert!(behind.iter().all(|expected| kind.shows("coast", expected)));
    }
}

//! What deployments own, kept by one watch for each kind, so that a look at a deployment asks the API server nothing.
//!
//! A watch tells late. That is no harm where others write: any look at the API server is late as well. But who decides before
//! his own last writes are told decides on what is no more: a group that was just drained counts as ready, one that was just
//! made is missing. So what is written is noted ([`Tracked`]), and a look is put off until the watches have told it. If that takes
//! too long, or if a call got no answer, the API server is asked.
mod kind;
#[cfg(test)]
mod model;
mod progress;
mod strip;
mod tracked;
mod writes;

use std::{collections::BTreeSet, fmt::Debug, time::Duration};

use belay_crds::labels;
use futures::{StreamExt as _, channel::mpsc::UnboundedSender};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::ControllerRevision,
        core::v1::{ConfigMap, Pod, Service},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource,
    api::ListParams,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::{debug, warn};

pub use self::{
    kind::Key,
    progress::{Progress, version},
    tracked::Tracked,
};
use self::{
    kind::{Kind, Watched},
    writes::{Expected, KindName, Writes},
};
use crate::{error::describe, reconcile::observe::Objects};

/// How long a look waits for the watches. Most have told by then; those who wait longer make room for others.
const BRIEFLY: Duration = Duration::from_millis(20);

/// How long a look is put off before it asks the API server.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the watches have told what this process wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// They have.
    All,
    /// Not yet: it is looked at a little later.
    Later,
    /// They take too long, or cannot: the API server is asked.
    Ask,
}

/// Seconds that one call of a watch goes on. A connection that is dead without a sign is noticed five seconds later at most.
const WATCH_SECONDS: u32 = 60;

/// A kind that is watched.
pub trait Cached:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + PartialEq
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Which.
    const NAME: KindName;
    /// Its part of the cache.
    fn part(cache: &Cache) -> &Kind<Self>;
    /// Takes off what nobody looks at.
    fn strip(&mut self);
}

macro_rules! cached {
    ($($type:ty: $name:ident, $part:ident, $strip:path;)*) => {$(
        impl Cached for $type {
            const NAME: KindName = KindName::$name;

            fn part(cache: &Cache) -> &Kind<Self> {
                &cache.$part
            }

            fn strip(&mut self) {
                $strip(self);
            }
        }
    )*};
}

cached! {
    Pod: Pod, pods, strip::pod;
    Service: Service, services, strip::metadata;
    ConfigMap: ConfigMap, config_maps, strip::metadata;
    ControllerRevision: Revision, revisions, strip::metadata;
    PodDisruptionBudget: Budget, budgets, strip::budget;
}

/// What all deployments own.
#[derive(Default)]
pub struct Cache {
    pods: Kind<Pod>,
    services: Kind<Service>,
    config_maps: Kind<ConfigMap>,
    revisions: Kind<ControllerRevision>,
    budgets: Kind<PodDisruptionBudget>,
    /// How far the watch of the deployments themselves has come.
    deployments: Progress,
    writes: Writes,
}

impl Cache {
    /// Watches everything in `namespace` (all, if `None`), and tells which deployments to look at. Goes on until it is dropped.
    pub async fn watch(&self, client: &Client, namespace: Option<&str>, news: UnboundedSender<Key>) {
        tokio::join!(
            Box::pin(self.watch_kind::<Pod>(client, namespace, &news)),
            Box::pin(self.watch_kind::<Service>(client, namespace, &news)),
            Box::pin(self.watch_kind::<ConfigMap>(client, namespace, &news)),
            Box::pin(self.watch_kind::<ControllerRevision>(client, namespace, &news)),
            Box::pin(self.watch_kind::<PodDisruptionBudget>(client, namespace, &news)),
        );
    }

    /// Waits until each watch has listed everything.
    pub async fn wait_until_ready(&self) {
        for part in self.parts() {
            // the sender lives as long as this cache
            let _ = part.progress().subscribe().wait_for(|seen| seen.lists_done > 0).await;
        }
    }

    /// Everything that a deployment owns. Who has not been told all of what this process wrote ([`Self::told`]) asks the API server.
    ///
    /// # Errors
    /// When the API server had to be asked and did not answer.
    pub async fn look(&self, client: &Client, key: &Key, uid: &str) -> Result<Objects, kube::Error> {
        if !self.writes.open(uid).is_empty() {
            debug!(deployment = key.name, "the watches are behind: the API server is asked");
            return self.ask(client, key, uid).await;
        }
        Ok(Objects {
            pods: self.pods.of(key, uid),
            services: self.services.of(key, uid),
            config_maps: self.config_maps.of(key, uid),
            revisions: self.revisions.of(key, uid),
            budgets: self.budgets.of(key, uid),
        })
    }

    /// Writes of the deployment with this UID, noted until the watches have told them.
    pub fn tracked<'a, K: Cached>(
        &'a self,
        client: &Client,
        namespace: &str,
        uid: &'a str,
    ) -> Tracked<'a, K> {
        Tracked::new(Api::namespaced(client.clone(), namespace), self, uid)
    }

    /// Deployments with pods on a node.
    pub fn on_node(&self, node: &str) -> BTreeSet<Key> {
        self.pods.owners_of(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node))
    }

    /// How far the watch of the deployments themselves has come: whoever watches them says so here.
    pub fn deployments(&self) -> &Progress {
        &self.deployments
    }

    /// A status was written: the deployment has this version now.
    pub fn wrote_status(&self, uid: &str, version: Option<u64>) {
        self.writes.set_status(uid, version);
    }

    /// Whether the watches have told what this process wrote for a deployment, its status included.
    pub async fn told(&self, key: &Key, uid: &str) -> Told {
        let (open, status) = (self.writes.open(uid), self.writes.status(uid));
        if open.iter().any(|(_, expected)| *expected == Expected::Anything) {
            return Told::Ask;
        }
        let all_told = async {
            for (name, expected) in &open {
                let part = self.part(*name);
                let mut steps = part.progress().subscribe();
                while !part.shows(&key.namespace, expected) {
                    if steps.changed().await.is_err() {
                        return;
                    }
                }
            }
            if let Some(version) = status {
                // the sender lives as long as this cache
                let _ = self.deployments.subscribe().wait_for(|seen| seen.version >= version).await;
            }
        };
        let now = Instant::now();
        if tokio::time::timeout(BRIEFLY, all_told).await.is_ok() {
            self.writes.set(uid, vec![]);
            self.writes.waits_no_more(uid);
            return Told::All;
        }
        if now - self.writes.waits_since(uid, now) < PATIENCE {
            return Told::Later;
        }
        // and is put off as long before it is asked once more
        self.writes.waits_no_more(uid);
        Told::Ask
    }

    /// A deployment is gone.
    pub fn forget(&self, uid: &str) {
        self.writes.forget(uid);
    }

    fn kind<K: Cached>(&self) -> &Kind<K> {
        K::part(self)
    }

    fn part(&self, name: KindName) -> &dyn Watched {
        match name {
            KindName::Pod => &self.pods,
            KindName::Service => &self.services,
            KindName::ConfigMap => &self.config_maps,
            KindName::Revision => &self.revisions,
            KindName::Budget => &self.budgets,
        }
    }

    fn parts(&self) -> [&dyn Watched; 5] {
        [&self.pods, &self.services, &self.config_maps, &self.revisions, &self.budgets]
    }

    async fn watch_kind<K: Cached>(
        &self,
        client: &Client,
        namespace: Option<&str>,
        news: &UnboundedSender<Key>,
    ) {
        let api: Api<K> = match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let ours = format!("{}={}", labels::MANAGED_BY, labels::OPERATOR);
        let config = watcher::Config::default().labels(&ours).timeout(WATCH_SECONDS);
        let mut events = std::pin::pin!(watcher(api, config).default_backoff().modify(K::strip));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    for key in self.kind::<K>().apply(event) {
                        // nobody listens any more: the end is near
                        let _ = news.unbounded_send(key);
                    }
                }
                Err(error) => warn!(
                    kind = %K::kind(&()),
                    error = describe(&error),
                    "watch broke; it is taken up again"
                ),
            }
        }
    }

    /// Asks the API server. What it tells and the watches do not yet is waited for next time.
    async fn ask(&self, client: &Client, key: &Key, uid: &str) -> Result<Objects, kube::Error> {
        let (pods, services, config_maps, revisions, budgets) = tokio::try_join!(
            list::<Pod>(client, key),
            list::<Service>(client, key),
            list::<ConfigMap>(client, key),
            list::<ControllerRevision>(client, key),
            list::<PodDisruptionBudget>(client, key),
        )?;
        let open = [
            self.behind(key, &pods),
            self.behind(key, &services),
            self.behind(key, &config_maps),
            self.behind(key, &revisions),
            self.behind(key, &budgets),
        ];
        self.writes.set(uid, open.concat());
        Ok(Objects {
            pods: kind::owned(pods, uid),
            services: kind::owned(services, uid),
            config_maps: kind::owned(config_maps, uid),
            revisions: kind::owned(revisions, uid),
            budgets: kind::owned(budgets, uid),
        })
    }
}

impl Cache {
    /// What the watch of a kind has yet to tell of what the API server has listed.
    fn behind<K: Cached>(&self, key: &Key, listed: &[K]) -> Vec<(KindName, Expected)> {
        self.kind::<K>().behind(key, listed).into_iter().map(|expected| (K::NAME, expected)).collect()
    }
}

async fn list<K: Cached>(client: &Client, key: &Key) -> Result<Vec<K>, kube::Error> {
    let params = ListParams::default().labels(&labels::selector(&key.name));
    let mut list = Api::<K>::namespaced(client.clone(), &key.namespace).list(&params).await?;
    list.items.iter_mut().for_each(K::strip);
    Ok(list.items)
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use super::*;

    const UID: &str = "uid";

    fn key() -> Key {
        Key { namespace: "coast".into(), name: "one".into() }
    }

    /// As often as the controller comes back, for some time.
    async fn asked_for(cache: &Cache, time: Duration) -> Vec<Told> {
        let (begin, mut answers) = (Instant::now(), vec![]);
        while begin.elapsed() < time {
            answers.push(cache.told(&key(), UID).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        answers
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_is_put_off_until_the_watches_have_told_and_asks_now_and_then() {
        let cache = Cache::default();
        assert_eq!(cache.told(&key(), UID).await, Told::All, "nothing was written");
        cache.writes.add(UID, KindName::ConfigMap, Expected::Version { version: 5, lists: 0 });
        let answers = asked_for(&cache, Duration::from_millis(1900)).await;
        assert!(answers.iter().all(|answer| *answer == Told::Later), "{answers:?}");
        let answers = asked_for(&cache, PATIENCE).await;
        assert_eq!(answers.iter().filter(|answer| **answer == Told::Ask).count(), 1, "{answers:?}");
        let object = json!({ "metadata": { "name": "a", "namespace": "coast", "resourceVersion": "5" } });
        cache.config_maps.apply(Event::Apply(serde_json::from_value(object).unwrap()));
        assert_eq!(cache.told(&key(), UID).await, Told::All);
        assert!(cache.writes.open(UID).is_empty(), "a look asks nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_know_what_became_of_a_call_asks_at_once() {
        let cache = Cache::default();
        cache.writes.add(UID, KindName::Pod, Expected::Anything);
        assert_eq!(cache.told(&key(), UID).await, Told::Ask);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_both_asks_as_soon_as_who_waits_for_one() {
        let cache = Cache::default();
        cache.writes.add(UID, KindName::ConfigMap, Expected::Version { version: 5, lists: 0 });
        cache.wrote_status(UID, Some(7));
        let answers = asked_for(&cache, PATIENCE + Duration::from_millis(200)).await;
        assert_eq!(answers.iter().filter(|answer| **answer == Told::Ask).count(), 1, "{answers:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_is_made_from_the_last_one() {
        let cache = Cache::default();
        assert_eq!(cache.told(&key(), UID).await, Told::All);
        cache.wrote_status(UID, Some(7));
        cache.deployments.note(Some(6), false, false);
        assert_eq!(cache.told(&key(), UID).await, Told::Later);
        tokio::time::sleep(PATIENCE).await;
        assert_eq!(cache.told(&key(), UID).await, Told::Ask);
        assert_eq!(cache.told(&key(), UID).await, Told::Later);
        cache.deployments.note(Some(7), false, false);
        assert_eq!(cache.told(&key(), UID).await, Told::All);
    }
}

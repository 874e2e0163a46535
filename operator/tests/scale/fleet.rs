//! The deployments: made, watched, changed.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use belay_crds::ModelDeployment;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;

use crate::settled::settled;

/// Namespaces that they are spread over.
const NAMESPACES: usize = 20;

/// Calls under way at the same time.
const AT_ONCE: usize = 8;

/// All deployments.
pub struct Fleet {
    client: Client,
    size: usize,
    workers: usize,
    /// When each was taken by the API server, and when all its pods were there.
    born: Arc<Mutex<HashMap<String, Birth>>>,
}

#[derive(Default)]
struct Birth {
    applied: Option<Instant>,
    pods: usize,
    complete: Option<Instant>,
}

impl Fleet {
    /// Nothing yet; pods are counted from now on.
    pub async fn new(client: Client, size: usize, workers: usize) -> Self {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        for n in 0..NAMESPACES {
            let object = serde_json::from_value(json!({ "metadata": { "name": namespace(n) } })).unwrap();
            namespaces.create(&PostParams::default(), &object).await.unwrap();
        }
        let this = Self { client, size, workers, born: Arc::default() };
        let (client, born) = (this.client.clone(), Arc::clone(&this.born));
        tokio::spawn(async move {
            let config = watcher::Config::default().labels("app.kubernetes.io/name=belay-worker");
            let mut seen = std::collections::HashSet::new();
            let mut events = std::pin::pin!(watcher(Api::<Pod>::all(client), config).default_backoff());
            while let Some(event) = events.next().await {
                let (Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)), now) =
                    (event, Instant::now())
                else {
                    continue;
                };
                if seen.insert(pod.uid().unwrap()) {
                    let name = pod.labels()["serving.belay.dev/model-deployment"].clone();
                    let mut born = born.lock().unwrap();
                    let birth = born.entry(name).or_default();
                    birth.pods += 1;
                    if birth.pods == workers {
                        birth.complete = Some(now);
                    }
                }
            }
        });
        this
    }

    /// Applies all of them.
    pub async fn apply(&self) {
        let apply = |n: usize| async move {
            let object = json!({ "apiVersion": "serving.belay.dev/v1alpha1", "kind": "ModelDeployment",
                "metadata": { "name": name(n) },
                "spec": { "model": { "source": { "hostPath": { "path": "/models/nano" } } },
                    "group": { "workers": self.workers, "device": "CPU", "devicesPerWorker": 1 } } });
            let object: ModelDeployment = serde_json::from_value(object).unwrap();
            self.api(n).create(&PostParams::default(), &object).await.unwrap();
            self.born.lock().unwrap().entry(name(n)).or_default().applied = Some(Instant::now());
        };
        stream::iter(0..self.size).map(apply).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    }

    /// Seconds from the apply of each deployment to the last of its pods, sorted.
    pub fn apply_to_pods(&self) -> Vec<f64> {
        let born = self.born.lock().unwrap();
        let seconds = |birth: &Birth| {
            let (applied, complete) = (birth.applied?, birth.complete?);
            Some(complete.saturating_duration_since(applied).as_secs_f64())
        };
        let mut all: Vec<f64> = born.values().filter_map(seconds).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    /// How many are as they should be, with nothing left to do.
    pub async fn settled(&self) -> usize {
        let mut params = ListParams::default().limit(250).match_any();
        let api: Api<ModelDeployment> = Api::all(self.client.clone());
        let mut count = 0;
        loop {
            let list = api.list(&params).await.unwrap();
            let done = |ship: &&ModelDeployment| {
                ship.status.as_ref().is_some_and(|status| {
                    status.observed_generation == ship.metadata.generation && settled(status)
                })
            };
            count += list.iter().filter(done).count();
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = ListParams::default().limit(250).continue_token(&token),
                None => return count,
            }
        }
    }

    /// Gives the first of them another image: each rolls to a new revision.
    pub async fn roll(&self, count: usize, image: &str) {
        let patch = Patch::Merge(json!({ "spec": { "group": { "template": { "image": image } } } }));
        let roll = |n: usize| {
            let patch = &patch;
            async move { drop(self.api(n).patch(&name(n), &PatchParams::default(), patch).await.unwrap()) }
        };
        stream::iter(0..count).map(roll).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    }

    /// Deletes one pod each of the last of them.
    pub async fn lose_pods(&self, count: usize) {
        let lose = |n: usize| async move {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace(n));
            let selector = format!("serving.belay.dev/model-deployment={}", name(n));
            let list = pods.list(&ListParams::default().labels(&selector)).await.unwrap();
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            pods.delete(&list.items[n % list.items.len()].name_any(), &now).await.unwrap();
        };
        let last = self.size - count..self.size;
        stream::iter(last).map(lose).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    }

    fn api(&self, n: usize) -> Api<ModelDeployment> {
        Api::namespaced(self.client.clone(), &namespace(n))
    }
}

fn name(n: usize) -> String {
    format!("ship-{n}")
}

fn namespace(n: usize) -> String {
    format!("port-{}", n % NAMESPACES)
}

/// Waits for something that is looked at a few times a second.
pub async fn until(what: &str, seconds: u64, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !holds().await {
        assert!(Instant::now() < end, "not reached in {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

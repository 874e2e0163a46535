//! Asks every worker of a deployment every 50 ms what copies of the experts live, through changes of its pods.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{self, MissedTickBehavior},
};

use crate::{
    admin::Admin,
    kubectl::Kubectl,
    timeline::{Sample, Seen, Timeline, View},
    watch::{Change, Watch},
};

/// Between two questions to one worker.
const INTERVAL: Duration = Duration::from_millis(50);
/// A worker that takes longer is silent.
const PATIENCE: Duration = Duration::from_secs(1);
/// Before another tunnel is tried where none opened.
const PAUSE: Duration = Duration::from_millis(500);

/// Asks on until stopped.
#[derive(Debug)]
pub struct Sampler {
    began: Instant,
    deployment: String,
    samples: Arc<Mutex<Vec<Sample>>>,
    director: JoinHandle<()>,
    /// Tells the director of pods; dropped with the sampler.
    _pods: Watch,
}

impl Sampler {
    /// Begins. `began` is zero of the samples' time, so that other records can share it.
    #[must_use]
    pub fn start(kubectl: &Kubectl, deployment: &str, began: Instant) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (tell, told) = mpsc::unbounded_channel();
        let selector = format!("serving.belay.dev/model-deployment={deployment}");
        let pods = Watch::start(kubectl, &["pods", "--selector", &selector], move |change| {
            // nobody listens only while the sampler is being dropped
            let _ = tell.send(change);
        });
        let log = Log { began, samples: Arc::clone(&samples) };
        let director = tokio::spawn(direct(kubectl.clone(), log, told));
        Self { began, deployment: deployment.to_owned(), samples, director, _pods: pods }
    }

    /// Time since the beginning.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The samples so far.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        Timeline::new(self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Waits until the workers' answers show something.
    ///
    /// # Errors
    /// After `limit`, with the last answer of each pod.
    pub async fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut shows: impl FnMut(&Timeline) -> Option<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            let timeline = self.timeline();
            if let Some(found) = shows(&timeline) {
                return Ok(found);
            }
            if start.elapsed() > limit {
                let last = timeline.last().join("\n  ");
                bail!("{}: {what}: not within {} s; last:\n  {last}", self.deployment, limit.as_secs());
            }
            time::sleep(2 * INTERVAL).await;
        }
    }

    /// Waits until all `workers` are ready on one epoch with `copies` live copies of every expert; since when, counted
    /// from `since`.
    ///
    /// # Errors
    /// After `limit`.
    pub async fn until_restored(
        &self,
        since: Duration,
        workers: u32,
        copies: u32,
        limit: Duration,
    ) -> Result<Duration> {
        let what = format!("{workers} workers with {copies} copies of every expert");
        self.until(&what, limit, |timeline| timeline.restored(since, workers, copies)).await
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.director.abort();
    }
}

/// Where samples go.
#[derive(Clone, Debug)]
struct Log {
    began: Instant,
    samples: Arc<Mutex<Vec<Sample>>>,
}

impl Log {
    fn push(&self, pod: &Pod, seen: Seen) {
        let sample = Sample { at: self.began.elapsed(), uid: pod.uid.clone(), worker: pod.worker, seen };
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
    }
}

#[derive(Clone, Debug)]
struct Pod {
    name: String,
    uid: String,
    worker: u32,
    running: bool,
}

impl Pod {
    fn of(object: &serde_json::Value) -> Option<Self> {
        let metadata = &object["metadata"];
        Some(Self {
            name: metadata["name"].as_str()?.to_owned(),
            uid: metadata["uid"].as_str()?.to_owned(),
            worker: metadata["labels"]["serving.belay.dev/worker"].as_str()?.parse().ok()?,
            running: object["status"]["phase"] == "Running",
        })
    }
}

/// Has a task for each pod that runs.
async fn direct(kubectl: Kubectl, log: Log, mut told: mpsc::UnboundedReceiver<Change>) {
    let mut tasks: HashMap<String, AbortOnDrop> = HashMap::new();
    while let Some(change) = told.recv().await {
        let Some(pod) = Pod::of(&change.object) else { continue };
        if change.gone {
            if tasks.remove(&pod.uid).is_some() {
                log.push(&pod, Seen::Gone);
            }
        } else if pod.running && !tasks.contains_key(&pod.uid) {
            let task = tokio::spawn(ask_on(kubectl.clone(), log.clone(), pod.clone()));
            tasks.insert(pod.uid, AbortOnDrop(task));
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn ask_on(kubectl: Kubectl, log: Log, pod: Pod) {
    loop {
        match Admin::open(&kubectl, &pod.name).await {
            Ok(admin) => ask_while_open(admin, &log, &pod).await,
            Err(_) => log.push(&pod, Seen::Silent),
        }
        time::sleep(PAUSE).await;
    }
}

/// Until the tunnel closes.
async fn ask_while_open(mut admin: Admin, log: &Log, pod: &Pod) {
    let mut tick = time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match time::timeout(PATIENCE, admin.status()).await {
            Ok(Ok(status)) if status.uid == pod.uid => log.push(pod, Seen::View(View::of(&status))),
            _ => {
                log.push(pod, Seen::Silent);
                if !admin.is_open() {
                    return;
                }
            }
        }
    }
}

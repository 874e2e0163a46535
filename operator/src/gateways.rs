//! What gateways measure: the leading operator asks all of them once a second, and keeps the answers.
mod ledger;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use belay_proto::gateway::{ReadRequest, ReadResponse, measurements_client::MeasurementsClient};
use futures::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tracing::debug;

pub use self::ledger::{Key, Ledger, Measure, Totals};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// How long one gateway may take to answer.
const CALL_LIMIT: Duration = Duration::from_millis(800);

/// Largest answer: a thousand models with a few revisions each.
const LARGEST: usize = 64 << 20;

/// See the module.
#[derive(Debug)]
pub struct Gateways {
    /// `host:port`, of which each address is a gateway; `None`: there are none to ask.
    address: Option<String>,
    ledger: Mutex<Ledger>,
    channels: Mutex<BTreeMap<String, Channel>>,
    silent: AtomicUsize,
    rounds: watch::Sender<u64>,
}

impl Gateways {
    /// Gateways behind every address of a name.
    pub fn new(address: Option<String>) -> Self {
        Self {
            address,
            ledger: Mutex::default(),
            channels: Mutex::default(),
            silent: AtomicUsize::new(0),
            rounds: watch::Sender::new(0),
        }
    }

    /// Whether there are gateways to ask at all.
    pub fn are_known(&self) -> bool {
        self.address.is_some()
    }

    /// What is known of a deployment; `None` if no gateway has told anything of it lately.
    pub fn measure(&self, namespace: &str, name: &str) -> Option<Measure> {
        lock(&self.ledger).measure(&(namespace.to_owned(), name.to_owned()), Instant::now())
    }

    /// Deployments with requests that wait for a worker.
    pub fn held(&self) -> Vec<Key> {
        lock(&self.ledger).held()
    }

    /// Gateways that did not answer when they were last asked.
    pub fn silent(&self) -> usize {
        self.silent.load(Ordering::Relaxed)
    }

    /// Changes after each round of questions.
    pub fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds.subscribe()
    }

    /// Forgets a deployment that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        lock(&self.ledger).forget(&(namespace.to_owned(), name.to_owned()));
    }

    /// Takes an answer over, as if a gateway had given it now.
    pub fn take(&self, answer: &ReadResponse) {
        lock(&self.ledger).take(answer, Instant::now());
    }

    /// Asks until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(address) = &self.address else { return };
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.round(address).await,
                () = stop.cancelled() => return,
            }
        }
    }

    async fn round(&self, address: &str) {
        let found = match tokio::net::lookup_host(address).await {
            Ok(found) => found.map(|address| address.to_string()).collect(),
            Err(error) => {
                debug!(address, %error, "no gateway found");
                Vec::new()
            }
        };
        lock(&self.channels).retain(|known, _| found.contains(known));
        let answers = join_all(found.iter().map(|address| self.ask(address))).await;
        self.silent.store(answers.iter().filter(|answer| answer.is_none()).count(), Ordering::Relaxed);
        for answer in answers.iter().flatten() {
            self.take(answer);
        }
        self.rounds.send_modify(|round| *round += 1);
    }

    async fn ask(&self, address: &str) -> Option<ReadResponse> {
        let channel = lock(&self.channels).get(address).cloned();
        let channel = match channel {
            Some(channel) => channel,
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{address}"))
                    .inspect_err(|error| debug!(address, %error, "not an address"))
                    .ok()?;
                let channel = endpoint.timeout(CALL_LIMIT).connect_timeout(CALL_LIMIT).connect_lazy();
                lock(&self.channels).insert(address.to_owned(), channel.clone());
                channel
            }
        };
        let mut client = MeasurementsClient::new(channel).max_decoding_message_size(LARGEST);
        match client.read(ReadRequest {}).await {
            Ok(answer) => Some(answer.into_inner()),
            Err(error) => {
                debug!(address, %error, "a gateway does not answer");
                None
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

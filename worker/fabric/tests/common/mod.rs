//! Toy experts (a pure function of layer, row and expert) and groups of them on loopback.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod board;
pub mod proxy;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use belay_backend::{ExpertCompute, Fabric, FabricError, Route};
use belay_fabric::{
    Adopter, Group, Health, Identity, InProcess, Options, Placement, RowFormat, Table, Timeouts, WorkerEntry,
};

pub const HIDDEN: usize = 24;
pub const LAYERS: usize = 3;
pub const EXPERTS: usize = 10;

type Pairs = BTreeSet<(u32, u32)>;

/// Experts of one rank; each row's bits depend on layer, row, expert and weight only.
pub struct Toy {
    pub resident: Mutex<Pairs>,
    /// While set, computing waits.
    pub held: Arc<AtomicBool>,
    pub panics_at: Option<u32>,
    /// Routes computed.
    pub computed: AtomicUsize,
}

impl Toy {
    pub fn new(resident: impl IntoIterator<Item = (u32, u32)>) -> Self {
        Self {
            resident: Mutex::new(resident.into_iter().collect()),
            held: Arc::default(),
            panics_at: None,
            computed: AtomicUsize::new(0),
        }
    }
}

impl ExpertCompute for Toy {
    fn compute(&self, layer: u32, x: &[f32], routes: &[Route], y: &mut [f32]) -> Result<(), FabricError> {
        while self.held.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(2));
        }
        for (route, out) in routes.iter().zip(y.chunks_exact_mut(HIDDEN)) {
            if !self.holds(layer, route.expert) {
                return Err(FabricError::NotResident { layer, expert: route.expert });
            }
            assert!(self.panics_at != Some(route.expert), "toy panic");
            let row = &x[route.row as usize * HIDDEN..][..HIDDEN];
            let mixed: f32 = row.iter().enumerate().map(|(c, v)| v * ((c as f32) * 0.37 + 1.0).sin()).sum();
            for (c, value) in out.iter_mut().enumerate() {
                let seed = (layer * 31 + route.expert * 7 + c as u32) as f32;
                *value = route.weight * (row[c] * (seed * 0.11).cos() + mixed * 0.013);
            }
        }
        self.computed.fetch_add(routes.len(), Ordering::Relaxed);
        Ok(())
    }

    fn holds(&self, layer: u32, expert: u32) -> bool {
        self.resident.lock().unwrap().contains(&(layer, expert))
    }
}

/// The ranks of one worker, which also adopt.
pub struct Toys {
    pub ranks: Vec<Arc<Toy>>,
    /// Copies that fit, all together.
    pub limit: AtomicUsize,
    /// While set, loading waits.
    pub slow_disk: AtomicBool,
    pub held: Arc<AtomicBool>,
    /// (layer, expert) pairs that were loaded and dropped again, in order.
    pub released: Mutex<Vec<(u32, u32)>>,
}

impl Toys {
    pub fn new(ranks: u32) -> Self {
        let held = Arc::new(AtomicBool::new(false));
        let toy = |_| Arc::new(Toy { held: Arc::clone(&held), ..Toy::new([]) });
        Self {
            ranks: (0..ranks).map(toy).collect(),
            limit: AtomicUsize::new(usize::MAX),
            slow_disk: AtomicBool::new(false),
            held: Arc::clone(&held),
            released: Mutex::default(),
        }
    }

    pub fn compute(&self) -> Vec<Arc<dyn ExpertCompute>> {
        self.ranks.iter().map(|toy| Arc::clone(toy) as Arc<dyn ExpertCompute>).collect()
    }

    /// Loads what `table` gives to the ranks of `worker`.
    pub fn load(&self, table: &Table, worker: u32) {
        for (local, toy) in (0u32..).zip(&self.ranks) {
            let rank = worker * table.ranks_per_worker() + local;
            toy.resident.lock().unwrap().extend(table.of_rank(rank));
        }
    }

    /// Drops what neither `table` gives to the ranks of `worker` nor `adopted` names.
    pub fn retire(&self, table: &Table, worker: u32, adopted: &[(u32, u32)]) {
        for (local, toy) in (0u32..).zip(&self.ranks) {
            let kept: Pairs = table.of_rank(worker * table.ranks_per_worker() + local).collect();
            toy.resident.lock().unwrap().retain(|pair| kept.contains(pair) || adopted.contains(pair));
        }
    }

    pub fn copies(&self) -> usize {
        self.ranks.iter().map(|toy| toy.resident.lock().unwrap().len()).sum()
    }

    pub fn computed(&self) -> usize {
        self.ranks.iter().map(|toy| toy.computed.load(Ordering::Relaxed)).sum()
    }
}

impl Adopter for Toys {
    fn adopt(&self, rank: u32, experts: &[(u32, u32)]) -> Result<(), String> {
        while self.slow_disk.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.copies() + experts.len() > self.limit.load(Ordering::Relaxed) {
            return Err("no room for more".into());
        }
        self.ranks[rank as usize].resident.lock().unwrap().extend(experts);
        Ok(())
    }

    fn release(&self, experts: &[(u32, u32)]) {
        for toy in &self.ranks {
            toy.resident.lock().unwrap().retain(|pair| !experts.contains(pair));
        }
        self.released.lock().unwrap().extend(experts);
    }
}

/// `[layer][expert]` = one rank each, round robin, so that every worker needs every other one.
pub fn one_copy(ranks: u32) -> Vec<Vec<Vec<u32>>> {
    let layer = |layer: usize| (0..EXPERTS).map(|expert| vec![(expert + layer) as u32 % ranks]).collect();
    (0..LAYERS).map(layer).collect()
}

/// A second copy of each on the next worker.
pub fn two_copies(ranks: u32, per_worker: u32) -> Vec<Vec<Vec<u32>>> {
    let mut layers = one_copy(ranks);
    for copies in layers.iter_mut().flatten() {
        copies.push((copies[0] + per_worker) % ranks);
    }
    layers
}

pub fn placement(epoch: u64, per_worker: u32, workers: &[&Worker], layers: Vec<Vec<Vec<u32>>>) -> Placement {
    let entries = workers.iter().map(|worker| worker.entry()).collect();
    Placement { epoch, ranks_per_worker: per_worker, workers: entries, layers, expert_bytes: 1 }
}

pub fn one_process(ranks: u32, format: RowFormat) -> InProcess {
    let table = Table::stand_alone(LAYERS, EXPERTS, ranks).unwrap();
    let toys = Toys::new(ranks);
    toys.load(&table, 0);
    InProcess::new(table, toys.compute(), HIDDEN).with_format(format)
}

/// What any exchange of these must give.
pub fn reference(layer: u32, x: &[f32], routes: &[Route]) -> Vec<u32> {
    exchange(&one_process(1, RowFormat::F32), layer, x, routes).unwrap()
}

pub fn quick() -> Timeouts {
    Timeouts {
        connect: Duration::from_secs(1),
        redial: Duration::from_millis(500),
        handshake: Duration::from_secs(2),
        ask: Duration::from_secs(10),
        pulse: Duration::from_millis(30),
        suspect: Duration::from_millis(200),
        lost: Duration::from_secs(4),
        release: Duration::from_millis(300),
        redial_most: Duration::from_millis(100),
        tick: Duration::from_millis(10),
        ..Timeouts::default()
    }
}

pub fn options(timeouts: Timeouts) -> Options {
    Options { timeouts, ..Options::default() }
}

pub fn identity(worker: u32, uid: &str) -> Identity {
    Identity {
        group: "toy-0".into(),
        revision: "abcd1234".into(),
        digest: "00ff".into(),
        worker,
        uid: uid.into(),
        hidden: HIDDEN as u32,
        format: RowFormat::F32,
    }
}

/// One worker of a toy group.
pub struct Worker {
    pub group: Arc<Group>,
    pub toys: Arc<Toys>,
    pub index: u32,
    pub uid: String,
    /// Where others reach it, if not directly.
    pub address: Option<String>,
}

impl Worker {
    pub fn start(identity: Identity, per_worker: u32, options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (index, uid) = (identity.worker, identity.uid.clone());
        let group = Group::start(identity, listener, options, || {}).unwrap();
        let toys = Arc::new(Toys::new(per_worker));
        group.set_adopter(Arc::clone(&toys) as Arc<dyn Adopter>);
        Self { group: Arc::new(group), toys, index, uid, address: None }
    }

    pub fn entry(&self) -> WorkerEntry {
        WorkerEntry {
            index: self.index,
            address: self.address.clone().unwrap_or_else(|| self.group.local_addr().to_string()),
            uid: self.uid.clone(),
            expert_bytes_limit: 0,
        }
    }

    /// Loads and puts in force.
    pub fn place(&self, placement: &Placement) {
        self.place_both(Some(placement), None);
    }

    pub fn place_both(&self, in_force: Option<&Placement>, next: Option<&Placement>) {
        let table = |placement: &Placement| Table::new(placement.clone()).unwrap();
        let (in_force, next) = (in_force.map(table), next.map(table));
        for table in in_force.iter().chain(&next) {
            if table.workers()[self.index as usize].uid == self.uid {
                self.toys.load(table, self.index);
            }
        }
        self.group.update(in_force, next, self.toys.compute()).unwrap();
    }

    pub fn health_of(&self, worker: u32) -> Health {
        self.group.peers().iter().find(|peer| peer.worker == worker).unwrap().health
    }

    pub fn message_of(&self, worker: u32) -> String {
        self.group.peers().iter().find(|peer| peer.worker == worker).unwrap().message.clone()
    }

    pub fn is_connected(&self) -> bool {
        self.group.peers().iter().all(|peer| peer.health == Health::Live)
    }

    pub fn exchange(&self, layer: u32, x: &[f32], routes: &[Route]) -> Result<Vec<u32>, FabricError> {
        exchange(&*self.group, layer, x, routes)
    }
}

/// `count` workers under epoch 1, all connected.
pub fn group_with(count: u32, per_worker: u32, options: &Options, layers: Vec<Vec<Vec<u32>>>) -> Vec<Worker> {
    let start = |index| Worker::start(identity(index, &format!("u{index}")), per_worker, options.clone());
    let workers: Vec<Worker> = (0..count).map(start).collect();
    let placement = placement(1, per_worker, &workers.iter().collect::<Vec<_>>(), layers);
    workers.iter().for_each(|worker| worker.place(&placement));
    all_connected(&workers);
    workers
}

/// One copy of each expert.
pub fn group(count: u32, per_worker: u32, timeouts: Timeouts) -> Vec<Worker> {
    group_with(count, per_worker, &options(timeouts), one_copy(count * per_worker))
}

pub fn all_connected(workers: &[Worker]) {
    workers.iter().for_each(|worker| until("all peers are connected", || worker.is_connected()));
}

/// Waits for something that other threads bring about.
pub fn until(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Rows and routes that touch every expert; `salt` makes them differ.
pub fn batch(rows: usize, salt: u32) -> (Vec<f32>, Vec<Route>) {
    let x = (0..rows * HIDDEN).map(|i| ((i as f32 + salt as f32 * 17.3) * 0.731).sin()).collect();
    let routes = (0..rows as u32)
        .flat_map(|row| {
            let mut picked: Vec<u32> = (0..3).map(|k| (row * 3 + salt + k * 3) % EXPERTS as u32).collect();
            picked.sort_unstable();
            picked.dedup();
            picked.into_iter().map(move |expert| Route { row, expert, weight: 0.1 + expert as f32 * 0.07 })
        })
        .collect();
    (x, routes)
}

pub fn exchange(
    fabric: &dyn Fabric,
    layer: u32,
    x: &[f32],
    routes: &[Route],
) -> Result<Vec<u32>, FabricError> {
    let mut y = vec![f32::NAN; routes.len() * HIDDEN];
    let mut times = 0;
    fabric.exchange(layer, x, routes, &mut y, &mut || times += 1)?;
    assert_eq!(times, 1, "the asker's own work is done once");
    Ok(y.iter().map(|value| value.to_bits()).collect())
}

//! Toy experts (a pure function of layer, row and expert) and groups of them on loopback.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use belay_backend::{ExpertCompute, Fabric, FabricError, Route};
use belay_fabric::{Group, Identity, InProcess, Placement, Table, Timeouts, WorkerEntry};

pub const HIDDEN: usize = 24;
pub const LAYERS: usize = 3;
pub const EXPERTS: usize = 10;

/// Experts of one rank; each row's bits depend on layer, row, expert and weight only.
pub struct Toy {
    pub resident: HashSet<(u32, u32)>,
    /// While set, computing waits.
    pub held: Arc<AtomicBool>,
    pub panics_at: Option<u32>,
}

impl ExpertCompute for Toy {
    fn compute(&self, layer: u32, x: &[f32], routes: &[Route], y: &mut [f32]) -> Result<(), FabricError> {
        while self.held.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(2));
        }
        for (route, out) in routes.iter().zip(y.chunks_exact_mut(HIDDEN)) {
            if !self.resident.contains(&(layer, route.expert)) {
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
        Ok(())
    }
}

pub fn toy(table: &Table, rank: u32, held: &Arc<AtomicBool>) -> Arc<dyn ExpertCompute> {
    Arc::new(Toy { resident: table.of_rank(rank).collect(), held: Arc::clone(held), panics_at: None })
}

/// Deals the experts round robin over all ranks, so that every worker needs every other one.
pub fn placement(epoch: u64, ranks_per_worker: u32, workers: &[(String, String)]) -> Placement {
    let ranks = ranks_per_worker * workers.len() as u32;
    let layer = |layer: usize| (0..EXPERTS).map(|expert| vec![(expert + layer) as u32 % ranks]).collect();
    Placement {
        epoch,
        ranks_per_worker,
        workers: workers
            .iter()
            .enumerate()
            .map(|(index, (address, uid))| WorkerEntry {
                index: index as u32,
                address: address.clone(),
                uid: uid.clone(),
            })
            .collect(),
        layers: (0..LAYERS).map(layer).collect(),
    }
}

pub fn one_process(ranks: u32) -> InProcess {
    let table = Table::stand_alone(LAYERS, EXPERTS, ranks).unwrap();
    let free = Arc::default();
    let toys = (0..ranks).map(|rank| toy(&table, rank, &free)).collect();
    InProcess::new(table, toys, HIDDEN)
}

pub fn quick() -> Timeouts {
    Timeouts {
        connect: Duration::from_millis(500),
        handshake: Duration::from_millis(500),
        ask: Duration::from_secs(5),
        heartbeat: Duration::from_millis(30),
    }
}

pub fn identity(worker: u32, uid: &str) -> Identity {
    Identity {
        group: "toy-0".into(),
        revision: "abcd1234".into(),
        digest: "00ff".into(),
        worker,
        uid: uid.into(),
        hidden: HIDDEN as u32,
    }
}

/// One worker of a toy group.
pub struct Worker {
    pub group: Arc<Group>,
    pub index: u32,
    pub uid: String,
    pub held: Arc<AtomicBool>,
}

impl Worker {
    pub fn start(identity: Identity, timeouts: Timeouts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::start_on(listener, identity, timeouts)
    }

    pub fn start_on(listener: TcpListener, identity: Identity, timeouts: Timeouts) -> Self {
        let (index, uid) = (identity.worker, identity.uid.clone());
        let group = Group::start(identity, listener, timeouts, || {}).unwrap();
        Self { group: Arc::new(group), index, uid, held: Arc::default() }
    }

    pub fn address(&self) -> (String, String) {
        (self.group.local_addr().to_string(), self.uid.clone())
    }

    pub fn place(&self, placement: &Placement) {
        let table = Table::new(placement.clone()).unwrap();
        let ranks = table.ranks_per_worker();
        let toys = (0..ranks).map(|local| toy(&table, self.index * ranks + local, &self.held)).collect();
        self.group.update(table, toys).unwrap();
    }

    pub fn connected(&self) -> bool {
        self.group.peers().iter().all(|peer| peer.connected)
    }
}

pub fn addresses(workers: &[Worker]) -> Vec<(String, String)> {
    workers.iter().map(Worker::address).collect()
}

/// `count` workers under epoch 1, all connected.
pub fn group(count: u32, ranks_per_worker: u32, timeouts: Timeouts) -> Vec<Worker> {
    let workers: Vec<Worker> =
        (0..count).map(|index| Worker::start(identity(index, &format!("u{index}")), timeouts)).collect();
    let placement = placement(1, ranks_per_worker, &addresses(&workers));
    workers.iter().for_each(|worker| worker.place(&placement));
    workers.iter().for_each(|worker| until("all peers are connected", || worker.connected()));
    workers
}

/// Waits for something that other threads bring about.
pub fn until(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        std::thread::sleep(Duration::from_millis(5));
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
    fabric.exchange(layer, x, routes, &mut y)?;
    Ok(y.iter().map(|value| value.to_bits()).collect())
}

/// A relay of TCP connections that can hold every byte back without closing anything, as a lost node does.
pub struct Tunnel {
    pub address: SocketAddr,
    pub blocked: Arc<AtomicBool>,
}

impl Tunnel {
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let blocked = Arc::new(AtomicBool::new(false));
        let gate = Arc::clone(&blocked);
        // ends with the test process; its connections end with either side
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(target)) else { return };
                for (from, to) in [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))] {
                    let (mut from, mut to, gate) = (from.unwrap(), to.unwrap(), Arc::clone(&gate));
                    std::thread::spawn(move || {
                        let mut piece = [0u8; 16 * 1024];
                        while let Ok(count @ 1..) = from.read(&mut piece) {
                            while gate.load(Ordering::Acquire) {
                                std::thread::sleep(Duration::from_millis(2));
                            }
                            if to.write_all(&piece[..count]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self { address, blocked }
    }
}

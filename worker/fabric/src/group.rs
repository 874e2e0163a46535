//! A worker's part in its group: local ranks in process, the others by TCP.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use belay_backend::{ExpertCompute, Fabric, FabricError, Route};

use crate::assign::Assignment;
use crate::handshake::Identity;
use crate::peer::{Call, Peer, lock};
use crate::ranks::{RankScratch, check_shapes, compute_at, scatter};
use crate::server::{Connections, accept_loop};
use crate::stats::Stats;
use crate::table::Table;
use crate::wire;

/// How long the fabric waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Opening a connection.
    pub connect: Duration,
    /// A whole handshake, and the answer to a ping.
    pub handshake: Duration,
    /// From sending an ask to the last byte of its result.
    pub ask: Duration,
    /// Between pings of an idle link: how soon a silent loss is noticed.
    pub heartbeat: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            handshake: Duration::from_secs(2),
            ask: Duration::from_secs(20),
            heartbeat: Duration::from_millis(250),
        }
    }
}

/// A placement in force: an exchange works with one of these from begin to end.
pub(crate) struct Epoch {
    pub(crate) table: Table,
    pub(crate) ranks: Vec<Arc<dyn ExpertCompute>>,
    /// By worker index; `None` for this worker.
    peers: Vec<Option<Arc<Peer>>>,
}

/// What all threads of a group fabric see.
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) timeouts: Timeouts,
    pub(crate) current: ArcSwapOption<Epoch>,
    pub(crate) connections: Connections,
    pub(crate) stats: Arc<Stats>,
    pub(crate) on_change: Box<dyn Fn() + Send + Sync>,
}

/// State of the connection to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// Worker index.
    pub worker: u32,
    /// Whether asks can be sent.
    pub connected: bool,
    /// For people: why not.
    pub message: String,
}

struct Owned {
    peer: Arc<Peer>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Owners {
    peers: HashMap<u32, Owned>,
    /// Threads of peers that left the placement; they end by themselves and are joined at shutdown.
    retired: Vec<JoinHandle<()>>,
    stopped: bool,
}

#[derive(Default)]
struct Scratch {
    assignment: Assignment,
    ranks: RankScratch,
}

/// Fabric of a worker in a group. Serves experts to peers from the first [`Group::update`] until it is dropped.
pub struct Group {
    shared: Arc<Shared>,
    address: SocketAddr,
    accept: Mutex<Option<JoinHandle<()>>>,
    owners: Mutex<Owners>,
    scratch: Mutex<Vec<Scratch>>,
}

impl Group {
    /// Begins to listen. Until the first [`Group::update`] every asker is refused with the reason, and so it dials
    /// again. `on_change` is called, from threads of the fabric, whenever the state of a peer changed.
    ///
    /// # Errors
    /// If the listener has no address or a thread can't be started.
    pub fn start(
        identity: Identity,
        listener: TcpListener,
        timeouts: Timeouts,
        on_change: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            identity,
            timeouts,
            current: ArcSwapOption::empty(),
            connections: Connections::default(),
            stats: Arc::default(),
            on_change: Box::new(on_change),
        });
        let serving = Arc::clone(&shared);
        let accept = thread::Builder::new()
            .name("fabric-accept".into())
            .spawn(move || accept_loop(&serving, &listener))?;
        Ok(Self {
            shared,
            address,
            accept: Mutex::new(Some(accept)),
            owners: Mutex::default(),
            scratch: Mutex::default(),
        })
    }

    /// Address that the fabric listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Counters of this fabric.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.shared.stats)
    }

    /// Puts a placement in force, with the compute of this worker's ranks in rank order.
    ///
    /// Exchanges that have begun end with the placement that they began with. Connections to and from workers that
    /// keep their address and uid are kept; those of others are closed.
    ///
    /// # Errors
    /// If a thread can't be started, or the fabric is shut down; the placement in force stays.
    pub fn update(&self, table: Table, ranks: Vec<Arc<dyn ExpertCompute>>) -> io::Result<()> {
        let mut owners = lock(&self.owners);
        if owners.stopped {
            return Err(io::Error::other("the fabric is shut down"));
        }
        let me = self.shared.identity.worker;
        let mut peers = Vec::with_capacity(table.workers().len());
        let mut fresh = Vec::new();
        for entry in table.workers() {
            if entry.index == me {
                peers.push(None);
                continue;
            }
            let kept = owners.peers.get(&entry.index).filter(|owned| owned.peer.entry == *entry);
            let peer = kept.map_or_else(
                || {
                    let peer = Peer::new(entry.clone());
                    fresh.push(Arc::clone(&peer));
                    peer
                },
                |owned| Arc::clone(&owned.peer),
            );
            peers.push(Some(peer));
        }
        let epoch = Arc::new(Epoch { table, ranks, peers });
        self.shared.current.store(Some(Arc::clone(&epoch)));
        self.shared.connections.prune(&epoch.table);
        owners.retire_all_but(&epoch);
        for peer in fresh {
            let (shared, owned) = (Arc::clone(&self.shared), Arc::clone(&peer));
            let thread = thread::Builder::new()
                .name(format!("fabric-peer-{}", peer.entry.index))
                .spawn(move || owned.keep_connected(&shared))?;
            owners.peers.insert(peer.entry.index, Owned { peer, thread });
        }
        drop(owners);
        (self.shared.on_change)();
        Ok(())
    }

    /// Epoch in force; `None` before the first [`Group::update`].
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        self.shared.current.load().as_ref().map(|epoch| epoch.table.epoch())
    }

    /// State of the connection to each other worker of the placement in force.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerState> {
        let Some(epoch) = self.shared.current.load_full() else { return Vec::new() };
        let state = |peer: &Arc<Peer>| PeerState {
            worker: peer.entry.index,
            connected: peer.is_connected(),
            message: peer.message(),
        };
        epoch.peers.iter().flatten().map(state).collect()
    }

    /// Closes every connection and joins every thread. Exchanges fail from now on.
    pub fn shutdown(&self) {
        let (peers, retired) = {
            let mut owners = lock(&self.owners);
            owners.stopped = true;
            (std::mem::take(&mut owners.peers), std::mem::take(&mut owners.retired))
        };
        peers.values().for_each(|owned| owned.peer.stop());
        self.shared.connections.stop();
        if let Some(accept) = lock(&self.accept).take() {
            // the accept call returns only for a connection
            let _ = TcpStream::connect_timeout(&reachable(self.address), self.shared.timeouts.connect);
            let _ = accept.join();
        }
        for thread in peers.into_values().map(|owned| owned.thread).chain(retired) {
            let _ = thread.join();
        }
    }

    fn exchange_in(
        &self,
        epoch: &Epoch,
        layer: u32,
        x: &[f32],
        routes: &[Route],
        y: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), FabricError> {
        let Shared { identity, stats, .. } = &*self.shared;
        let hidden = identity.hidden as usize;
        let live =
            |worker: u32| epoch.peers[worker as usize].as_ref().is_some_and(|peer| peer.is_connected());
        scratch.assignment.fill(&epoch.table, identity.worker, live, layer, routes)?;
        let Assignment { local, remote } = &scratch.assignment;

        // links are taken in worker order, so that two exchanges of this worker can't hold each other up
        let mut calls: Vec<(Call<'_>, &[u32])> = epoch
            .peers
            .iter()
            .zip(remote)
            .filter(|(_, picked)| !picked.is_empty())
            .filter_map(|(peer, picked)| Some((peer.as_ref()?.call(&self.shared), picked.as_slice())))
            .collect();
        let limit = wire::routes_per_ask(hidden);
        let rounds = calls.iter().map(|(_, picked)| picked.len().div_ceil(limit)).max().unwrap_or(0).max(1);
        let piece = |picked: &[u32], round: usize| {
            let start = (round * limit).min(picked.len());
            start..(start + limit).min(picked.len())
        };

        let mut outcome = Ok(());
        for round in 0..rounds {
            for (call, picked) in &mut calls {
                let part = &picked[piece(picked, round)];
                if outcome.is_ok() && !part.is_empty() {
                    outcome = call.ask(layer, x, routes, part, stats);
                }
            }
            if round == 0 && outcome.is_ok() {
                // the peers compute meanwhile
                outcome = compute_at(&epoch.ranks, local, layer, hidden, x, routes, y, &mut scratch.ranks);
            }
            // every result that was asked for is taken, also after a failure: the links stay in step
            for (call, picked) in &mut calls {
                if !call.is_awaiting() {
                    continue;
                }
                let part = &picked[piece(picked, round)];
                match call.result(part.len(), stats) {
                    Ok(rows) => scatter(part, hidden, rows, y),
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
            outcome.clone()?;
        }
        Ok(())
    }
}

impl Owners {
    fn retire_all_but(&mut self, epoch: &Epoch) {
        let in_force = |peer: &Arc<Peer>| epoch.peers.iter().flatten().any(|other| Arc::ptr_eq(other, peer));
        let leaving: Vec<u32> =
            self.peers.iter().filter(|(_, owned)| !in_force(&owned.peer)).map(|(index, _)| *index).collect();
        for index in leaving {
            if let Some(owned) = self.peers.remove(&index) {
                owned.peer.stop();
                self.retired.push(owned.thread);
            }
        }
        self.retired.retain(|thread| !thread.is_finished());
    }
}

impl Fabric for Group {
    fn exchange(&self, layer: u32, x: &[f32], routes: &[Route], y: &mut [f32]) -> Result<(), FabricError> {
        let started = Instant::now();
        let me = self.shared.identity.worker;
        let Some(epoch) = self.shared.current.load_full() else {
            return Err(FabricError::Protocol { worker: me, cause: "no placement in force".into() });
        };
        check_shapes(me, self.shared.identity.hidden as usize, x, routes, y)?;
        let mut scratch = lock(&self.scratch).pop().unwrap_or_default();
        let outcome = self.exchange_in(&epoch, layer, x, routes, y, &mut scratch);
        lock(&self.scratch).push(scratch);
        match &outcome {
            Ok(()) => self.shared.stats.exchanged(routes.len(), started.elapsed()),
            Err(_) => self.shared.stats.exchange_failed(),
        }
        outcome
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// A listener on every address is reached by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        _ => address.ip(),
    };
    SocketAddr::new(ip, address.port())
}

//! A worker's part in its group: local ranks in process, the others by TCP.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use belay_backend::{Collective, ExpertCompute, Fabric, FabricError, Route};

use crate::auth::Key;
use crate::exchange::{Exchange, Scratch};
use crate::load::LoadCounter;
use crate::peer::{Peer, PeerState};
use crate::shared::{Placements, Shared};
use crate::sync::lock;
use crate::{
    Adopter, CircleState, Coverage, Fault, Identity, Loads, Stats, Table, Timeouts, keeper, pulse, rounds,
    server, wire,
};

/// Half-life of load counts unless options say otherwise.
pub(crate) const DEFAULT_HALF_LIFE: Duration = Duration::from_secs(60);

/// What can be set about a group's fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Thresholds.
    pub timeouts: Timeouts,
    /// Secret that all workers of the group share; empty: none.
    pub key: Vec<u8>,
    /// Time in which a count of [`Group::loads`] loses half of its weight.
    pub load_half_life: Duration,
    /// Largest body of an ask or its result; larger ones are split. At most [`wire::LARGE_BODY`].
    pub ask_bytes: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            key: Vec::new(),
            load_half_life: DEFAULT_HALF_LIFE,
            ask_bytes: wire::LARGE_BODY,
        }
    }
}

struct Owned {
    peer: Arc<Peer>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Owners {
    peers: Vec<Owned>,
    /// Threads of peers that left the placements; they end by themselves and are joined at shutdown.
    retired: Vec<JoinHandle<()>>,
    stopped: bool,
}

/// Fabric of a worker in a group. Serves experts to peers from the first [`Group::update`] until it is dropped.
pub struct Group {
    shared: Arc<Shared>,
    half_life: Duration,
    address: SocketAddr,
    threads: Mutex<Vec<JoinHandle<()>>>,
    owners: Mutex<Owners>,
    scratch: Mutex<Vec<Scratch>>,
}

impl Group {
    /// Begins to listen. Until the first [`Group::update`] every asker is told to come again. `on_change` is called,
    /// from threads of the fabric, whenever a peer's health, the coverage or what is adopted changed; it must not
    /// call [`Group::update`] or [`Group::shutdown`].
    ///
    /// # Errors
    /// If the listener has no address or a thread can't be started.
    pub fn start(
        identity: Identity,
        listener: TcpListener,
        options: Options,
        on_change: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let Options { timeouts, key, load_half_life, ask_bytes } = options;
        let shared =
            Arc::new(Shared::new(identity, Key::new(&key), timeouts, ask_bytes, Box::new(on_change)));
        let group = Self {
            shared: Arc::clone(&shared),
            half_life: load_half_life,
            address,
            threads: Mutex::default(),
            owners: Mutex::default(),
            scratch: Mutex::default(),
        };
        let serving = Arc::clone(&shared);
        group.spawn("fabric-accept", move || server::accept_loop(&serving, &listener))?;
        group.spawn("fabric-keeper", move || keeper::keep(&shared))?;
        Ok(group)
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name.into()).spawn(body)?;
        lock(&self.threads).push(thread);
        Ok(())
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

    /// Sets who loads orphans here; until then this worker adopts nothing.
    pub fn set_adopter(&self, adopter: Arc<dyn Adopter>) {
        self.shared.adoption.set_hook(adopter);
        self.shared.keeper.tell();
    }

    /// From now on the devices of this worker's ranks exchange rows with those of other workers, where these can do that too.
    ///
    /// # Errors
    /// If a thread can't be started.
    pub fn set_collective(&self, collective: Arc<dyn Collective>) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.spawn("fabric-rounds", move || rounds::convene(&shared, &collective))
    }

    /// The circle of devices that exchange rows; `None` while rows go over TCP.
    #[must_use]
    pub fn circle(&self) -> Option<CircleState> {
        self.shared.rounds.state()
    }

    /// Puts a placement in force and another one beside it, the target, with the compute of this worker's ranks in
    /// rank order. Absolute: what is not named is not in force any more.
    ///
    /// Members of either placement may ask this worker, and are connected to. An exchange goes by the placement in
    /// force; one that has begun goes on by the new one. Connections of workers that keep their address and UID
    /// are kept, those of others closed. The copies that `in_force` gives to this worker's ranks must be loaded; if it
    /// names another life of this worker, or is `None`, this worker serves what its ranks hold all the same.
    ///
    /// # Errors
    /// If a thread can't be started, or the fabric is shut down.
    pub fn update(
        &self,
        in_force: Option<Table>,
        next: Option<Table>,
        ranks: Vec<Arc<dyn ExpertCompute>>,
    ) -> io::Result<()> {
        let mut owners = lock(&self.owners);
        if owners.stopped {
            return Err(io::Error::other("the fabric is shut down"));
        }
        let me = self.shared.identity.worker;
        let (mut peers, mut fresh) = (Vec::<Arc<Peer>>::new(), Vec::new());
        for entry in [&in_force, &next].into_iter().flatten().flat_map(Table::workers) {
            if entry.index == me || entry.uid.is_empty() || peers.iter().any(|peer| peer.is(entry)) {
                continue;
            }
            let kept = owners.peers.iter().find(|owned| owned.peer.is(entry));
            let peer = kept.map_or_else(|| Peer::new(entry), |owned| Arc::clone(&owned.peer));
            if kept.is_none() {
                fresh.push(Arc::clone(&peer));
            }
            peers.push(peer);
        }
        let by_worker = in_force.as_ref().map_or_else(Vec::new, |table| {
            let of = |entry| peers.iter().find(|peer| peer.is(entry)).cloned();
            table.workers().iter().map(of).collect()
        });
        let member = in_force.as_ref().is_some_and(|table| table.names(me, &self.shared.identity.uid));
        if let Some(table) = in_force.as_ref() {
            self.count_for(table);
        }
        owners.retire_all_but(&peers);
        self.shared.place(Placements { in_force, next, ranks, member, peers, by_worker });
        self.shared.connections.prune(self.shared.placements().members());
        for peer in fresh {
            let (shared, owned) = (Arc::clone(&self.shared), Arc::clone(&peer));
            let thread = thread::Builder::new()
                .name(format!("fabric-peer-{}", peer.worker))
                .spawn(move || pulse::keep_connected(&owned, &shared))?;
            owners.peers.push(Owned { peer, thread });
        }
        Ok(())
    }

    /// Keeps the load counts unless the model has another shape.
    fn count_for(&self, table: &Table) {
        let experts: Vec<usize> = table.experts_by_layer().collect();
        if !self.shared.load.load().as_ref().is_some_and(|load| load.fits(&experts)) {
            self.shared.load.store(Some(Arc::new(LoadCounter::new(self.half_life, &experts))));
        }
    }

    /// Epoch in force; `None` while there is none.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        self.shared.placements().in_force.as_ref().map(Table::epoch)
    }

    /// State of every other worker of both placements; a slot whose pod changes has two.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerState> {
        self.shared.placements().peers.iter().map(|peer| peer.state()).collect()
    }

    /// Whether every expert has a live copy.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        self.shared.coverage()
    }

    /// (layer, expert) pairs that this worker has adopted, ascending.
    #[must_use]
    pub fn adopted(&self) -> Vec<(u32, u32)> {
        self.shared.adoption.told().to_vec()
    }

    /// Rows that this worker routed to each expert; empty before a placement was in force.
    #[must_use]
    pub fn loads(&self) -> Loads {
        match &*self.shared.load.load() {
            Some(load) => load.read(Instant::now()),
            None => Loads { half_life: self.half_life, layers: Vec::new() },
        }
    }

    /// Makes this worker do something wrong, in place of what it did wrong before.
    pub fn inject(&self, fault: Fault) {
        tracing::warn!(?fault, "fault injected");
        self.shared.faults.set(fault);
    }

    /// Closes every connection and joins every thread. Exchanges fail from now on.
    pub fn shutdown(&self) {
        let (peers, retired) = {
            let mut owners = lock(&self.owners);
            owners.stopped = true;
            (std::mem::take(&mut owners.peers), std::mem::take(&mut owners.retired))
        };
        self.shared.stopped.store(true, Ordering::Release);
        self.shared.faults.stop();
        peers.iter().for_each(|owned| owned.peer.stop());
        self.shared.connections.stop();
        self.shared.moved.tell();
        self.shared.keeper.tell();
        let threads = std::mem::take(&mut *lock(&self.threads));
        if !threads.is_empty() {
            // the accept loop looks up when somebody comes
            let _ = TcpStream::connect_timeout(&reachable(self.address), self.shared.timeouts.connect);
        }
        let owners = peers.into_iter().map(|owned| owned.thread);
        for thread in threads.into_iter().chain(owners).chain(retired) {
            let _ = thread.join();
        }
    }
}

impl Owners {
    fn retire_all_but(&mut self, members: &[Arc<Peer>]) {
        let is_member = |peer: &Arc<Peer>| members.iter().any(|other| Arc::ptr_eq(other, peer));
        let (stay, leave) =
            std::mem::take(&mut self.peers).into_iter().partition(|owned| is_member(&owned.peer));
        self.peers = stay;
        for Owned { peer, thread } in leave {
            peer.stop();
            self.retired.push(thread);
        }
        self.retired.retain(|thread| !thread.is_finished());
    }
}

impl Fabric for Group {
    fn exchange(
        &self,
        layer: u32,
        x: &[f32],
        routes: &[Route],
        y: &mut [f32],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(), FabricError> {
        let started = Instant::now();
        let mut scratch = lock(&self.scratch).pop().unwrap_or_default();
        let outcome = Exchange::run(&self.shared, layer, x, routes, y, meanwhile, &mut scratch);
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

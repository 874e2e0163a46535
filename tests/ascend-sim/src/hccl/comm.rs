//! Communicators: one rank's side of a group, its connections and its state.

use std::collections::HashMap;
use std::ffi::c_void;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::codes as rt;
use crate::failure::{Failure, Outcome, fail};
use crate::hccl::codes;
use crate::hccl::link::{End, Key, Kind, Link};
use crate::hccl::mesh::Door;
use crate::hccl::settings::Settings;
use crate::lock;
use crate::machine::{Device, Machine};
use crate::registry::Registry;
use crate::stream::{Running, Stream};

/// All communicators.
pub static COMMS: Comms =
    Comms { registry: Registry::new("comm", codes::PTR, codes::PARA), leaked: AtomicU64::new(0) };

/// The registry of communicators; counts those that the end of the simulator had to release.
pub struct Comms {
    registry: Registry<Comm>,
    leaked: AtomicU64,
}

impl Comms {
    /// Enters a communicator; its name must be new on its device.
    pub fn insert(&self, comm: Arc<Comm>) -> Outcome<*mut c_void> {
        if self.named(&comm.name, comm.device.id).is_some() {
            comm.close();
            return fail(codes::PARA, format!("there is a communicator {:?} on this device", comm.name));
        }
        Ok(self.registry.insert(comm))
    }

    /// The communicator of a handle.
    pub fn get(&self, handle: *const c_void) -> Outcome<Arc<Comm>> {
        self.registry.get(handle)
    }

    /// Takes a communicator out.
    pub fn remove(&self, handle: *const c_void) -> Outcome<Arc<Comm>> {
        self.registry.remove(handle)
    }

    /// The communicator of that name on a device.
    pub fn named(&self, name: &str, device: usize) -> Option<Arc<Comm>> {
        let all = self.registry.all().into_iter().map(|(_, comm)| comm);
        all.into_iter().find(|comm| comm.name == name && comm.device.id == device)
    }

    /// Communicators alive, those that had to be released included.
    pub fn live(&self) -> u64 {
        self.registry.live() as u64 + self.leaked.load(Ordering::Relaxed)
    }

    /// Starts counting those left behind anew.
    pub fn forget_leaks(&self) {
        self.leaked.store(0, Ordering::Relaxed);
    }

    /// Releases what its owner left behind: on one device, or all.
    pub fn release(&self, device: Option<usize>) {
        for (handle, comm) in self.registry.all() {
            if device.is_none_or(|device| comm.device.id == device)
                && self.registry.remove(std::ptr::without_provenance(handle)).is_ok()
            {
                self.leaked.fetch_add(1, Ordering::Relaxed);
                comm.close();
            }
        }
    }

    /// Tells the communicators of a device that it is lost.
    pub fn lose_device(&self, device: usize, code: i32) {
        for (_, comm) in self.registry.all() {
            if comm.device.id == device {
                comm.lose_device(code);
            }
        }
    }
}

/// What a communicator is used for: the dispatch and combine ops want one of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Collectives.
    Collectives,
    /// `MoeDistributeDispatchV2` and `MoeDistributeCombineV2`.
    Experts,
}

/// Why a collective failed.
#[derive(Debug)]
pub struct Fault {
    /// What its stream is told.
    pub failure: Failure,
    /// What the other ranks' streams are told; none = they find out by their time-outs.
    pub tell: Option<i32>,
}

impl Fault {
    /// A fault that the other ranks are not told of.
    pub fn quiet(code: i32, text: impl Into<String>) -> Self {
        Self { failure: Failure { code, text: text.into() }, tell: None }
    }

    /// A peer is gone.
    pub fn remote(peer: usize, text: &str) -> Self {
        let text = format!("rank {peer} {text}");
        Self {
            failure: Failure { code: rt::RT_SUSPECT_REMOTE_ERROR, text },
            tell: Some(rt::RT_SUSPECT_REMOTE_ERROR),
        }
    }

    /// The ranks don't agree on what they do. Documented to end in the execution time-out; told at once here.
    pub fn mismatch(text: String) -> Self {
        Self { failure: Failure { code: rt::RT_TASK_TIMEOUT, text }, tell: Some(rt::RT_TASK_TIMEOUT) }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self { failure, tell: Some(rt::RT_SUSPECT_REMOTE_ERROR) }
    }
}

#[derive(Default)]
struct State {
    fault: Option<Failure>,
    suspended: bool,
    closed: bool,
    generation: u32,
    // collectives so far, by peer and channel
    counters: HashMap<(usize, u32), u64>,
    active: usize,
    purpose: Option<Purpose>,
}

/// What a communicator is made of.
pub struct Parts {
    /// Its name, the same on all ranks.
    pub name: String,
    /// What tells it from all others.
    pub id: String,
    /// This rank.
    pub rank: usize,
    /// Where the ranks listen.
    pub addresses: Vec<SocketAddr>,
    /// Its device.
    pub device: Arc<Device>,
    /// The machine that it was made on.
    pub machine: Arc<Machine>,
    /// Its settings.
    pub settings: Settings,
    /// Whether it was split from another.
    pub is_sub: bool,
}

/// One rank of a communicator.
pub struct Comm {
    parts: Parts,
    door: Mutex<Door>,
    links: Mutex<Option<Vec<Option<Link>>>>,
    state: Mutex<State>,
    changed: Condvar,
}

impl std::ops::Deref for Comm {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// Counts a running collective, which the end of the communicator waits for.
struct Active<'a>(&'a Comm);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).active -= 1;
        self.0.changed.notify_all();
    }
}

fn closed() -> Failure {
    let text = "terminated from outside: the communicator was destroyed".into();
    Failure { code: rt::RT_DEVICE_TASK_ABORT, text }
}

impl Comm {
    /// A communicator over connected links.
    pub fn new(parts: Parts, door: Door, links: Vec<Option<Link>>) -> Arc<Self> {
        Arc::new(Self {
            parts,
            door: Mutex::new(door),
            links: Mutex::new(Some(links)),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.addresses.len()
    }

    /// Its door, for communicators split from it.
    pub fn door(&self) -> &Mutex<Door> {
        &self.door
    }

    /// Fails when it does not take new collectives on that stream.
    pub fn accept(&self, stream: &Stream) -> Outcome {
        if stream.context.device.id != self.device.id {
            let text = format!(
                "a stream of device {}, a communicator of device {}",
                stream.context.device.id, self.device.id
            );
            return fail(codes::PARA, text);
        }
        self.claim(Purpose::Collectives)
    }

    /// Fails when it is suspended, or used for something else.
    pub fn claim(&self, purpose: Purpose) -> Outcome {
        let mut state = lock(&self.state);
        if state.suspended {
            return fail(codes::SUSPENDING, "the communicator is suspended");
        }
        if *state.purpose.get_or_insert(purpose) != purpose {
            return fail(codes::PARA, "the dispatch and combine ops need a communicator of their own");
        }
        Ok(())
    }

    /// Runs a collective on a stream's thread.
    pub fn during<T>(&self, running: &Running<'_>, body: impl FnOnce() -> Result<T, Fault>) -> Outcome<T> {
        let _active = {
            let mut state = lock(&self.state);
            state.active += 1;
            Active(self)
        };
        let delay = self.machine.hccl_delay();
        let start = Instant::now();
        let work = || {
            self.check(running)?;
            let waited = running.wait(None, 0, || start.elapsed() >= delay);
            waited.map_err(|failure| Fault { failure, tell: None })?;
            body()
        };
        work().map_err(|fault| {
            self.give_up(fault.failure.clone(), fault.tell);
            fault.failure
        })
    }

    /// Fails when a running collective is to give up.
    pub fn check(&self, running: &Running<'_>) -> Result<(), Fault> {
        if running.cancelled() {
            return Err(Fault::quiet(rt::RT_STREAM_ABORT, "given up in a collective"));
        }
        self.device.check()?;
        let state = lock(&self.state);
        if state.closed {
            return Err(Fault { failure: closed(), tell: None });
        }
        if state.suspended {
            return Err(Fault::quiet(rt::RT_DEVICE_TASK_ABORT, "the communicator was suspended"));
        }
        match &state.fault {
            Some(failure) => Err(Fault { failure: failure.clone(), tell: None }),
            None => Ok(()),
        }
    }

    /// Counts one more collective of a channel with a peer and answers what its frames are marked with.
    pub fn next_key(&self, peer: usize, channel: u32) -> Key {
        let mut state = lock(&self.state);
        let generation = state.generation;
        let number = state.counters.entry((peer, channel)).or_default();
        *number += 1;
        Key { generation, channel, number: *number }
    }

    /// Gives `work` the links; fails when the communicator is destroyed.
    pub fn with_links<T>(
        &self,
        work: impl FnOnce(&mut [Option<Link>]) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        match &mut *lock(&self.links) {
            Some(links) => work(links),
            None => Err(Fault { failure: closed(), tell: None }),
        }
    }

    fn each_link(&self, mut work: impl FnMut(&mut Link)) {
        if let Some(links) = &mut *lock(&self.links) {
            links.iter_mut().flatten().for_each(&mut work);
        }
    }

    /// From now on its collectives fail: what one rank has not done, the others can't go on from.
    pub fn give_up(&self, failure: Failure, tell: Option<i32>) {
        let generation = {
            let mut state = lock(&self.state);
            if state.fault.is_some() {
                return;
            }
            state.fault = Some(failure);
            state.generation
        };
        if let Some(code) = tell {
            self.each_link(|link| {
                let key = Key { generation, channel: 0, number: 0 };
                link.queue(Kind::Broken, key, &code.to_le_bytes());
                link.pump();
            });
        }
    }

    fn lose_device(&self, code: i32) {
        self.give_up(Failure { code, text: format!("device {} is lost", self.device.id) }, None);
        self.each_link(Link::cut);
    }

    /// 0, or 21 when a peer is gone.
    pub fn async_error(&self) -> i32 {
        let generation = {
            let state = lock(&self.state);
            if state.fault.as_ref().is_some_and(|fault| fault.code == rt::RT_SUSPECT_REMOTE_ERROR) {
                return codes::REMOTE;
            }
            state.generation
        };
        let mut lost = false;
        self.each_link(|link| {
            link.pump();
            lost |= link.end() == Some(End::Lost);
            lost |= link.broken(generation) == Some(rt::RT_SUSPECT_REMOTE_ERROR);
        });
        if lost { codes::REMOTE } else { 0 }
    }

    /// Refuses new collectives and ends those that run.
    pub fn suspend(&self) {
        let mut state = lock(&self.state);
        state.suspended = true;
        self.wait_for_active(state);
    }

    /// Starts anew with the same ranks, which all have to do so.
    pub fn resume(&self) -> Outcome {
        let mut gone = false;
        self.each_link(|link| {
            link.pump();
            gone |= link.end().is_some();
        });
        if gone {
            return fail(codes::REMOTE, "a rank is gone: the communicator can't be resumed");
        }
        let mut state = lock(&self.state);
        if state.active > 0 {
            return fail(codes::AGAIN, "a collective is running");
        }
        state.generation += 1;
        state.counters.clear();
        state.fault = None;
        state.suspended = false;
        let generation = state.generation;
        drop(state);
        self.each_link(|link| link.forget_before(generation));
        Ok(())
    }

    fn wait_for_active(&self, mut state: std::sync::MutexGuard<'_, State>) {
        while state.active > 0 {
            let wait = self.changed.wait_timeout(state, Duration::from_millis(10));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends its collectives and its connections.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        self.wait_for_active(state);
        let links = lock(&self.links).take();
        links.into_iter().flatten().flatten().for_each(Link::close);
    }
}

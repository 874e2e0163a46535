//! The asking side of one peer: a connection, kept alive and renewed by a thread of its own.
//!
//! The thread that needs an answer writes the ask and reads the result itself: a hand-over to a reader thread
//! would cost two wake-ups for each layer. The owner thread only dials, pings and notices a loss. It pings over a
//! second connection as well, which the server answers at once even while it computes: so a peer that is silent
//! because it works long is told apart from one that is gone, long before the ask's own deadline.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use belay_backend::{FabricError, Route};

use crate::deadline::{DeadlineStream, timed_out};
use crate::group::Shared;
use crate::stats::Stats;
use crate::table::WorkerEntry;
use crate::wire::{self, Failure, Header, Hello, Kind, WireError};

/// A connection over which this worker asks one peer.
#[derive(Debug)]
pub(crate) struct Link {
    stream: BufReader<DeadlineStream>,
    out: Vec<u8>,
    rows: Vec<f32>,
    next_id: u64,
    /// Set from ask to answer: a link with a result under way can't be used for anything else.
    awaiting: Option<u64>,
}

/// Why a link failed an ask, and whether it can go on.
enum LinkError {
    Lost(WireError),
    Failed(Failure),
}

impl From<WireError> for LinkError {
    fn from(error: WireError) -> Self {
        Self::Lost(error)
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.into())
    }
}

impl Link {
    fn write(&mut self) -> io::Result<()> {
        self.stream.get_mut().write_all(&self.out)
    }

    fn read_header(&mut self, expected_id: u64) -> Result<Header, WireError> {
        let header = wire::read_header(&mut self.stream)?;
        if header.id != expected_id {
            let what = format!("answers ask {} instead of {expected_id}", header.id);
            return Err(WireError::Malformed { kind: header.kind, what });
        }
        Ok(header)
    }

    fn result(&mut self, id: u64, hidden: usize, routes: usize) -> Result<usize, LinkError> {
        let header = self.read_header(id)?;
        match header.kind {
            Kind::Result => {
                wire::read_result(&mut self.stream, &header, hidden, routes, &mut self.rows)?;
                Ok(wire::HEADER_BYTES + header.body as usize)
            }
            Kind::Failed => Err(LinkError::Failed(wire::read_failed(&mut self.stream, &header)?)),
            kind => Err(unexpected(kind).into()),
        }
    }

    fn ping(&mut self, within: Duration) -> Result<(), WireError> {
        self.stream.get_mut().set(within);
        wire::encode_empty(&mut self.out, Kind::Ping);
        self.write()?;
        match self.read_header(0)?.kind {
            Kind::Pong => Ok(()),
            kind => Err(unexpected(kind)),
        }
    }
}

fn unexpected(kind: Kind) -> WireError {
    WireError::Malformed { kind, what: "not expected here".into() }
}

/// A remote worker of the placement.
pub(crate) struct Peer {
    pub(crate) entry: WorkerEntry,
    link: Mutex<Option<Link>>,
    /// The link's socket, to cut it while an exchange waits on it.
    socket: Mutex<Option<TcpStream>>,
    connected: AtomicBool,
    message: Mutex<String>,
    stop: Mutex<bool>,
    wake: Condvar,
}

/// An exchange's hold on one peer.
pub(crate) struct Call<'a> {
    peer: &'a Peer,
    link: MutexGuard<'a, Option<Link>>,
    shared: &'a Shared,
}

impl Peer {
    pub(crate) fn new(entry: WorkerEntry) -> Arc<Self> {
        Arc::new(Self {
            entry,
            link: Mutex::default(),
            socket: Mutex::default(),
            connected: AtomicBool::new(false),
            message: Mutex::new("not connected yet".into()),
            stop: Mutex::new(false),
            wake: Condvar::new(),
        })
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    pub(crate) fn message(&self) -> String {
        lock(&self.message).clone()
    }

    /// Takes the link for one exchange; waits while another exchange or a ping has it.
    pub(crate) fn call<'a>(&'a self, shared: &'a Shared) -> Call<'a> {
        Call { peer: self, link: lock(&self.link), shared }
    }

    /// Tells the owner thread to end; an exchange under way ends first.
    pub(crate) fn stop(&self) {
        *lock(&self.stop) = true;
        self.wake.notify_all();
    }

    /// Body of the owner thread: connected whenever it can be, until [`Self::stop`].
    pub(crate) fn keep_connected(&self, shared: &Shared) {
        let mut failures = 0u32;
        let mut pulse = None;
        loop {
            let pause = match &mut pulse {
                Some(pulse) if self.is_connected() => {
                    self.check(pulse, shared);
                    if self.is_connected() { shared.timeouts.heartbeat } else { Duration::ZERO }
                }
                _ => match self.connect(shared) {
                    Ok(fresh) => {
                        pulse = Some(fresh);
                        failures = 0;
                        shared.timeouts.heartbeat
                    }
                    Err(reason) => {
                        self.set_state(shared, false, &reason);
                        failures = failures.saturating_add(1);
                        backoff(failures)
                    }
                },
            };
            if self.stopped_within(pause) {
                // after an exchange under way
                let mut guard = lock(&self.link);
                self.cut();
                guard.take();
                self.set_state(shared, false, "no longer in the placement");
                return;
            }
        }
    }

    /// Opens the link and the connection for pings; gives back the latter.
    fn connect(&self, shared: &Shared) -> Result<Link, String> {
        let link = dial(&self.entry, shared)?;
        let pulse = dial(&self.entry, shared)?;
        let socket = link.stream.get_ref().socket().try_clone().map_err(|error| error.to_string())?;
        // state under the link's lock: an exchange that loses this link at once must be heard last
        let mut guard = lock(&self.link);
        *guard = Some(link);
        *lock(&self.socket) = Some(socket);
        self.set_state(shared, true, "connected");
        Ok(pulse)
    }

    /// Sleeps until the pause is over, the link was lost, or the peer is stopped; true for the last.
    fn stopped_within(&self, pause: Duration) -> bool {
        let stop = lock(&self.stop);
        if *stop {
            return true;
        }
        *self.wake.wait_timeout(stop, pause).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Pings over both connections; the link only while no exchange has it.
    fn check(&self, pulse: &mut Link, shared: &Shared) {
        if let Err(error) = pulse.ping(shared.timeouts.handshake) {
            // an exchange may be waiting on the link: cutting its socket ends the wait
            self.cut();
            let mut guard = lock(&self.link);
            guard.take();
            self.set_state(shared, false, &describe(&error));
            return;
        }
        let mut guard = match self.link.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let Some(link) = guard.as_mut() else { return };
        let checked = match link.awaiting {
            Some(_) => Err("an exchange was abandoned".to_string()),
            None => link.ping(shared.timeouts.handshake).map_err(|error| describe(&error)),
        };
        if let Err(reason) = checked {
            self.cut();
            guard.take();
            self.set_state(shared, false, &reason);
        }
    }

    /// Closes the link's connection for both sides, whoever holds the link.
    fn cut(&self) {
        if let Some(socket) = lock(&self.socket).take() {
            // it may be closed already
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn set_state(&self, shared: &Shared, connected: bool, message: &str) {
        let changed = {
            let mut current = lock(&self.message);
            let changed = *current != message || self.is_connected() != connected;
            if changed {
                *current = message.to_owned();
            }
            changed
        };
        self.connected.store(connected, Ordering::Release);
        if changed {
            let (worker, address) = (self.entry.index, &self.entry.address);
            if connected {
                tracing::info!(worker, address, "connected to peer");
            } else {
                tracing::warn!(worker, address, reason = message, "not connected to peer");
            }
            (shared.on_change)();
        }
    }
}

impl Call<'_> {
    /// Sends the routes `picked` of an exchange.
    pub(crate) fn ask(
        &mut self,
        layer: u32,
        x: &[f32],
        routes: &[Route],
        picked: &[u32],
        stats: &Stats,
    ) -> Result<(), FabricError> {
        let hidden = self.shared.identity.hidden as usize;
        let within = self.shared.timeouts.ask;
        let Some(link) = self.link.as_mut() else {
            return Err(FabricError::PeerLost { worker: self.peer.entry.index, cause: self.peer.message() });
        };
        if link.awaiting.is_some() {
            return Err(self.lose("an earlier exchange was abandoned".into()));
        }
        link.stream.get_mut().set(within);
        link.next_id += 1;
        let id = link.next_id;
        let rows = wire::encode_ask(&mut link.out, id, layer, hidden, x, routes, picked);
        let bytes = link.out.len();
        match link.write() {
            Ok(()) => {
                link.awaiting = Some(id);
                stats.sent(rows, bytes);
                Ok(())
            }
            Err(error) => Err(self.lose_by(&error.into())),
        }
    }

    /// Whether an ask was sent whose result is not here yet.
    pub(crate) fn is_awaiting(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.awaiting.is_some())
    }

    /// Waits for the result of the last ask; `[routes, hidden]`.
    pub(crate) fn result(&mut self, routes: usize, stats: &Stats) -> Result<&[f32], FabricError> {
        let hidden = self.shared.identity.hidden as usize;
        let worker = self.peer.entry.index;
        let outcome = match self.link.as_mut() {
            Some(link) => match link.awaiting.take() {
                Some(id) => link.result(id, hidden, routes),
                None => Ok(0),
            },
            None => return Err(FabricError::PeerLost { worker, cause: self.peer.message() }),
        };
        match outcome {
            Ok(bytes) => stats.received(bytes),
            Err(LinkError::Failed(Failure::NotResident { layer, expert })) => {
                return Err(FabricError::NotResident { layer, expert });
            }
            Err(LinkError::Failed(Failure::Other(cause))) => {
                return Err(FabricError::Protocol { worker, cause });
            }
            Err(LinkError::Lost(error)) => return Err(self.lose_by(&error)),
        }
        Ok(self.link.as_ref().map_or(&[], |link| link.rows.as_slice()))
    }

    fn lose_by(&mut self, error: &WireError) -> FabricError {
        let worker = self.peer.entry.index;
        let lost = self.lose(describe(error));
        match error {
            WireError::Io(io) if timed_out(io) => {
                FabricError::Timeout { worker, millis: self.shared.timeouts.ask.as_millis() as u64 }
            }
            WireError::Io(_) => lost,
            _ => FabricError::Protocol { worker, cause: error.to_string() },
        }
    }

    /// Gives the link up and wakes the owner thread, which dials again.
    fn lose(&mut self, reason: String) -> FabricError {
        self.peer.cut();
        self.link.take();
        self.peer.set_state(self.shared, false, &reason);
        self.peer.wake.notify_all();
        FabricError::PeerLost { worker: self.peer.entry.index, cause: reason }
    }
}

fn describe(error: &WireError) -> String {
    match error {
        WireError::Io(io) if timed_out(io) => "no answer in time".into(),
        WireError::Io(io) if io.kind() == io::ErrorKind::UnexpectedEof => {
            "connection closed by the peer".into()
        }
        other => other.to_string(),
    }
}

/// Pause after the n-th failure in a row: 25 ms, doubling up to 1 s.
fn backoff(failures: u32) -> Duration {
    Duration::from_millis(25u64 << failures.saturating_sub(1).min(6)).min(Duration::from_secs(1))
}

fn dial(entry: &WorkerEntry, shared: &Shared) -> Result<Link, String> {
    let epoch = shared.current.load_full().ok_or("no placement in force")?;
    if entry.address.is_empty() {
        return Err("its address is not known yet".into());
    }
    let socket = connect(&entry.address, shared.timeouts.connect)?;
    socket.set_nodelay(true).map_err(|error| error.to_string())?;
    let mut stream =
        BufReader::with_capacity(64 * 1024, DeadlineStream::new(socket, shared.timeouts.handshake));
    let mut out = Vec::new();
    let hello = Hello {
        from: shared.identity.on_wire(epoch.table.epoch()),
        to_worker: entry.index,
        to_uid: entry.uid.clone(),
    };
    wire::encode_hello(&mut out, &hello);
    stream.get_mut().write_all(&out).map_err(|error| describe(&error.into()))?;
    welcome(&mut stream, entry, shared, &epoch.table)?;
    Ok(Link { stream, out, rows: Vec::new(), next_id: 0, awaiting: None })
}

fn welcome(
    stream: &mut impl Read,
    entry: &WorkerEntry,
    shared: &Shared,
    table: &crate::Table,
) -> Result<(), String> {
    let header = wire::read_header(stream).map_err(|error| describe(&error))?;
    match header.kind {
        Kind::Welcome => {
            let identity = wire::read_welcome(stream, &header).map_err(|error| describe(&error))?;
            shared.identity.believe(table, entry.index, &identity)
        }
        Kind::Refuse => {
            let reason = wire::read_refuse(stream, &header).map_err(|error| describe(&error))?;
            Err(format!("refused: {reason}"))
        }
        kind => Err(unexpected(kind).to_string()),
    }
}

fn connect(address: &str, within: Duration) -> Result<TcpStream, String> {
    let mut last = "it resolves to no address".to_string();
    let resolved =
        address.to_socket_addrs().map_err(|error| format!("cannot resolve {address:?}: {error}"))?;
    for candidate in resolved {
        match TcpStream::connect_timeout(&candidate, within) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("cannot connect to {address}: {last}"))
}

/// Locks; what the fabric's locks guard stays sound when a holder panics (see `Link::awaiting`).
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_a_second_and_stays() {
        let pauses: Vec<u128> = (1..9).map(|failures| backoff(failures).as_millis()).collect();
        assert_eq!(pauses, [25, 50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff(u32::MAX), Duration::from_secs(1));
    }
}

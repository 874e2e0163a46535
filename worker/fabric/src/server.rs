//! The answering side: one thread accepts, one thread for each connection reads, computes and answers.

use std::collections::HashMap;
use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::answer::Answerer;
use crate::auth::{Side, nonce};
use crate::handshake::Members;
use crate::health::Health;
use crate::pulse::MAX_PULSE;
use crate::shared::Shared;
use crate::socket::{Inbox, is_tick, prepare, read_small, write_by};
use crate::sync::{Signal, lock};
use crate::wire::{self, HEADER_BYTES, Header, Hello, Kind, Purpose, WireError};

/// Open connections that a worker serves at most; a group has up to three for each other worker.
const MAX_CONNECTIONS: usize = 1024;
/// Pause of the accept loop when the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Askers that are connected.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: Mutex<HashMap<u64, Open>>,
    stopping: AtomicBool,
    stop: Signal,
}

#[derive(Debug)]
struct Open {
    socket: TcpStream,
    /// `(worker, uid)` once admitted.
    asker: Option<(u32, String)>,
}

impl Connections {
    /// Closes the connections of workers that are no longer members.
    pub(crate) fn prune(&self, members: Members<'_>) {
        for connection in lock(&self.open).values() {
            let Some((worker, uid)) = &connection.asker else { continue };
            if !members.include(*worker, uid) {
                close(&connection.socket);
            }
        }
    }

    /// Ends the accept loop (which needs one more connection to notice) and every connection.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stop.tell();
        lock(&self.open).values().for_each(|connection| close(&connection.socket));
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

fn close(socket: &TcpStream) {
    // the socket may be closed already; either way its thread wakes up and ends
    let _ = socket.shutdown(Shutdown::Both);
}

/// Body of the accept thread; ends, with all connection threads joined, after [`Connections::stop`].
pub(crate) fn accept_loop(shared: &Arc<Shared>, listener: &TcpListener) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    let mut number = 0u64;
    loop {
        let accepted = listener.accept();
        if shared.connections.is_stopping() {
            break;
        }
        threads.retain(|thread| !thread.is_finished());
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                // out of file descriptors, or the asker went away: neither ends the service
                tracing::warn!(%error, "cannot accept a fabric connection");
                let stop = &shared.connections.stop;
                stop.wait_for(stop.count(), ACCEPT_PAUSE);
                continue;
            }
        };
        if threads.len() >= MAX_CONNECTIONS {
            tracing::warn!(limit = MAX_CONNECTIONS, "too many fabric connections");
            continue;
        }
        number += 1;
        let (shared, id) = (Arc::clone(shared), number);
        let spawned = thread::Builder::new().name(format!("fabric-serve-{id}")).spawn(move || {
            if let Err(error) = serve(&shared, socket, id) {
                tracing::debug!(%error, "fabric connection ended");
            }
            lock(&shared.connections.open).remove(&id);
        });
        match spawned {
            Ok(thread) => threads.push(thread),
            Err(error) => tracing::warn!(%error, "cannot start a thread for a fabric connection"),
        }
    }
    for thread in threads {
        // a panic there was that connection's alone
        let _ = thread.join();
    }
}

fn serve(shared: &Shared, socket: TcpStream, id: u64) -> Result<(), WireError> {
    prepare(&socket, shared.timeouts.tick)?;
    {
        let mut open = lock(&shared.connections.open);
        open.insert(id, Open { socket: socket.try_clone()?, asker: None });
        if shared.connections.is_stopping() {
            return Ok(());
        }
    }
    let mut connection =
        Connection { shared, socket, inbox: Inbox::default(), out: Vec::new(), asker: u32::MAX };
    match connection.greet(id)? {
        Some(Purpose::Pings) => connection.answer_pings(),
        Some(Purpose::Asks) => {
            // a thread of its own computes: nothing but its asks comes here until it has answered
            connection.socket.set_read_timeout(Some(IDLE_TICK))?;
            connection.answer_asks()
        }
        Some(Purpose::Rounds) => {
            connection.socket.set_read_timeout(Some(IDLE_TICK))?;
            connection.take_words()
        }
        None => Ok(()),
    }
}

/// How often a connection without asks looks whether it should end; it is also woken by closing its socket.
const IDLE_TICK: Duration = Duration::from_secs(1);

pub(crate) struct Connection<'a> {
    pub shared: &'a Shared,
    pub socket: TcpStream,
    pub inbox: Inbox,
    pub out: Vec<u8>,
    asker: u32,
}

impl Connection<'_> {
    /// The server's side of the handshake; `None` if the asker was refused.
    fn greet(&mut self, id: u64) -> Result<Option<Purpose>, WireError> {
        let shared = self.shared;
        let until = Instant::now() + shared.timeouts.handshake;
        let mut greeting = Vec::new();
        let hello = match self.hello(until, &mut greeting) {
            Ok(hello) => hello,
            Err(error @ WireError::Io(_)) => return Err(error),
            Err(error) => return self.refuse(0, &error.to_string(), until),
        };
        self.asker = hello.from.worker;
        self.hold();
        let placements = shared.placements();
        let members = placements.members();
        if members.in_force.is_none() && members.next.is_none() {
            let reason = format!("worker {} has no placement in force yet", shared.identity.worker);
            return self.refuse(wire::NOT_YET, &reason, until);
        }
        if let Err(reason) = shared.identity.admit(members, &hello) {
            tracing::warn!(
                worker = hello.from.worker,
                uid = hello.from.uid,
                reason,
                "refused a fabric connection"
            );
            return self.refuse(0, &reason, until);
        }
        let identity = shared.identity.on_wire(members);
        wire::encode_welcome(&mut self.out, &identity, &nonce(), |welcome| {
            shared.key.prove(Side::Server, &greeting, welcome)
        });
        write_by(&mut self.socket, &self.out, until)?;
        let welcome = wire::without_proof(wire::body_of(&self.out)).to_vec();
        let mut body = Vec::new();
        let header = read_small(&mut self.inbox, &mut self.socket, until, &mut body)?;
        if header.kind != Kind::Prove {
            return Err(header.unexpected());
        }
        let proof = wire::parse_prove(&header, &body)?;
        if !shared.key.accepts(Side::Asker, &greeting, &welcome, &proof) {
            tracing::warn!(worker = hello.from.worker, "refused a fabric connection without the group's key");
            return self.refuse(0, "you do not know the group's fabric key", until);
        }
        let late = {
            // under the lock, so that a placement that comes in now either is seen here or prunes this connection
            let mut open = lock(&shared.connections.open);
            let placements = shared.placements();
            let admitted = shared.identity.admit(placements.members(), &hello);
            if let (Ok(()), Some(connection)) = (&admitted, open.get_mut(&id)) {
                connection.asker = Some((hello.from.worker, hello.from.uid.clone()));
            }
            admitted.err()
        };
        if let Some(reason) = late {
            return self.refuse(0, &reason, until);
        }
        wire::encode_empty(&mut self.out, Kind::Admitted, 0);
        write_by(&mut self.socket, &self.out, until)?;
        // whoever reaches us is there to be reached: its turn of being dialled again need not be waited for
        if let Some(peer) = shared.placements().life(hello.from.worker, &hello.from.uid)
            && peer.health() != Health::Live
        {
            peer.wake.tell();
        }
        Ok(Some(hello.purpose))
    }

    fn hello(&mut self, until: Instant, body: &mut Vec<u8>) -> Result<Hello, WireError> {
        let header = read_small(&mut self.inbox, &mut self.socket, until, body)?;
        match header.kind {
            Kind::Hello => wire::parse_hello(&header, body),
            kind => Err(WireError::Malformed { kind, what: "a connection begins with a hello".into() }),
        }
    }

    fn refuse(&mut self, id: u64, reason: &str, until: Instant) -> Result<Option<Purpose>, WireError> {
        wire::encode_refuse(&mut self.out, id, reason);
        write_by(&mut self.socket, &self.out, until)?;
        // half-close, so that unread bytes of the other side don't turn the refusal into a reset
        self.socket.shutdown(Shutdown::Write)?;
        let mut rest = [0u8; 1024];
        for _ in 0..64 {
            match self.socket.read(&mut rest) {
                Ok(0) => break,
                Err(error) if !is_tick(&error) || Instant::now() >= until => break,
                _ => {}
            }
        }
        Ok(None)
    }

    /// Returns when something passes between this worker and the asker.
    pub(crate) fn hold(&self) {
        let shared = self.shared;
        while shared.faults.cuts(self.asker) && !shared.connections.is_stopping() {
            shared.faults.wait_while_cut(self.asker, shared.timeouts.lost);
        }
    }

    /// Waits for the next frame's header, for as long as the connection stands.
    fn next_header(&mut self) -> Result<Header, WireError> {
        loop {
            if let Some(header) = self.inbox.header()? {
                return Ok(header);
            }
            let most = self.shared.identity.format.read_ahead();
            match self.inbox.fill_at_most(&mut self.socket, HEADER_BYTES, most) {
                Err(error) if !is_tick(&error) || self.shared.connections.is_stopping() => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
    }

    fn answer_pings(&mut self) -> Result<(), WireError> {
        let mut told = None;
        loop {
            let header = self.next_header()?;
            if header.kind != Kind::Ping {
                return Err(header.unexpected());
            }
            let whole = HEADER_BYTES + header.body as usize;
            let Some(frame) = self.inbox.peek(whole) else {
                match self.inbox.fill(&mut self.socket, MAX_PULSE) {
                    Err(error) if !is_tick(&error) || self.shared.connections.is_stopping() => {
                        return Err(error.into());
                    }
                    _ => continue,
                }
            };
            let wanted = wire::parse_pulse(&header, &frame[HEADER_BYTES..])?;
            self.inbox.consume(whole);
            self.hold();
            if let Some(wanted) = wanted
                && self.shared.adoption.request(&wanted, Instant::now())
            {
                self.shared.keeper.tell();
            }
            let adopted = self.shared.adoption.told();
            let is_news = match &told {
                Some(told) => !Arc::ptr_eq(told, &adopted),
                None => !adopted.is_empty(),
            };
            wire::encode_pulse(&mut self.out, Kind::Pong, header.id, is_news.then_some(adopted.as_slice()));
            write_by(&mut self.socket, &self.out, Instant::now() + self.shared.timeouts.ask)?;
            told = Some(adopted);
        }
    }

    fn take_words(&mut self) -> Result<(), WireError> {
        loop {
            let header = self.next_header()?;
            if header.kind != Kind::Word {
                return Err(header.unexpected());
            }
            let whole = HEADER_BYTES + header.body as usize;
            let Some(frame) = self.inbox.peek(whole) else {
                match self.inbox.fill(&mut self.socket, whole) {
                    Err(error) if !is_tick(&error) || self.shared.connections.is_stopping() => {
                        return Err(error.into());
                    }
                    _ => continue,
                }
            };
            let word = wire::parse_word(&header, &frame[HEADER_BYTES..])?;
            self.inbox.consume(whole);
            self.hold();
            self.shared.rounds.heard(self.asker, word);
        }
    }

    fn answer_asks(&mut self) -> Result<(), WireError> {
        let mut answerer = Answerer::default();
        loop {
            let header = self.next_header()?;
            match header.kind {
                Kind::Ask => answerer.answer(self, &header)?,
                _ => return Err(header.unexpected()),
            }
        }
    }
}

//! The answering side: one thread accepts, one thread for each asker reads, computes and answers.

use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use belay_backend::FabricError;

use crate::Table;
use crate::assign::Assignment;
use crate::deadline::DeadlineStream;
use crate::group::Shared;
use crate::peer::lock;
use crate::ranks::{RankScratch, compute_at};
use crate::wire::{self, Ask, Failure, Header, Hello, Kind, WireError};

/// Open connections that a worker serves at most; a group has one for each other worker.
const MAX_CONNECTIONS: usize = 1024;
/// An asker pings its idle link; one that is silent for this long is gone.
const IDLE: Duration = Duration::from_secs(60);

/// Askers that are connected.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: Mutex<HashMap<u64, Open>>,
    stopping: AtomicBool,
}

#[derive(Debug)]
struct Open {
    socket: TcpStream,
    /// `(worker, uid)` once admitted.
    asker: Option<(u32, String)>,
}

impl Connections {
    /// Closes the connections of workers that `table` no longer knows.
    pub(crate) fn prune(&self, table: &Table) {
        let open = lock(&self.open);
        for connection in open.values() {
            let Some((worker, uid)) = &connection.asker else { continue };
            let known = table.workers().get(*worker as usize).is_some_and(|entry| entry.uid == *uid);
            if !known {
                close(&connection.socket);
            }
        }
    }

    /// Ends the accept loop (which needs one more connection to notice) and every connection.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        lock(&self.open).values().for_each(|connection| close(&connection.socket));
    }

    fn is_stopping(&self) -> bool {
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
                thread::sleep(Duration::from_millis(50));
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
    socket.set_nodelay(true)?;
    {
        let mut open = lock(&shared.connections.open);
        open.insert(id, Open { socket: socket.try_clone()?, asker: None });
        if shared.connections.is_stopping() {
            return Ok(());
        }
    }
    let mut connection = Connection {
        shared,
        stream: BufReader::with_capacity(64 * 1024, DeadlineStream::new(socket, shared.timeouts.handshake)),
        out: Vec::new(),
        ask: Ask::default(),
        y: Vec::new(),
        assignment: Assignment::default(),
        scratch: RankScratch::default(),
    };
    let hello = match connection.hello() {
        Ok(hello) => hello,
        Err(error @ WireError::Io(_)) => return Err(error),
        Err(error) => return connection.refuse(&error.to_string()),
    };
    let admitted = {
        // under the lock, so that a placement that comes in now either is seen here or prunes this connection
        let mut open = lock(&shared.connections.open);
        let epoch = shared.current.load_full();
        let admitted = shared.identity.admit(epoch.as_deref().map(|epoch| &epoch.table), &hello);
        if let (Ok(()), Some(connection)) = (&admitted, open.get_mut(&id)) {
            connection.asker = Some((hello.from.worker, hello.from.uid.clone()));
        }
        admitted.map(|()| epoch.map_or(0, |epoch| epoch.table.epoch()))
    };
    match admitted {
        Err(reason) => {
            tracing::warn!(
                worker = hello.from.worker,
                uid = hello.from.uid,
                reason,
                "refused a fabric connection"
            );
            connection.refuse(&reason)
        }
        Ok(epoch) => {
            wire::encode_welcome(&mut connection.out, &shared.identity.on_wire(epoch));
            connection.write()?;
            connection.answer_asks()
        }
    }
}

struct Connection<'a> {
    shared: &'a Shared,
    stream: BufReader<DeadlineStream>,
    out: Vec<u8>,
    ask: Ask,
    y: Vec<f32>,
    assignment: Assignment,
    scratch: RankScratch,
}

impl Connection<'_> {
    fn hello(&mut self) -> Result<Hello, WireError> {
        let header = wire::read_header(&mut self.stream)?;
        match header.kind {
            Kind::Hello => wire::read_hello(&mut self.stream, &header),
            kind => Err(WireError::Malformed { kind, what: "a connection begins with a hello".into() }),
        }
    }

    fn refuse(&mut self, reason: &str) -> Result<(), WireError> {
        wire::encode_refuse(&mut self.out, reason);
        self.write()?;
        // half-close, so that unread bytes of the other side don't turn the refusal into a reset
        self.stream.get_ref().socket().shutdown(Shutdown::Write)?;
        let mut rest = [0u8; 1024];
        for _ in 0..64 {
            if std::io::Read::read(&mut self.stream, &mut rest)? == 0 {
                break;
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), WireError> {
        Ok(self.stream.get_mut().write_all(&self.out)?)
    }

    fn answer_asks(&mut self) -> Result<(), WireError> {
        loop {
            self.stream.get_mut().set(IDLE);
            let header = wire::read_header(&mut self.stream)?;
            self.stream.get_mut().set(self.shared.timeouts.ask);
            match header.kind {
                Kind::Ping => wire::encode_empty(&mut self.out, Kind::Pong),
                Kind::Ask => self.answer(&header)?,
                kind => {
                    return Err(WireError::Malformed { kind, what: "an asker sends asks and pings".into() });
                }
            }
            self.stream.get_mut().set(self.shared.timeouts.ask);
            self.write()?;
        }
    }

    /// Reads an ask and leaves its answer in `out`; an error means that the stream can't be trusted any more.
    fn answer(&mut self, header: &Header) -> Result<(), WireError> {
        let hidden = self.shared.identity.hidden as usize;
        if let Err(error) = wire::read_ask(&mut self.stream, header, hidden, &mut self.ask) {
            if !matches!(error, WireError::Io(_)) {
                wire::encode_failed(&mut self.out, header.id, &Failure::Other(error.to_string()));
                self.write()?;
            }
            return Err(error);
        }
        self.y.clear();
        self.y.resize(self.ask.routes.len() * hidden, 0.0);
        let failure = match catch_unwind(AssertUnwindSafe(|| self.compute(hidden))) {
            Ok(Ok(())) => {
                self.shared.stats.served(self.ask.routes.len());
                wire::encode_result(&mut self.out, header.id, hidden, &self.y);
                return Ok(());
            }
            Ok(Err(FabricError::NotResident { layer, expert })) => Failure::NotResident { layer, expert },
            Ok(Err(error)) => Failure::Other(error.to_string()),
            Err(_) => Failure::Other(format!("computing experts of layer {} panicked", self.ask.layer)),
        };
        wire::encode_failed(&mut self.out, header.id, &failure);
        Ok(())
    }

    fn compute(&mut self, hidden: usize) -> Result<(), FabricError> {
        let me = self.shared.identity.worker;
        let ask = &self.ask;
        let Some(epoch) = self.shared.current.load_full() else {
            return Err(FabricError::Protocol { worker: me, cause: "no placement in force".into() });
        };
        self.assignment.fill_local(&epoch.table, me, ask.layer, &ask.routes)?;
        compute_at(
            &epoch.ranks,
            &self.assignment.local,
            ask.layer,
            hidden,
            &ask.x,
            &ask.routes,
            &mut self.y,
            &mut self.scratch,
        )
    }
}

//! Where the ranks of a new communicator meet: a listener in the process that made the root info.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::failure::{Outcome, fail};
use crate::hccl::codes;
use crate::hccl::message::{Incoming, Limit, send, wait};

/// Bytes of a root info.
pub const ROOT_INFO_BYTES: usize = 4108;
/// Ranks of the largest communicator.
pub const MOST_RANKS: u32 = 4096;
const PORTS: u16 = 32;

// raised when the simulator ends: the meetings of before end with it
static ERA: AtomicU64 = AtomicU64::new(0);

/// Ends all meetings.
pub fn end_all() {
    ERA.fetch_add(1, Ordering::AcqRel);
}

/// What the bytes of a root info say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootInfo {
    /// Where the ranks meet.
    pub address: SocketAddr,
    /// Which meeting it is.
    pub id: String,
}

impl RootInfo {
    /// The bytes that the ranks are given.
    pub fn encode(&self) -> Outcome<[u8; ROOT_INFO_BYTES]> {
        let mut bytes = [0; ROOT_INFO_BYTES];
        let text = serde_json::to_vec(self).or_else(|error| fail(codes::PARA, error.to_string()))?;
        bytes[..text.len()].copy_from_slice(&text);
        Ok(bytes)
    }

    /// Reads the bytes.
    pub fn decode(bytes: &[u8]) -> Outcome<Self> {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        serde_json::from_slice(text).or_else(|_| fail(codes::PARA, "these are not the bytes of a root info"))
    }
}

/// What a rank says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The meeting that it wants to be at.
    pub id: String,
    /// The ranks that it expects.
    pub ranks: u32,
    /// Its own.
    pub rank: u32,
    /// The number of its process, and its device there.
    pub place: (u64, u32),
    /// Its buffer in megabytes.
    pub buffer_mb: u32,
    /// The name that it was configured with.
    pub name: Option<String>,
    /// Where it listens for its peers.
    pub address: SocketAddr,
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// 0, or the result that its call fails with.
    pub code: i32,
    /// Why.
    pub text: String,
    /// The communicator's name.
    pub name: String,
    /// Where the ranks listen.
    pub addresses: Vec<SocketAddr>,
}

/// Why a rank does not fit those that are there, if it does not.
pub fn misfit(present: &[Hello], new: &Hello) -> Option<String> {
    if new.rank >= new.ranks {
        return Some(format!("rank {} of {}", new.rank, new.ranks));
    }
    let first = present.first()?;
    if first.ranks != new.ranks {
        return Some(format!("rank {} expects {} ranks, others {}", new.rank, new.ranks, first.ranks));
    }
    if (first.buffer_mb, &first.name) != (new.buffer_mb, &new.name) {
        return Some(format!("rank {} has another configuration", new.rank));
    }
    if present.iter().any(|hello| hello.rank == new.rank) {
        return Some(format!("rank {} is there twice", new.rank));
    }
    let same = present.iter().find(|hello| hello.place == new.place)?;
    Some(format!("ranks {} and {} are on the same device", same.rank, new.rank))
}

/// Binds a listener: to the base port or one of those behind it when there is one, else to any.
pub fn bind(ip: IpAddr, base: Option<u16>) -> Outcome<TcpListener> {
    let ports = match base {
        Some(base) => base..=base.saturating_add(PORTS - 1),
        None => 0..=0,
    };
    let mut last = String::new();
    for port in ports {
        match TcpListener::bind((ip, port)).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        }) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error.to_string(),
        }
    }
    fail(codes::TCP_CONNECT, format!("no port to listen on at {ip}: {last}"))
}

/// Opens a meeting that ends with the last rank, with the first that does not fit or leaves, or with the
/// time-out. `name` is for communicators that were not given one.
pub fn open(listener: TcpListener, id: String, name: String, time: Duration) {
    let meeting = Meeting { id, name, era: ERA.load(Ordering::Acquire), until: Instant::now() + time };
    std::thread::spawn(move || meeting.hold(&listener));
}

struct Meeting {
    id: String,
    name: String,
    era: u64,
    until: Instant,
}

struct Present {
    hellos: Vec<Hello>,
    sockets: Vec<Incoming>,
}

impl Meeting {
    fn hold(&self, listener: &TcpListener) {
        let mut present = Present { hellos: Vec::new(), sockets: Vec::new() };
        let mut strangers: Vec<Incoming> = Vec::new();
        let (code, text) = loop {
            accept(listener, &mut strangers);
            if let Err((code, text)) = self.admit(&mut strangers, &mut present) {
                break (code, text);
            }
            if present.hellos.first().is_some_and(|hello| hello.ranks as usize == present.hellos.len()) {
                break (0, String::new());
            }
            if let Some(at) = present.sockets.iter().position(Incoming::gone) {
                break (codes::TCP_TRANSFER, format!("rank {} left", present.hellos[at].rank));
            }
            if Instant::now() >= self.until || ERA.load(Ordering::Acquire) != self.era {
                let count = present.hellos.len();
                break (codes::TIMEOUT, format!("only {count} ranks came in time"));
            }
            let sockets = present.sockets.iter().chain(&strangers).map(|from| from.socket.as_raw_fd());
            let waited: Vec<_> = sockets.chain([listener.as_raw_fd()]).map(|fd| (fd, false)).collect();
            wait(&waited, Duration::from_millis(50));
        };
        self.close(code, text, &present);
    }

    fn admit(&self, strangers: &mut Vec<Incoming>, present: &mut Present) -> Result<(), (i32, String)> {
        for mut stranger in std::mem::take(strangers) {
            match stranger.poll::<Hello>() {
                Ok(None) => strangers.push(stranger),
                // who talks nonsense, or of another meeting, is not a rank of this one
                Err(_) => {}
                Ok(Some(hello)) if hello.id != self.id => {}
                Ok(Some(hello)) => {
                    let misfit = misfit(&present.hellos, &hello);
                    present.hellos.push(hello);
                    present.sockets.push(stranger);
                    if let Some(text) = misfit {
                        return Err((codes::PARA, text));
                    }
                }
            }
        }
        Ok(())
    }

    fn close(&self, code: i32, text: String, present: &Present) {
        let mut hellos: Vec<&Hello> = present.hellos.iter().collect();
        hellos.sort_by_key(|hello| hello.rank);
        let given = hellos.first().and_then(|hello| hello.name.clone());
        let answer = Answer {
            code,
            text,
            name: given.unwrap_or_else(|| self.name.clone()),
            addresses: hellos.iter().map(|hello| hello.address).collect(),
        };
        let limit = Limit { until: Instant::now() + Duration::from_secs(5), alive: &|| Ok(()) };
        for socket in &present.sockets {
            // a rank that is gone by now is noticed by those that connect to it
            let _ = send(&socket.socket, &answer, &limit);
        }
    }
}

/// Takes what has connected.
pub fn accept(listener: &TcpListener, into: &mut Vec<Incoming>) {
    loop {
        match listener.accept() {
            Ok((socket, _)) => into.extend(Incoming::new(socket).ok()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // nobody there; another failure shows up again at the next look, until the time-out
            Err(_) => return,
        }
    }
}

/// Comes to a meeting and waits for all others. A patient one tries again while nobody listens.
pub fn join(address: SocketAddr, hello: &Hello, patient: bool, limit: &Limit<'_>) -> Outcome<Answer> {
    let socket = loop {
        limit.check("connecting to the root")?;
        match TcpStream::connect_timeout(&address, limit.rest().max(Duration::from_millis(1))) {
            Ok(socket) => break socket,
            Err(error) if !patient => {
                return fail(codes::TCP_CONNECT, format!("the root at {address}: {error}"));
            }
            Err(_) => std::thread::sleep(limit.look()),
        }
    };
    let mut socket = Incoming::new(socket)?;
    send(&socket.socket, hello, limit)?;
    let answer: Answer = socket.receive(limit, "waiting for the other ranks")?;
    match answer.code {
        0 => Ok(answer),
        code => fail(code, answer.text),
    }
}

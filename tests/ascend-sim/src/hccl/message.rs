//! The messages of the set-up: JSON behind four bytes of length, on sockets that don't block.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Outcome, fail};
use crate::hccl::codes;

const LONGEST: usize = 1 << 20;
// how often a wait looks whether it is to end for another reason
const LOOK: Duration = Duration::from_millis(20);

/// Waits until one of the sockets can be read (and, where told, written), at most for `limit`.
pub fn wait(sockets: &[(RawFd, bool)], limit: Duration) {
    let mut entries: Vec<libc::pollfd> = sockets
        .iter()
        .map(|(fd, write)| libc::pollfd {
            fd: *fd,
            events: libc::POLLIN | if *write { libc::POLLOUT } else { 0 },
            revents: 0,
        })
        .collect();
    let milliseconds = limit.as_millis().clamp(1, 1000) as i32;
    // SAFETY: the array has the length given; a number that is no open file any more is only reported.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, milliseconds) };
}

/// How long a step of the set-up may take, and what else ends it.
pub struct Limit<'a> {
    /// The end.
    pub until: Instant,
    /// Fails when there is no point in going on.
    pub alive: &'a dyn Fn() -> Outcome,
}

impl Limit<'_> {
    /// Fails when the time is over.
    pub fn check(&self, what: &str) -> Outcome {
        (self.alive)()?;
        if Instant::now() >= self.until { fail(codes::TIMEOUT, format!("timed out: {what}")) } else { Ok(()) }
    }

    /// What is left of the time.
    pub fn rest(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// A while to wait before the next look.
    pub fn look(&self) -> Duration {
        self.rest().min(LOOK)
    }
}

/// A socket that a message comes from. It reads no byte beyond the message.
pub struct Incoming {
    /// The socket.
    pub socket: TcpStream,
    bytes: Vec<u8>,
}

fn broken<T>(error: impl std::fmt::Display) -> Outcome<T> {
    fail(codes::TCP_TRANSFER, format!("a connection of the set-up broke: {error}"))
}

impl Incoming {
    /// Expects a message from a socket, which from now on doesn't block.
    pub fn new(socket: TcpStream) -> Outcome<Self> {
        match socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true)) {
            Ok(()) => Ok(Self { socket, bytes: Vec::new() }),
            Err(error) => broken(error),
        }
    }

    /// The message, when all of it has come.
    pub fn poll<T: DeserializeOwned>(&mut self) -> Outcome<Option<T>> {
        loop {
            let len = match self.bytes.first_chunk::<4>() {
                Some(len) => u32::from_le_bytes(*len) as usize,
                None => 0,
            };
            if len > LONGEST {
                return broken("a message is too long");
            }
            let wanted = 4 + len - self.bytes.len();
            if self.bytes.len() >= 4 && wanted == 0 {
                return serde_json::from_slice(&self.bytes[4..]).map(Some).or_else(broken);
            }
            let mut part = vec![0; wanted];
            match self.socket.read(&mut part) {
                Ok(0) => return broken("the other side closed it"),
                Ok(n) => self.bytes.extend_from_slice(&part[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return broken(error),
            }
        }
    }

    /// Waits for the message.
    pub fn receive<T: DeserializeOwned>(&mut self, limit: &Limit<'_>, what: &str) -> Outcome<T> {
        loop {
            if let Some(message) = self.poll()? {
                return Ok(message);
            }
            limit.check(what)?;
            wait(&[(self.socket.as_raw_fd(), false)], limit.look());
        }
    }

    /// Whether the other side is gone, given that nothing more is expected from it.
    pub fn gone(&self) -> bool {
        !matches!(self.socket.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

/// Sends a message. It is small enough for a socket's buffer.
pub fn send(mut socket: &TcpStream, message: &impl Serialize, limit: &Limit<'_>) -> Outcome {
    let text = serde_json::to_vec(message).or_else(broken)?;
    let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&text);
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        match socket.write(rest) {
            Ok(n) => rest = &rest[n..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                limit.check("sending")?;
                wait(&[(socket.as_raw_fd(), true)], limit.look());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return broken(error),
        }
    }
    Ok(())
}

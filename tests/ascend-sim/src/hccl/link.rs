//! A connection between two ranks: frames that are written and read whole, however often a collective is
//! given up in the middle.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

const MAGIC: u32 = 0xBE1A_5100;
const HEAD: usize = 32;
const LONGEST: u64 = 1 << 30;
// how much is read in one go, so that one peer does not keep the others waiting
const READS: usize = 32;
const BUFFER: usize = 1 << 16;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A rank has begun a collective; the payload says which.
    Enter = 1,
    /// A piece of the data.
    Data = 2,
    /// The communicator is broken at the sender; the payload is the code that the receiver is to fail with.
    Broken = 3,
    /// The sender has destroyed its communicator.
    Bye = 4,
}

/// Which collective a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Counts the communicator's resumptions: what is older is void.
    pub generation: u32,
    /// 0 = collectives, others = one direction of a pair.
    pub channel: u32,
    /// Counts the collectives of the channel.
    pub number: u64,
}

struct Frame {
    kind: Kind,
    key: Key,
    payload: Vec<u8>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The peer destroyed its communicator.
    Destroyed,
    /// The peer is gone.
    Lost,
}

/// A connection to a peer.
pub struct Link {
    socket: Arc<TcpStream>,
    out: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    buffer: Box<[u8]>,
    inbox: VecDeque<Frame>,
    said_bye: bool,
    end: Option<End>,
}

impl Link {
    /// A link over a socket that doesn't block.
    pub fn new(socket: TcpStream) -> Self {
        Self {
            socket: Arc::new(socket),
            out: Vec::new(),
            written: 0,
            input: Vec::new(),
            buffer: vec![0; BUFFER].into(),
            inbox: VecDeque::new(),
            said_bye: false,
            end: None,
        }
    }

    /// The socket, to wait for.
    pub fn socket(&self) -> Arc<TcpStream> {
        self.socket.clone()
    }

    /// How it ended, if it did.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Whether all that was queued is written.
    pub fn flushed(&self) -> bool {
        self.out.is_empty()
    }

    /// Queues a frame.
    pub fn queue(&mut self, kind: Kind, key: Key, payload: &[u8]) {
        if self.end.is_some() {
            return;
        }
        let words = [MAGIC, kind as u32, key.generation, key.channel];
        words.iter().for_each(|word| self.out.extend_from_slice(&word.to_le_bytes()));
        self.out.extend_from_slice(&key.number.to_le_bytes());
        self.out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        self.out.extend_from_slice(payload);
    }

    /// Reads and writes what goes without waiting; whether anything did.
    pub fn pump(&mut self) -> bool {
        let read = self.read();
        let written = self.write();
        read || written
    }

    fn read(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..READS {
            if self.end.is_some() {
                break;
            }
            match (&*self.socket).read(&mut self.buffer) {
                Ok(0) => self.lose(),
                Ok(n) => {
                    self.input.extend_from_slice(&self.buffer[..n]);
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.lose(),
            }
            self.parse();
        }
        moved
    }

    fn lose(&mut self) {
        self.out.clear();
        self.written = 0;
        self.end.get_or_insert(if self.said_bye { End::Destroyed } else { End::Lost });
    }

    fn parse(&mut self) {
        let mut at = 0;
        while let Some(head) = self.input.get(at..at + HEAD) {
            let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
            let long = |i: usize| u64::from(word(i)) | u64::from(word(i + 4)) << 32;
            let kind = [Kind::Enter, Kind::Data, Kind::Broken, Kind::Bye]
                .into_iter()
                .find(|kind| *kind as u32 == word(4));
            let (Some(kind), MAGIC, len @ 0..=LONGEST) = (kind, word(0), long(24)) else {
                // no peer writes this
                return self.lose();
            };
            let key = Key { generation: word(8), channel: word(12), number: long(16) };
            let Some(payload) = self.input.get(at + HEAD..at + HEAD + len as usize) else { break };
            if kind == Kind::Bye {
                self.said_bye = true;
            } else {
                self.inbox.push_back(Frame { kind, key, payload: payload.to_vec() });
            }
            at += HEAD + len as usize;
        }
        self.input.drain(..at);
    }

    fn write(&mut self) -> bool {
        let mut moved = false;
        while self.written < self.out.len() {
            match (&*self.socket).write(&self.out[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return moved,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.lose(),
            }
        }
        self.out.clear();
        self.written = 0;
        moved
    }

    /// Takes the next frame of a kind that belongs to a collective.
    pub fn take(&mut self, kind: Kind, key: Key) -> Option<Vec<u8>> {
        let at = self.inbox.iter().position(|frame| frame.kind == kind && frame.key == key)?;
        self.inbox.remove(at).map(|frame| frame.payload)
    }

    /// The code of a peer that said its communicator is broken.
    pub fn broken(&self, generation: u32) -> Option<i32> {
        let broken = |frame: &&Frame| frame.kind == Kind::Broken && frame.key.generation == generation;
        let payload = &self.inbox.iter().find(broken)?.payload;
        payload.first_chunk().map(|code| i32::from_le_bytes(*code))
    }

    /// Drops what came for older generations.
    pub fn forget_before(&mut self, generation: u32) {
        self.inbox.retain(|frame| frame.key.generation >= generation);
    }

    /// Breaks the connection as a device that is lost does.
    pub fn cut(&mut self) {
        self.end = Some(End::Lost);
        // a socket that is not connected any more needs no shutting down
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Says good-bye and ends the connection.
    pub fn close(mut self) {
        self.queue(Kind::Bye, Key { generation: 0, channel: 0, number: 0 }, &[]);
        self.pump();
        // as in cut
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

//! What all collectives are made of: each rank of the group gives each other one some bytes.

use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::codes as rt;
use crate::hccl::comm::{Comm, Fault};
use crate::hccl::link::{Key, Kind, Link};
use crate::hccl::message::wait;
use crate::stream::Running;

/// The channel of what all ranks take part in.
pub const COLLECTIVE: u32 = 0;
// data goes in pieces of the communicator's buffer, but not larger ones than these
const LARGEST_PIECE: u64 = 4 << 20;
const POLL: Duration = Duration::from_millis(1);

/// What the ranks have to agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Which collective.
    pub op: Op,
    /// The `HcclDataType`.
    pub element: i32,
    /// The `HcclReduceOp`.
    pub reduce: i32,
    /// The root.
    pub root: u32,
    /// The number of elements, where it is the same on all ranks.
    pub count: u64,
}

/// Which collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Op {
    AllReduce = 1,
    ReduceScatter = 2,
    AllGather = 3,
    Broadcast = 4,
    SendRecv = 5,
    Barrier = 6,
    AlltoAll = 7,
    AlltoAllV = 8,
    Dispatch = 9,
    Combine = 10,
}

impl Call {
    // the call, what the sender gives this peer and what it expects from it
    fn encode(&self, gives: u64, expects: Option<u64>) -> Vec<u8> {
        let words = [self.op as u32, self.element as u32, self.reduce as u32, self.root];
        let longs = [self.count, gives, expects.unwrap_or(u64::MAX)];
        let words = words.into_iter().flat_map(u32::to_le_bytes);
        words.chain(longs.into_iter().flat_map(u64::to_le_bytes)).collect()
    }
}

/// What goes to and comes from one peer.
#[derive(Debug, Clone)]
pub struct Leg {
    /// The peer.
    pub peer: usize,
    /// The channel.
    pub channel: u32,
    /// The place of what it is given in the data.
    pub gives: Range<usize>,
    /// Bytes that are expected from it; none = as many as it says.
    pub expects: Option<u64>,
}

struct Progress {
    key: Key,
    entered: bool,
    queued: usize,
    total: u64,
    received: Vec<u8>,
    done: bool,
}

impl Progress {
    fn is_done(&self, leg: &Leg, link: &Link) -> bool {
        let sent = self.queued == leg.gives.len() && link.flushed();
        self.entered && sent && self.received.len() as u64 == self.total
    }
}

enum Step {
    Done,
    Moved,
    Idle(Vec<(Arc<TcpStream>, bool)>),
}

impl Comm {
    /// Gives each leg's peer its part of `data` and answers what came from each. It begins when all
    /// peers have come to the same call, and ends when all bytes are through.
    pub fn exchange(
        &self,
        running: &Running<'_>,
        call: Call,
        data: &[u8],
        legs: &[Leg],
    ) -> Result<Vec<Vec<u8>>, Fault> {
        let mut all: Vec<Progress> = legs.iter().map(|leg| self.begin(leg)).collect();
        self.with_links(|links| {
            for (leg, progress) in legs.iter().zip(&all) {
                if let Some(link) = &mut links[leg.peer] {
                    let payload = call.encode(leg.gives.len() as u64, leg.expects);
                    link.queue(Kind::Enter, progress.key, &payload);
                }
            }
            Ok(())
        })?;
        let mut last = Instant::now();
        loop {
            self.check(running)?;
            if self.device.hangs() {
                std::thread::sleep(POLL);
                continue;
            }
            match self.with_links(|links| self.step(call, data, legs, &mut all, links))? {
                Step::Done => return Ok(all.into_iter().map(|progress| progress.received).collect()),
                Step::Moved => last = Instant::now(),
                Step::Idle(sockets) => {
                    if self.settings.exec.is_some_and(|limit| last.elapsed() >= limit) {
                        let text = format!("{:?}: {}", call.op, self.missing(legs, &all));
                        return Err(Fault::quiet(rt::RT_TASK_TIMEOUT, text));
                    }
                    let waited: Vec<_> =
                        sockets.iter().map(|(socket, write)| (socket.as_raw_fd(), *write)).collect();
                    wait(&waited, POLL);
                }
            }
        }
    }

    fn begin(&self, leg: &Leg) -> Progress {
        let key = self.next_key(leg.peer, leg.channel);
        Progress { key, entered: false, queued: 0, total: 0, received: Vec::new(), done: false }
    }

    fn missing(&self, legs: &[Leg], all: &[Progress]) -> String {
        let absent = legs.iter().zip(all).find(|(_, progress)| !progress.entered);
        match absent {
            Some((leg, _)) => format!("rank {} did not come in time", leg.peer),
            None => format!("no progress for {:?}", self.settings.exec),
        }
    }

    fn step(
        &self,
        call: Call,
        data: &[u8],
        legs: &[Leg],
        all: &mut [Progress],
        links: &mut [Option<Link>],
    ) -> Result<Step, Fault> {
        let mut moved = false;
        let mut sockets = Vec::new();
        // what the ranks disagree on is found before what a peer's failure tells
        for (leg, progress) in legs.iter().zip(all.iter_mut()).filter(|(_, progress)| !progress.done) {
            let Some(link) = &mut links[leg.peer] else { continue };
            moved |= link.pump();
            if !progress.entered
                && let Some(theirs) = link.take(Kind::Enter, progress.key)
            {
                progress.total = agree(call, leg, &theirs)?;
                progress.entered = true;
                moved = true;
            }
        }
        for (leg, progress) in legs.iter().zip(all.iter_mut()).filter(|(_, progress)| !progress.done) {
            let Some(link) = &mut links[leg.peer] else {
                return Err(Fault::remote(leg.peer, "has no connection"));
            };
            if progress.entered {
                moved |= self.give(data, leg, progress, link);
                while let Some(piece) = link.take(Kind::Data, progress.key) {
                    progress.received.extend_from_slice(&piece);
                    moved = true;
                }
            }
            progress.done = progress.is_done(leg, link);
            if progress.done {
                continue;
            }
            if let Some(code) = link.broken(progress.key.generation) {
                let mut fault = Fault::remote(leg.peer, "failed in a collective");
                fault.failure.code = code;
                fault.tell = Some(code);
                return Err(fault);
            }
            if link.end().is_some() {
                return Err(Fault::remote(leg.peer, "is gone"));
            }
            sockets.push((link.socket(), !link.flushed()));
        }
        Ok(match (all.iter().all(|progress| progress.done), moved) {
            (true, _) => Step::Done,
            (false, true) => Step::Moved,
            (false, false) => Step::Idle(sockets),
        })
    }

    // queues the next piece when the last one is through
    fn give(&self, data: &[u8], leg: &Leg, progress: &mut Progress, link: &mut Link) -> bool {
        let piece = self.settings.buffer_bytes().min(LARGEST_PIECE) as usize;
        let mut moved = false;
        while progress.queued < leg.gives.len() && link.flushed() && link.end().is_none() {
            let first = leg.gives.start + progress.queued;
            let len = piece.min(leg.gives.len() - progress.queued);
            link.queue(Kind::Data, progress.key, &data[first..first + len]);
            progress.queued += len;
            moved |= link.pump();
        }
        moved
    }
}

/// Checks that a peer does the same; answers the bytes that it gives.
fn agree(call: Call, leg: &Leg, theirs: &[u8]) -> Result<u64, Fault> {
    let mine = call.encode(leg.gives.len() as u64, leg.expects);
    if theirs.len() != mine.len() || theirs[..24] != mine[..24] {
        return Err(Fault::mismatch(format!("rank {} is in another call than {call:?}", leg.peer)));
    }
    let long = |at: usize| theirs[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let (gives, expects) = (long(24), long(32));
    let wrong = |gives: u64, expects: Option<u64>| expects.is_some_and(|expects| expects != gives);
    let theirs_expect = (expects != u64::MAX).then_some(expects);
    if wrong(gives, leg.expects) || wrong(leg.gives.len() as u64, theirs_expect) {
        let text = format!(
            "rank {} gives {gives} bytes and expects {theirs_expect:?}; here {:?} are expected and {} given",
            leg.peer,
            leg.expects,
            leg.gives.len()
        );
        return Err(Fault::mismatch(text));
    }
    Ok(gives)
}

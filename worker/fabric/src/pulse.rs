//! The owner thread of a peer: keeps connected to it, pings it, and so knows how it is.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::dial::dial;
use crate::health::{Health, Unreachable};
use crate::link::{Link, Step};
use crate::peer::Peer;
use crate::shared::Shared;
use crate::socket::{Inbox, describe, end_when_unacknowledged, is_tick, is_vanished, write_by};
use crate::wire::{self, HEADER_BYTES, Kind, Purpose, WireError};

/// Pings that may be unanswered; after that none are sent until the peer answers.
const MOST_UNANSWERED: u64 = 64;

/// A connection that carries pings only.
struct Pulse {
    socket: TcpStream,
    inbox: Inbox,
    sent: u64,
    answered: u64,
    next: Instant,
    /// When the peer is told again what it shall load.
    tell: Instant,
    out: Vec<u8>,
}

/// Body of the owner thread, until the peer is stopped.
pub(crate) fn keep_connected(peer: &Peer, shared: &Shared) {
    let mut pulse: Option<Pulse> = None;
    let mut failures = 0;
    while !peer.is_stopped() {
        if shared.faults.cuts(peer.worker) {
            // connections stay as they are; only the silence shows
            shared.faults.wait_while_cut(peer.worker, shared.timeouts.tick);
            if pulse.is_some() {
                judge_silence(peer, shared);
            }
            continue;
        }
        let seen = peer.wake.count();
        match &mut pulse {
            None => match open(peer, shared) {
                Ok(fresh) => {
                    pulse = Some(fresh);
                    failures = 0;
                }
                Err(why) => {
                    let (timeouts, now) = (&shared.timeouts, Instant::now());
                    peer.judge(shared, |condition| {
                        condition.unreachable(&why, now, timeouts);
                        Some(why.reason().to_owned())
                    });
                    failures += 1;
                    peer.wake.wait_for(seen, timeouts.backoff(failures));
                }
            },
            Some(alive) => match alive.beat(peer, shared) {
                Ok(()) => {
                    judge_silence(peer, shared);
                    look_after_link(peer, shared, alive);
                    if alive.answered == alive.sent && !peer.needs_care() {
                        peer.wake.wait(seen, alive.next);
                    }
                }
                Err(error) => {
                    pulse = None;
                    peer.drop_link();
                    peer.judge(shared, |condition| {
                        if is_vanished(&error) {
                            condition.vanished()
                        } else {
                            condition.doubt()
                        }
                        Some(describe(&error))
                    });
                }
            },
        }
    }
    peer.drop_link();
}

/// Opens both connections.
fn open(peer: &Peer, shared: &Shared) -> Result<Pulse, Unreachable> {
    let timeouts = &shared.timeouts;
    // what was live a moment ago comes back at once, or is lost
    let within = if peer.health() == Health::Lost { timeouts.connect } else { timeouts.redial };
    let (socket, inbox) = dial(peer, shared, Purpose::Pings, within)?;
    end_when_unacknowledged(&socket, timeouts.unacknowledged)
        .map_err(|error| Unreachable::Gone(error.to_string()))?;
    if peer.needs_link() {
        peer.set_link(link(peer, shared, within)?, shared);
    }
    // one that an exchange still has may be dead; the exchange will notice
    peer.hear();
    peer.judge(shared, |condition| {
        condition.answers();
        Some("connected".into())
    });
    Ok(Pulse {
        socket,
        inbox,
        sent: 0,
        answered: 0,
        next: Instant::now(),
        tell: Instant::now(),
        out: Vec::new(),
    })
}

fn link(peer: &Peer, shared: &Shared, within: Duration) -> Result<Link, Unreachable> {
    let (socket, inbox) = dial(peer, shared, Purpose::Asks, within)?;
    Ok(Link::new(socket, inbox, shared.identity.format, shared.identity.hidden as usize))
}

fn judge_silence(peer: &Peer, shared: &Shared) {
    let (silence, timeouts) = (peer.silence(), &shared.timeouts);
    if silence >= timeouts.suspect {
        let lost = silence >= timeouts.lost;
        peer.judge(shared, |condition| {
            condition.silent(silence, timeouts);
            Some(if lost { "silent for long".into() } else { "silent".into() })
        });
    } else if peer.health() != Health::Live && !peer.needs_link() {
        peer.judge(shared, |condition| {
            condition.answers();
            Some("connected".into())
        });
    }
}

/// Dials a link if there is none, and reads away the answers that nobody waits for.
fn look_after_link(peer: &Peer, shared: &Shared, pulse: &Pulse) {
    if let Some((mut link, since)) = peer.take_draining() {
        match link.step(None) {
            Ok(Step::Nothing) if since.elapsed() < shared.timeouts.ask => peer.keep_draining(link, since),
            Ok(Step::Result(_) | Step::Failed(_)) => peer.bring_back(link, shared),
            Ok(Step::Nothing) => peer.lost_link("an answer did not come", shared),
            Err(error) => peer.lost_link(&describe(&error), shared),
        }
    }
    // a peer that does not answer pings would not answer a hello either
    if peer.needs_link() && pulse.answered == pulse.sent {
        match link(peer, shared, shared.timeouts.redial) {
            Ok(link) => {
                peer.set_link(link, shared);
                peer.hear();
                judge_silence(peer, shared);
            }
            Err(why) => peer.judge(shared, |condition| {
                condition.doubt();
                Some(why.reason().to_owned())
            }),
        }
    }
}

impl Pulse {
    /// What the peer shall load, if it is time to tell it. It is told again and again: it may see no loss itself, and
    /// then drops what nobody has wanted for a while.
    fn wanted(&mut self, peer: &Peer, shared: &Shared, now: Instant) -> Option<Vec<(u32, u32)>> {
        if now < self.tell {
            return None;
        }
        let current = shared.current()?;
        let dealt = current.routing.elsewhere.iter().filter(|(worker, _)| *worker == peer.worker);
        let wanted: Vec<(u32, u32)> = dealt.map(|(_, pair)| *pair).collect();
        if wanted.is_empty() {
            return None;
        }
        self.tell = now + shared.timeouts.release / 4;
        Some(wanted)
    }

    /// Pings if it is time, and reads what has come, for a tick at most.
    fn beat(&mut self, peer: &Peer, shared: &Shared) -> Result<(), WireError> {
        let now = Instant::now();
        if now >= self.next && self.sent - self.answered < MOST_UNANSWERED {
            self.sent += 1;
            self.next = now + shared.timeouts.pulse;
            let wanted = self.wanted(peer, shared, now);
            wire::encode_pulse(&mut self.out, Kind::Ping, self.sent, wanted.as_deref());
            write_by(&mut self.socket, &self.out, now + shared.timeouts.handshake)?;
        }
        while self.answered < self.sent && !peer.is_stopped() {
            if let Some(header) = self.inbox.header()? {
                let (Kind::Pong, whole) = (header.kind, HEADER_BYTES + header.body as usize) else {
                    return Err(header.unexpected());
                };
                if let Some(frame) = self.inbox.peek(whole) {
                    let adopted = wire::parse_pulse(&header, &frame[HEADER_BYTES..])?;
                    self.inbox.consume(whole);
                    self.answered = header.id.min(self.sent);
                    peer.hear();
                    if let Some(pairs) = adopted {
                        peer.set_adopted(pairs, shared);
                    }
                    continue;
                }
            }
            match self.inbox.fill(&mut self.socket, MAX_PULSE) {
                Ok(()) => {}
                Err(error) if is_tick(&error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Bytes of the largest ping or pong.
pub(crate) const MAX_PULSE: usize = HEADER_BYTES + 4 + 8 * wire::MAX_PAIRS;

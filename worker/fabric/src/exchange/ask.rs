//! Asks: made by the assignment, sent as the windows allow.

use std::sync::Arc;
use std::time::Instant;

use super::{Call, Exchange, Scratch};
use crate::health::Health;
use crate::link::{Question, Sent};
use crate::peer::Peer;
use crate::progress::Pulled;
use crate::shared::{Current, Shared};
use crate::socket::describe;
use crate::wire;

/// Asks that are under way on one link at most.
const WINDOW: usize = 16;
/// Bytes of results that are under way on one link at most, unless one alone is larger.
const WINDOW_BYTES: usize = 1 << 20;

impl Exchange<'_> {
    /// Makes the asks, and sends as many as the windows allow.
    pub(super) fn ask(&mut self, current: &Current) {
        let (format, hidden) = self.form();
        let limit = wire::routes_per_ask(self.shared.ask_bytes, format, hidden);
        for worker in 0..self.s.assignment.remote.len() as u32 {
            if self.s.assignment.remote[worker as usize].is_empty() {
                continue;
            }
            let Some(peer) = current.placements.peer(worker) else { continue };
            if !self.s.calls.iter().any(|call| Arc::ptr_eq(&call.peer, peer)) {
                // routes that can't be asked now stay open
                if self.shared.faults.cuts(worker) {
                    continue;
                }
                let Some(link) = peer.take() else { continue };
                self.s.calls.push(Call { peer: Arc::clone(peer), link });
            }
            let Scratch { assignment, progress, .. } = &mut *self.s;
            assignment.remote[worker as usize].chunks(limit).for_each(|piece| progress.ask(worker, piece));
        }
        for number in (0..self.s.calls.len()).rev() {
            self.send(number, current);
        }
    }

    /// Sends what the window of a call allows.
    pub(super) fn send(&mut self, number: usize, current: &Current) {
        let (form, shared) = (self.form(), self.shared);
        let row_bytes = form.0.row_bytes(form.1);
        let deadline = self.started + shared.timeouts.ask;
        loop {
            let Scratch { progress, calls, .. } = &mut *self.s;
            let Call { peer, link } = &mut calls[number];
            let worker = peer.worker;
            let Some(next) = progress.oldest(worker, false) else { return };
            let range = progress.asked[next].picks.clone();
            let (asks, routes) = progress.under_way(worker);
            if asks >= WINDOW || (asks > 0 && (routes + range.len()) * row_bytes > WINDOW_BYTES) {
                return;
            }
            // the pieces of a very large exchange: the list is copied, so that answers can come in meanwhile
            let picked = if asks == 0 { Vec::new() } else { progress.picks[range.clone()].to_vec() };
            let (layer, y) = (self.layer, &mut *self.y);
            let mut failures = Vec::new();
            let sent = if asks == 0 {
                let question =
                    Question { layer, x: self.x, routes: self.routes, picked: &progress.picks[range] };
                let adopt = |expert| current.routing.is_orphan(layer, expert);
                link.send(question, adopt, &mut |_| Ok(goes_on(peer, shared, deadline)))
            } else {
                let question = Question { layer, x: self.x, routes: self.routes, picked: &picked };
                let adopt = |expert| current.routing.is_orphan(layer, expert);
                link.send(question, adopt, &mut |link| {
                    loop {
                        match progress.pull(worker, link, y, form)? {
                            Pulled::Nothing => return Ok(goes_on(peer, shared, deadline)),
                            Pulled::Result(bytes) => shared.stats.received(bytes),
                            Pulled::Failed(failure, range) => failures.push((failure, range)),
                        }
                        if progress.under_way(worker).0 == 0 {
                            return Ok(goes_on(peer, shared, deadline));
                        }
                    }
                })
            };
            match sent {
                Ok(Sent::All(rows, bytes)) => {
                    shared.stats.sent(rows, bytes);
                    if let Some(next) = progress.oldest(worker, false) {
                        progress.asked[next].sent = true;
                    }
                }
                Ok(Sent::GivenUp) => return self.lose(number, "it takes nothing"),
                Err(error) => return self.lose(number, &describe(&error)),
            }
            for (failure, range) in failures {
                self.failed(worker, failure, range);
            }
        }
    }
}

/// Whether it makes sense to go on writing to a peer that takes nothing.
fn goes_on(peer: &Peer, shared: &Shared, deadline: Instant) -> bool {
    let cut = shared.is_stopped() || peer.is_stopped();
    !cut && peer.health() == Health::Live && Instant::now() < deadline
}

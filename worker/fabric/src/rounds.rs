//! Rounds between the devices of several workers: who sits together, and what becomes of an exchange that goes this way.
//!
//! Workers whose devices can exchange rows by themselves sit in a circle (see [`belay_backend::Collective`]). The first live
//! worker of the placement in force brings it about, by words over connections of their own; a circle lasts as long as its
//! workers do, over any number of placements. An asker rings for a round; who has nothing to ask joins it all the same. When
//! somebody is lost, or a round fails, the circle is broken, the exchange goes over TCP, and a circle of those that are left
//! is made. So a circle is never needed, and whoever is lost costs an exchange what a wait costs, not an error.

mod assembly;
mod circle;
mod line;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use belay_backend::{Collective, Seat};

use self::assembly::{Act, Assembly, View};
pub(crate) use self::circle::Circle;
use self::line::Line;
use crate::auth::nonce;
use crate::health::Health;
use crate::shared::Shared;
use crate::sync::lock;
use crate::wire::Word;

/// Words that wait for the thread of [`convene`] at most.
const WAITING: usize = 256;
/// How long ranks are waited for when the fabric is shut down.
const END_WITHIN: Duration = Duration::from_secs(2);
/// How long a word other than a ring may take.
const SAY_WITHIN: Duration = Duration::from_secs(1);

/// A circle as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircleState {
    /// Its workers, ascending.
    pub workers: Vec<u32>,
    /// Rounds so far.
    pub rounds: u64,
}

/// Something for the thread of [`convene`].
enum Happening {
    Heard(u32, Word),
    Joined(u64),
    Ended,
}

/// What all threads see of circles.
pub(crate) struct Rounds {
    circle: ArcSwapOption<Circle>,
    happenings: SyncSender<Happening>,
    inbox: Mutex<Option<Receiver<Happening>>>,
}

impl Default for Rounds {
    fn default() -> Self {
        let (happenings, inbox) = sync_channel(WAITING);
        Self { circle: ArcSwapOption::empty(), happenings, inbox: Mutex::new(Some(inbox)) }
    }
}

impl Rounds {
    /// The circle that exchanges may go by.
    pub(crate) fn open(&self) -> Option<Arc<Circle>> {
        self.circle.load_full().filter(|circle| circle.is_open())
    }

    pub(crate) fn state(&self) -> Option<CircleState> {
        let circle = self.open()?;
        Some(CircleState { workers: circle.members.clone(), rounds: circle.rounds.load(Ordering::Relaxed) })
    }

    /// Ends a circle that an exchange has waited for in vain.
    pub(crate) fn give_up(&self, circle: &Circle, reason: &str) {
        if circle.close(reason) {
            self.tell(Happening::Ended);
        }
    }

    /// What another worker said.
    pub(crate) fn heard(&self, from: u32, word: Word) {
        if let Word::Ring { circle: number, round } = word {
            if let Some(circle) = self.circle.load().as_ref().filter(|circle| circle.number == number) {
                circle.rung(round);
            }
            return;
        }
        self.tell(Happening::Heard(from, word));
    }

    fn tell(&self, happening: Happening) {
        match self.happenings.try_send(happening) {
            // without a collective nobody reads; and who talks that much is not waited for
            Ok(()) | Err(TrySendError::Disconnected(_) | TrySendError::Full(_)) => {}
        }
    }
}

/// Body of the thread that brings circles about, until the fabric stops.
pub(crate) fn convene(shared: &Arc<Shared>, collective: &Arc<dyn Collective>) {
    let Some(inbox) = lock(&shared.rounds.inbox).take() else { return };
    let mut convener = Convener {
        shared,
        collective,
        assembly: Assembly::new(Instant::now()),
        lines: HashMap::new(),
        threads: Vec::new(),
    };
    while !shared.is_stopped() {
        let happening = match inbox.recv_timeout(shared.timeouts.tick) {
            Ok(happening) => Some(happening),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        convener.step(happening);
    }
    convener.stop();
}

struct Convener<'a> {
    shared: &'a Arc<Shared>,
    collective: &'a Arc<dyn Collective>,
    assembly: Assembly,
    lines: HashMap<u32, Arc<Line>>,
    /// Those of ranks, of this circle and of earlier ones.
    threads: Vec<(u64, JoinHandle<()>)>,
}

impl Convener<'_> {
    fn step(&mut self, happening: Option<Happening>) {
        let (now, me) = (Instant::now(), self.shared.identity.worker);
        let acts = match happening {
            None => Vec::new(),
            Some(Happening::Heard(from, word)) => self.assembly.heard(now, me, from, word),
            Some(Happening::Joined(number)) => {
                self.assembly.joined(now, number);
                if let Some(circle) = self.shared.rounds.open() {
                    tracing::info!(workers = ?circle.members, ranks = circle.ranks(), "devices exchange rows");
                }
                Vec::new()
            }
            // looked at below, whatever woke this thread
            Some(Happening::Ended) => Vec::new(),
        };
        self.perform(acts);
        let closed = self.shared.rounds.circle.load_full().filter(|circle| circle.is_closed());
        if let Some(circle) = closed {
            let acts = self.assembly.ended(now, me, circle.number, &circle.reason());
            self.perform(acts);
        }
        self.threads.retain(|(_, thread)| !thread.is_finished());
        let view = self.look();
        let acts = self.assembly.tick(now, &view, || {
            let random = nonce();
            u64::from_le_bytes(std::array::from_fn(|at| random[at]))
        });
        self.perform(acts);
    }

    fn look(&self) -> View {
        let mut view = View { me: self.shared.identity.worker, ..View::default() };
        let seated = self.assembly.seated();
        view.busy = self.threads.iter().any(|(number, _)| Some(*number) != seated);
        let Some(current) = self.shared.current() else { return view };
        let placements = &current.placements;
        let Some(table) = &placements.in_force else { return view };
        view.ranks = table.ranks_per_worker();
        view.all = true;
        for worker in 0..table.workers().len() as u32 {
            let health = match placements.peer(worker) {
                Some(peer) => peer.health(),
                None if placements.member && worker == view.me => Health::Live,
                None => Health::Lost,
            };
            view.all &= health == Health::Live;
            if health == Health::Live {
                view.live.push(worker);
            }
            if health != Health::Lost {
                view.known.push(worker);
            }
        }
        // a worker with a new pod is another one than the one that sat there
        let circle = self.shared.rounds.circle.load_full();
        if let Some(circle) = circle.filter(|circle| Some(circle.number) == seated) {
            view.known.retain(|worker| circle.sat(*worker, placements.peer(*worker).map(|peer| &*peer.uid)));
        }
        view
    }

    fn perform(&mut self, acts: Vec<Act>) {
        let mut acts: std::collections::VecDeque<Act> = acts.into();
        while let Some(act) = acts.pop_front() {
            match act {
                Act::Root => {
                    let made = self.collective.root();
                    if let Err(error) = &made {
                        tracing::warn!(%error, "devices cannot exchange rows");
                    }
                    acts.extend(self.assembly.rooted(Instant::now(), self.shared.identity.worker, made.ok()));
                }
                Act::Send { to, word } => self.say(to, &word),
                Act::Join { circle, members, root } => self.join(circle, members, &root),
                Act::Leave { circle, reason } => self.leave(circle, &reason),
            }
        }
    }

    /// The line to a worker, dialled if there is none.
    fn line(&mut self, worker: u32) -> Option<Arc<Line>> {
        let placements = self.shared.placements();
        let peer = placements.peer(worker)?;
        if let Some(line) = self.lines.get(&worker).filter(|line| line.is_open() && line.uid == peer.uid) {
            return Some(Arc::clone(line));
        }
        match Line::dial(peer, self.shared) {
            Ok(line) => {
                let line = Arc::new(line);
                self.lines.insert(worker, Arc::clone(&line));
                Some(line)
            }
            Err(reason) => {
                tracing::debug!(worker, reason, "no line for rounds");
                None
            }
        }
    }

    fn say(&mut self, to: u32, word: &Word) {
        // what does not arrive is noticed by its absence
        if let Some(line) = self.line(to)
            && let Err(reason) = line.say(word, Instant::now() + SAY_WITHIN)
        {
            tracing::debug!(worker = to, reason, "a word about rounds is lost");
        }
    }

    fn join(&mut self, number: u64, members: Vec<u32>, root: &[u8]) {
        let (me, shared) = (self.shared.identity.worker, self.shared);
        let ranks_per_worker = shared.placements().ranks.len() as u32;
        let others: Vec<u32> = members.iter().copied().filter(|member| *member != me).collect();
        let lines: Option<Vec<Arc<Line>>> = others.iter().map(|&other| self.line(other)).collect();
        let is_reached = lines.is_some();
        let circle = Circle::new(number, members, ranks_per_worker, lines.unwrap_or_default());
        shared.rounds.circle.store(Some(Arc::clone(&circle)));
        let first = circle.first_rank(me).filter(|_| is_reached);
        let Some(first) = first else {
            return shared.rounds.give_up(&circle, "not every worker of it can be reached");
        };
        for rank in 0..ranks_per_worker {
            let seat = Seat { root: root.to_vec(), ranks: circle.ranks(), rank: first + rank };
            let (theirs, collective) = (Arc::clone(shared), Arc::clone(self.collective));
            let seated = Arc::clone(&circle);
            let spawned = thread::Builder::new()
                .name(format!("fabric-rounds-{rank}"))
                .spawn(move || sit(&theirs, &seated, &*collective, rank, &seat));
            match spawned {
                Ok(thread) => self.threads.push((number, thread)),
                Err(error) => shared.rounds.give_up(&circle, &error.to_string()),
            }
        }
    }

    fn leave(&self, number: u64, reason: &str) {
        let circle = self.shared.rounds.circle.load_full();
        if let Some(circle) = circle.filter(|circle| circle.number == number) {
            tracing::warn!(workers = ?circle.members, reason, "devices no longer exchange rows: they go over TCP");
            circle.close(reason);
            self.shared.rounds.circle.store(None);
        }
    }

    fn stop(mut self) {
        if let Some(circle) = self.shared.rounds.circle.swap(None) {
            circle.close("the fabric is shut down");
            let word = Word::Break { circle: circle.number, reason: "a worker leaves".into() };
            let me = self.shared.identity.worker;
            for other in circle.members.iter().filter(|member| **member != me) {
                if let Some(line) = self.lines.get(other) {
                    // it is noticed anyhow, a moment later
                    let _ = line.say(&word, Instant::now() + self.shared.timeouts.tick);
                }
            }
        }
        let until = Instant::now() + END_WITHIN;
        while self.threads.iter().any(|(_, thread)| !thread.is_finished()) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        for (number, thread) in self.threads.drain(..) {
            if thread.is_finished() {
                // a panic there has closed the circle already
                let _ = thread.join();
            } else {
                // joining a circle can't be broken off, and lasts as long as the device waits for somebody who is gone
                tracing::warn!(circle = number, "a rank is still joining a circle, and is left to itself");
            }
        }
    }
}

/// Body of the thread of a rank.
fn sit(shared: &Shared, circle: &Circle, collective: &dyn Collective, rank: u32, seat: &Seat) {
    /// However the thread ends, nobody goes on without it.
    struct Guard<'a>(&'a Shared, &'a Circle);
    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            self.1.close("a rank left");
            self.0.rounds.tell(Happening::Ended);
        }
    }
    let _guard = Guard(shared, circle);
    let mut sitting = match collective.join(rank, seat) {
        Ok(sitting) => sitting,
        Err(error) => {
            circle.close(&error.to_string());
            return;
        }
    };
    if circle.joined() {
        shared.rounds.tell(Happening::Joined(circle.number));
    }
    for round in 1.. {
        let Some(slot) = circle.enter(rank, round) else { break };
        let is_asker = slot.is_some();
        let is_hopeless = || circle.is_closed() || (is_asker && has_silent_member(shared, circle));
        let outcome = sitting.round(slot.as_ref().map(|slot| &slot.ask), &|| !is_hopeless());
        if !circle.leave(rank, slot, outcome) {
            break;
        }
    }
}

/// Whether a worker that an asker waits for says nothing: what it has is better asked of others.
fn has_silent_member(shared: &Shared, circle: &Circle) -> bool {
    let placements = shared.placements();
    let me = shared.identity.worker;
    circle
        .members
        .iter()
        .filter(|member| **member != me)
        .any(|member| placements.peer(*member).is_none_or(|peer| peer.health() != Health::Live))
}

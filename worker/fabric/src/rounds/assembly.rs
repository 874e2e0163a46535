//! Who comes together with whom, and when. Pure: takes what was heard and seen, gives what is to be done.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::wire::Word;

/// So long everybody may take to agree.
const AGREE_WITHIN: Duration = Duration::from_secs(10);
/// Without all workers of the placement a circle is made when those that are there have been the same for this long.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause after the first circle that failed; it doubles up to the longest.
const PAUSE_LEAST: Duration = Duration::from_millis(500);
const PAUSE_MOST: Duration = Duration::from_secs(60);
/// A circle that has lasted for this long is no failure when it ends.
const LASTED: Duration = Duration::from_secs(60);

/// What a worker sees of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// This worker.
    pub me: u32,
    /// Workers of the placement in force that are live, ascending; this one too, if it is a member.
    pub live: Vec<u32>,
    /// The same with those that are suspect.
    pub known: Vec<u32>,
    /// All workers of the placement are live.
    pub all: bool,
    /// Ranks of each worker.
    pub ranks: u32,
    /// Threads of an earlier circle have not left yet.
    pub busy: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Make a root, and come back with [`Assembly::rooted`].
    Root,
    Send {
        to: u32,
        word: Word,
    },
    Join {
        circle: u64,
        members: Vec<u32>,
        root: Vec<u8>,
    },
    Leave {
        circle: u64,
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Apart,
    /// This worker leads; `missing` have not agreed yet.
    Gathering {
        circle: u64,
        members: Vec<u32>,
        root: Vec<u8>,
        missing: BTreeSet<u32>,
        until: Instant,
    },
    /// Another one leads, and was told so or will be.
    Agreed {
        circle: u64,
        members: Vec<u32>,
        root: Vec<u8>,
        told: bool,
        until: Instant,
    },
    /// In it, or about to.
    Seated {
        circle: u64,
        members: Vec<u32>,
        joined: Option<Instant>,
    },
}

/// One worker's part in bringing circles about.
#[derive(Debug)]
pub(crate) struct Assembly {
    phase: Phase,
    failures: u32,
    /// No circle is offered before.
    again: Instant,
    /// The live workers, and since when they are the same.
    live: (Vec<u32>, Instant),
}

impl Assembly {
    pub(crate) fn new(now: Instant) -> Self {
        Self { phase: Phase::Apart, failures: 0, again: now, live: (Vec::new(), now) }
    }

    /// The circle that this worker sits in, or is about to.
    pub(crate) fn seated(&self) -> Option<u64> {
        match &self.phase {
            Phase::Seated { circle, .. } => Some(*circle),
            _ => None,
        }
    }

    /// Looks whether something is due. `fresh` gives the number of a circle that is to be offered.
    pub(crate) fn tick(&mut self, now: Instant, view: &View, fresh: impl FnOnce() -> u64) -> Vec<Act> {
        if self.live.0 != view.live {
            self.live = (view.live.clone(), now);
        }
        let is_settled = view.all || now >= self.live.1 + PATIENCE;
        let leads = view.live.first() == Some(&view.me);
        match &mut self.phase {
            Phase::Apart => {
                let enough = view.live.len() as u32 * view.ranks > 1;
                if !(leads && is_settled && enough) || view.busy || now < self.again {
                    return Vec::new();
                }
                let missing = view.live.iter().copied().filter(|member| *member != view.me).collect();
                let (members, until) = (view.live.clone(), now + AGREE_WITHIN);
                self.phase = Phase::Gathering { circle: fresh(), members, root: Vec::new(), missing, until };
                vec![Act::Root]
            }
            Phase::Gathering { members, until, .. } => {
                if now < *until && members.iter().all(|member| view.known.contains(member)) {
                    return Vec::new();
                }
                self.give_up(now, view.me, "not everybody agreed")
            }
            Phase::Agreed { circle, members, told, until, .. } => {
                let leader = members.first().copied().unwrap_or_default();
                if now >= *until || !view.known.contains(&leader) {
                    self.phase = Phase::Apart;
                    return Vec::new();
                }
                if *told || view.busy {
                    return Vec::new();
                }
                *told = true;
                vec![Act::Send { to: leader, word: Word::Agree { circle: *circle } }]
            }
            Phase::Seated { members, joined, .. } => {
                if let Some(gone) = members.iter().find(|member| !view.known.contains(member)) {
                    let reason = format!("worker {gone} is lost");
                    return self.give_up(now, view.me, &reason);
                }
                let others = view.live.iter().any(|live| !members.contains(live));
                if others && leads && is_settled && joined.is_some() {
                    let acts = self.give_up(now, view.me, "more workers have come");
                    self.again = now;
                    return acts;
                }
                Vec::new()
            }
        }
    }

    /// The root that [`Act::Root`] asked for.
    pub(crate) fn rooted(&mut self, now: Instant, me: u32, made: Option<Vec<u8>>) -> Vec<Act> {
        let Phase::Gathering { circle, members, root, missing, .. } = &mut self.phase else {
            return Vec::new();
        };
        let Some(made) = made else { return self.give_up(now, me, "no root") };
        if missing.is_empty() {
            let (circle, members) = (*circle, members.clone());
            return self.sit(circle, members, made, &[]);
        }
        root.clone_from(&made);
        let offer = Word::Offer { circle: *circle, members: members.clone(), root: made };
        missing.iter().map(|&to| Act::Send { to, word: offer.clone() }).collect()
    }

    /// What another worker said.
    pub(crate) fn heard(&mut self, now: Instant, me: u32, from: u32, word: Word) -> Vec<Act> {
        match word {
            Word::Offer { circle, members, root } => {
                if members.first() != Some(&from) || !members.contains(&me) {
                    let reason = "an offer is for its members, and comes from the first".to_owned();
                    return vec![Act::Send { to: from, word: Word::Decline { circle, reason } }];
                }
                if matches!(self.phase, Phase::Gathering { .. }) && me < from {
                    let reason = format!("worker {me} gathers them");
                    return vec![Act::Send { to: from, word: Word::Decline { circle, reason } }];
                }
                let acts = self.give_up(now, me, "another circle is offered");
                let until = now + 2 * AGREE_WITHIN;
                self.phase = Phase::Agreed { circle, members, root, told: false, until };
                acts
            }
            Word::Agree { circle: about } => {
                let Phase::Gathering { circle, members, root, missing, .. } = &mut self.phase else {
                    return Vec::new();
                };
                if *circle != about || !missing.remove(&from) || !missing.is_empty() {
                    return Vec::new();
                }
                let (members, root) = (std::mem::take(members), std::mem::take(root));
                let others: Vec<u32> = members.iter().copied().filter(|member| *member != me).collect();
                self.sit(about, members, root, &others)
            }
            Word::Join { circle: about } => match &mut self.phase {
                Phase::Agreed { circle, members, root, .. } if *circle == about => {
                    let (members, root) = (std::mem::take(members), std::mem::take(root));
                    self.sit(about, members, root, &[])
                }
                _ => Vec::new(),
            },
            Word::Decline { circle, reason } | Word::Break { circle, reason } => {
                if self.circle() == Some(circle) {
                    return self.give_up(now, me, &format!("worker {from}: {reason}"));
                }
                Vec::new()
            }
            Word::Ring { .. } => Vec::new(),
        }
    }

    /// All own ranks are in.
    pub(crate) fn joined(&mut self, now: Instant, about: u64) {
        if let Phase::Seated { circle, joined, .. } = &mut self.phase
            && *circle == about
        {
            *joined = Some(now);
        }
    }

    /// An own rank could not go on.
    pub(crate) fn ended(&mut self, now: Instant, me: u32, about: u64, reason: &str) -> Vec<Act> {
        if self.seated() == Some(about) { self.give_up(now, me, reason) } else { Vec::new() }
    }

    fn circle(&self) -> Option<u64> {
        match &self.phase {
            Phase::Apart => None,
            Phase::Gathering { circle, .. } | Phase::Agreed { circle, .. } | Phase::Seated { circle, .. } => {
                Some(*circle)
            }
        }
    }

    fn sit(&mut self, circle: u64, members: Vec<u32>, root: Vec<u8>, tell: &[u32]) -> Vec<Act> {
        self.phase = Phase::Seated { circle, members: members.clone(), joined: None };
        let mut acts: Vec<Act> =
            tell.iter().map(|&to| Act::Send { to, word: Word::Join { circle } }).collect();
        acts.push(Act::Join { circle, members, root });
        acts
    }

    /// Leaves whatever is under way, and tells the others.
    fn give_up(&mut self, now: Instant, me: u32, reason: &str) -> Vec<Act> {
        let mut acts = Vec::new();
        let (circle, members) = match std::mem::replace(&mut self.phase, Phase::Apart) {
            Phase::Apart => return acts,
            // who has agreed to nothing yet need not be told
            Phase::Agreed { circle, members, .. } => (circle, members[..members.len().min(1)].to_vec()),
            Phase::Gathering { circle, members, .. } => (circle, members),
            Phase::Seated { circle, members, joined } => {
                acts.push(Act::Leave { circle, reason: reason.to_owned() });
                if joined.is_some_and(|joined| now >= joined + LASTED) {
                    self.failures = 0;
                }
                (circle, members)
            }
        };
        self.again = now + PAUSE_LEAST.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MOST);
        self.failures += 1;
        let word = Word::Break { circle, reason: reason.to_owned() };
        let others = members.into_iter().filter(|member| *member != me);
        acts.extend(others.map(|to| Act::Send { to, word: word.clone() }));
        acts
    }
}

#[cfg(test)]
mod tests;

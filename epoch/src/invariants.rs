//! What must hold whatever happens, said once: for the model, for tests, and for checks at run time. See
//! `docs/reference/experts.md`. Cheap: each check reads every copy of a placement in use once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use belay_proto::admin::Placement;

use crate::{
    document::{self, Copy},
    member::Member,
};

/// What is known of a group at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot<'a> {
    /// In force, as written.
    pub in_force: Option<&'a Placement>,
    /// Processes of workers, at most one for each pod.
    pub workers: Vec<Worker<'a>>,
}

/// What is known of a worker at one moment.
#[derive(Clone, Debug)]
pub struct Worker<'a> {
    /// Index in its group.
    pub index: u32,
    /// UID of its pod.
    pub uid: &'a str,
    /// It lives, as far as the operator can know, and has not gone back: not since its node was thought lost, nor since
    /// its process began anew, has it to catch up with what it used before. Others may find what they look for
    /// or be told that it is not here; what counts must find it.
    pub counts: bool,
    /// Epoch that it routes by; 0 for none.
    pub uses: u64,
    /// The placement of that epoch, if known.
    pub document: Option<&'a Placement>,
    /// Epochs under which it may be asked.
    pub serves: Vec<u64>,
    /// Since which epoch its process has taken part in every change; 0 for none, or if not known.
    pub since: u64,
    /// Epoch up to which it has dropped what is not needed.
    pub retired: u64,
    /// Copies on its ranks, if known.
    pub resident: Option<&'a BTreeSet<Copy>>,
}

impl<'a> Worker<'a> {
    /// A worker that is known whole.
    #[must_use]
    pub fn of(member: &'a Member, counts: bool) -> Self {
        let slot = member.slot();
        Self {
            index: slot.worker,
            uid: &slot.uid,
            counts,
            uses: member.in_use().map_or(0, |document| document.epoch),
            document: member.in_use().map(AsRef::as_ref),
            serves: member.serves().map(|document| document.epoch).collect(),
            since: member.since(),
            retired: member.retired_epoch(),
            resident: Some(member.resident()),
        }
    }

    fn is_named_by(&self, document: &Placement) -> bool {
        document::is_member(document, self.index, self.uid)
    }
}

/// The invariants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// A worker that uses epoch e finds every copy that e names on a living member at that member.
    Found,
    /// No copy is dropped before every living member of its placement uses a later one.
    Kept,
    /// Epochs in force never go back; a target is never used before Commit was written.
    Forward,
    /// Every expert has a live copy as long as faults leave one.
    Covered,
}

impl Invariant {
    /// Name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Kept => "kept",
            Self::Forward => "forward",
            Self::Covered => "covered",
        }
    }
}

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// Who and what, for the log.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "invariant {}: {}", self.invariant.name(), self.text)
    }
}

fn violation(invariant: Invariant, text: String) -> Violation {
    Violation { invariant, text }
}

/// All that can be checked at one moment.
#[must_use]
pub fn check(snapshot: &Snapshot<'_>) -> Vec<Violation> {
    let mut all = found(snapshot);
    all.extend(kept(snapshot));
    all.extend(not_ahead(snapshot));
    all.extend(covered(snapshot));
    all
}

/// Every copy is where those who use a placement look for it: at a worker that serves that placement (and one that counts,
/// and was there from that epoch on, serves whatever those that count use).
#[must_use]
pub fn found(snapshot: &Snapshot<'_>) -> Vec<Violation> {
    let mut used: BTreeMap<u64, (&Placement, Vec<&Worker<'_>>)> = BTreeMap::new();
    for worker in &snapshot.workers {
        if let Some(document) = worker.document {
            used.entry(worker.uses).or_insert((document, vec![])).1.push(worker);
        }
    }
    let mut violations = vec![];
    for (document, askers) in used.values() {
        let missing = missing(document, snapshot);
        for holder in snapshot.workers.iter().filter(|worker| worker.is_named_by(document)) {
            for asker in askers {
                let itself = std::ptr::eq(*asker, holder);
                let serves = itself || holder.serves.contains(&asker.uses);
                let pair = format!("worker {} ({}) uses epoch {}", asker.index, asker.uid, asker.uses);
                if let Some(copy) = missing.get(&holder.index).filter(|_| serves) {
                    let text = format!("{pair}, worker {} ({}) lacks {copy:?}", holder.index, holder.uid);
                    violations.push(violation(Invariant::Found, text));
                }
                let has_been_there = holder.since > 0 && holder.since <= asker.uses;
                if !serves && asker.counts && holder.counts && has_been_there {
                    let text = format!(
                        "{pair}, worker {} ({}) serves {:?}",
                        holder.index, holder.uid, holder.serves
                    );
                    violations.push(violation(Invariant::Found, text));
                }
            }
        }
    }
    violations
}

/// By worker index, one copy that a placement gives to it and that it does not have.
fn missing(document: &Placement, snapshot: &Snapshot<'_>) -> BTreeMap<u32, Copy> {
    let known: BTreeMap<u32, &BTreeSet<Copy>> = snapshot
        .workers
        .iter()
        .filter(|worker| worker.is_named_by(document))
        .filter_map(|worker| Some((worker.index, worker.resident?)))
        .collect();
    document::all_copies(document)
        .filter_map(|copy| {
            let owner = document::owner(document, copy.rank)?;
            (!known.get(&owner)?.contains(&copy)).then_some((owner, copy))
        })
        .collect()
}

/// Nobody has dropped what somebody who counts still routes by.
#[must_use]
pub fn kept(snapshot: &Snapshot<'_>) -> Vec<Violation> {
    let counting = snapshot.workers.iter().filter(|worker| worker.counts && worker.uses > 0);
    let Some(last) = counting.min_by_key(|worker| worker.uses) else { return vec![] };
    let ahead = snapshot.workers.iter().filter(|worker| worker.retired > last.uses);
    ahead
        .map(|worker| {
            let text = format!(
                "worker {} ({}) has retired what is before epoch {}, worker {} ({}) uses epoch {}",
                worker.index, worker.uid, worker.retired, last.index, last.uid, last.uses
            );
            violation(Invariant::Kept, text)
        })
        .collect()
}

/// Nobody uses what is not in force, and an epoch means one placement.
#[must_use]
pub fn not_ahead(snapshot: &Snapshot<'_>) -> Vec<Violation> {
    let mut violations = vec![];
    let mut meaning: BTreeMap<u64, &Placement> = BTreeMap::new();
    meaning.extend(snapshot.in_force.map(|document| (document.epoch, document)));
    let written = snapshot.in_force.map_or(0, |document| document.epoch);
    for worker in &snapshot.workers {
        let who = format!("worker {} ({}) uses epoch {}", worker.index, worker.uid, worker.uses);
        if worker.uses > written {
            violations.push(violation(Invariant::Forward, format!("{who}, in force is {written}")));
        }
        if let Some(document) = worker.document
            && *meaning.entry(worker.uses).or_insert(document) != document
        {
            violations
                .push(violation(Invariant::Forward, format!("{who}, which means something else as well")));
        }
    }
    violations
}

/// What is in force, and what a process uses, has not gone back from one moment to a later one.
#[must_use]
pub fn forward(before: &Snapshot<'_>, after: &Snapshot<'_>) -> Vec<Violation> {
    let mut violations = vec![];
    let epoch = |snapshot: &Snapshot<'_>| snapshot.in_force.map_or(0, |document| document.epoch);
    if epoch(after) < epoch(before) {
        let text = format!("epoch {} is in force after epoch {}", epoch(after), epoch(before));
        violations.push(violation(Invariant::Forward, text));
    }
    for worker in &after.workers {
        let same = |old: &&Worker<'_>| old.uid == worker.uid && old.since > 0 && old.since == worker.since;
        if let Some(old) = before.workers.iter().find(same)
            && worker.uses > 0
            && worker.uses < old.uses
        {
            let text = format!(
                "worker {} ({}) uses epoch {} after epoch {}",
                worker.index, worker.uid, worker.uses, old.uses
            );
            violations.push(violation(Invariant::Forward, text));
        }
    }
    violations
}

/// Every expert that the placement in force names on a worker that counts, and was there from that epoch on, is
/// resident on a worker that counts.
#[must_use]
pub fn covered(snapshot: &Snapshot<'_>) -> Vec<Violation> {
    let Some(document) = snapshot.in_force else { return vec![] };
    let counting: Vec<&Worker<'_>> = snapshot.workers.iter().filter(|worker| worker.counts).collect();
    let is_there = |index: u32| {
        counting.iter().any(|worker| {
            let since = worker.since > 0 && worker.since <= document.epoch;
            worker.index == index && since && worker.resident.is_some() && worker.is_named_by(document)
        })
    };
    let there: BTreeSet<u32> =
        document.workers.iter().map(|worker| worker.index).filter(|index| is_there(*index)).collect();
    let resident: BTreeSet<(u32, u32)> = counting
        .iter()
        .filter_map(|worker| worker.resident)
        .flatten()
        .map(|copy| (copy.layer, copy.expert))
        .collect();
    let lost = document::all_copies(document).find(|copy| {
        let named = document::owner(document, copy.rank).is_some_and(|owner| there.contains(&owner));
        named && !resident.contains(&(copy.layer, copy.expert))
    });
    lost.map(|copy| {
        violation(Invariant::Covered, format!("no live copy of layer {} expert {}", copy.layer, copy.expert))
    })
    .into_iter()
    .collect()
}

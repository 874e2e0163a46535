//! A group in small: operators, an API server, a network that delays, repeats and loses, and workers that fail. The decisions
//! are the crate's own; only what happens to them is played. A fault in a decision can be made on purpose ([`Fault`]), to
//! show that it would be noticed.
#![allow(dead_code, reason = "each test takes what it needs")]

mod play;

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    sync::Arc,
};

use belay_epoch::{
    Intent,
    conductor::{self, MemberStatus},
    document::{Copy, Slot, copies},
    member::Member,
};
use belay_proto::admin::{Placement, SetPlacementRequest};

/// `[layer][expert]` = ranks.
pub type Layout = Vec<Vec<Vec<u32>>>;

/// A decision made wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Commit is written before all have prepared.
    CommitsEarly,
    /// Retire is written before all use the new placement.
    RetiresEarly,
    /// A target that replaces another takes its epoch.
    ReusesEpoch,
    /// A request without a target makes a worker forget its target.
    Forgets,
    /// A worker drops what its own placements do not need, without being told that it may.
    DropsEarly,
    /// A worker routes by its target once that is prepared.
    UsesTarget,
    /// One epoch in common, in use or prepared, is taken to mean that all copies are where either side looks for them.
    ServesAny,
    /// The optimistic lock is missing.
    WritesBlindly,
}

/// What is played.
#[derive(Clone, Debug)]
pub struct Setup {
    pub workers: u32,
    pub ranks: u32,
    pub experts: u32,
    pub layouts: Vec<Layout>,
    pub operators: usize,
    /// Operators ask workers one by one, so that what they know is of different times.
    pub asks_one_by_one: bool,
    /// One copy is loaded in a step, not all.
    pub loads_one_by_one: bool,
    pub budget: Budget,
    pub fault: Option<Fault>,
}

/// How often things may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Another layout is wanted.
    pub changes: u8,
    /// A pod ends, or is given up, and another one takes its slot.
    pub deaths: u8,
    /// A process ends and begins anew in the same pod.
    pub restarts: u8,
    /// The control plane takes a pod for lost, which goes on.
    pub losses: u8,
}

#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// All that was ever in the API server; the last is there now.
    pub history: Vec<Arc<Intent>>,
    pub operators: Vec<Option<Arc<View>>>,
    /// By slot.
    pub pods: Vec<Arc<Pod>>,
    /// Processes that go on although their slot has another pod.
    pub zombies: Vec<Arc<Pod>>,
    pub layout: usize,
    pub budget: Budget,
    /// What went back with the last step.
    pub went_back: Vec<String>,
}

/// What an operator has read and not acted on yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Index in the history.
    pub intent: usize,
    pub members: Vec<conductor::Member>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    pub member: Member,
    pub life: u32,
    /// It has ended, and its slot is empty.
    pub gone: bool,
    /// As the API server says.
    pub lives: bool,
    /// It was taken for lost, or its process began anew, and it has not caught up since: what it reported before is not true
    /// any more.
    pub doubted: bool,
    /// Requests that were sent to it, by the intents that they state. Any of them can arrive at any time, and again.
    pub sent: BTreeSet<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// An operator reads the intent and asks all workers.
    Observe(usize),
    /// It asks one worker again.
    Ask(usize, usize),
    /// It decides, writes if its lock holds, and sends. Without the API server, or if it ends here, see `Crash`.
    Act(usize),
    /// It forgets all that it has read.
    Crash(usize),
    /// A request arrives: worker, intent that it states.
    Deliver(usize, usize),
    Load(usize),
    Drop(usize),
    /// A process begins anew in its pod, with a placement of this intent mounted (or none).
    Restart(usize, Option<usize>),
    /// A pod ends.
    End(usize),
    /// Another pod takes the slot of one that has ended, or is thought lost.
    Replace(usize),
    /// The API server says that a pod is lost, or that it is back.
    Lose(usize),
    Find(usize),
    Want(usize),
}

impl Pod {
    fn new(setup: &Setup, index: u32, life: u32) -> Self {
        let slot = Slot {
            group: "g".into(),
            revision: "r".into(),
            worker: index,
            workers: setup.workers,
            uid: format!("u{index}.{life}"),
            ranks: setup.ranks,
            layers: setup.layouts[0].len() as u32,
            experts: setup.experts,
        };
        Self {
            member: Member::new(slot),
            life,
            gone: false,
            lives: true,
            doubted: false,
            sent: BTreeSet::new(),
        }
    }

    pub fn uses(&self) -> u64 {
        self.member.in_use().map_or(0, |document| document.epoch)
    }

    pub fn counts(&self) -> bool {
        self.lives && !self.doubted
    }

    pub fn observed(&self) -> conductor::Member {
        let status = MemberStatus {
            in_force: self.uses(),
            prepared: self.member.prepared_epoch(),
            retired: self.member.retired_epoch(),
            known: self.member.known_epoch(),
            ..MemberStatus::default()
        };
        let slot = self.member.slot();
        conductor::Member {
            index: slot.worker,
            uid: slot.uid.clone(),
            lives: self.lives,
            status: Some(status),
        }
    }

    fn accept(&mut self, request: &SetPlacementRequest, fault: Option<Fault>) -> bool {
        let forgets =
            fault == Some(Fault::Forgets) && request.target.is_none() && self.member.target().is_some();
        let mut member = if forgets { self.without_target() } else { self.member.clone() };
        let Ok(change) = member.accept(request) else { return false };
        self.member = member;
        change.any() || forgets
    }

    fn without_target(&self) -> Member {
        let mut member = Member::new(self.member.slot().clone());
        let in_force = self.member.in_force().map(|document| (**document).clone());
        let _ = member.accept(&SetPlacementRequest {
            retire_epoch: in_force.as_ref().map_or(0, |d| d.epoch),
            in_force,
            target: None,
        });
        member.loaded(self.member.resident().iter().copied());
        member
    }

    fn to_load(&self) -> Vec<Copy> {
        let slot = self.member.slot();
        let lists = self.member.to_load();
        let copies = lists.iter().zip(slot.worker * slot.ranks..);
        copies
            .flat_map(|(list, rank)| list.iter().map(move |&(layer, expert)| Copy { rank, layer, expert }))
            .collect()
    }

    fn to_drop(&self, fault: Option<Fault>) -> Vec<Copy> {
        if fault != Some(Fault::DropsEarly) {
            return self.member.to_drop();
        }
        let worker = self.member.slot().worker;
        let kept = [self.member.in_use(), self.member.in_force(), self.member.target()];
        let needed: BTreeSet<Copy> =
            kept.into_iter().flatten().flat_map(|document| copies(document, worker)).collect();
        self.member.resident().difference(&needed).copied().collect()
    }
}

impl State {
    /// For people: who knows and holds what.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (at, intent) in self.history.iter().enumerate() {
            let epoch = intent.in_force.as_ref().map(|document| document.epoch);
            let operation = intent.operation.as_ref().map(|operation| (operation.epoch, operation.phase));
            text += &format!("intent {at}: in force {epoch:?}, operation {operation:?}\n");
        }
        for pod in self.pods.iter().chain(&self.zombies) {
            let member = &pod.member;
            let serves: Vec<u64> = member.serves().map(|document| document.epoch).collect();
            text += &format!(
                "{} lives {} doubted {}: told {:?}, target {:?}, uses {}, serves {serves:?}, retired {}, holds {:?}\n",
                member.slot().uid,
                pod.lives,
                pod.doubted,
                member.in_force().map(|document| document.epoch),
                member.target().map(|document| document.epoch),
                pod.uses(),
                member.retired_epoch(),
                member.resident()
            );
        }
        text
    }

    pub fn intent(&self) -> &Arc<Intent> {
        &self.history[self.history.len() - 1]
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for intent in &self.history {
            intent.in_force.iter().for_each(|document| hash_document(document, hasher));
            if let Some(operation) = &intent.operation {
                (operation.epoch, operation.phase).hash(hasher);
                operation.target.iter().for_each(|document| hash_document(document, hasher));
            }
            intent.operation.is_some().hash(hasher);
        }
        for view in &self.operators {
            view.as_ref().map(|view| view.intent).hash(hasher);
            for (view, member) in
                view.iter().flat_map(|view| view.members.iter().map(move |member| (view, member)))
            {
                (&member.uid, member.lives).hash(hasher);
                if let Some(status) = &member.status {
                    // what else it knows makes no difference to any decision
                    let is_ahead = status.known > self.history[view.intent].highest_epoch();
                    (status.in_force, status.prepared, status.retired, is_ahead).hash(hasher);
                }
            }
        }
        for pod in self.pods.iter().chain(&self.zombies) {
            (pod.life, pod.gone, pod.lives, pod.doubted, &pod.sent).hash(hasher);
            hash_member(&pod.member, hasher);
        }
        (self.layout, self.budget, &self.went_back).hash(hasher);
    }
}

fn hash_document<H: Hasher>(document: &Placement, hasher: &mut H) {
    document.epoch.hash(hasher);
    document.workers.iter().for_each(|worker| worker.uid.hash(hasher));
    document.layers.iter().for_each(|layer| layer.experts.hash(hasher));
}

/// All that decides what a member does next. Documents of one epoch are the same, but for a fault.
fn hash_member<H: Hasher>(member: &Member, hasher: &mut H) {
    let epoch = |document: Option<&Arc<Placement>>| document.map(|document| document.epoch);
    (epoch(member.in_force()), epoch(member.in_use()), member.since(), member.retired_epoch()).hash(hasher);
    member.target().iter().for_each(|document| hash_document(document, hasher));
    member.serves().for_each(|document| document.epoch.hash(hasher));
    (member.retire_epoch(), member.resident()).hash(hasher);
}

//! The course of a rollout, by the operator's own decisions: pure. Each round asks the operator's planner what it would do,
//! does it, and lets everything under way come to its end: groups whose pods have nodes get ready, groups that drain go. Where
//! only time is waited for, it passes. An analysis finds nothing bad.
use std::collections::BTreeMap;

use belay_crds::TrafficRole;
use belay_operator::{
    group::{Group, WorkerPod},
    reconcile::{
        build,
        plan::{self, Course, Plan, PlanError},
        validate::Validated,
    },
    recovery::{self, Ask},
    revision::Record,
    rollout::{Evidence, Health, Phase, Strategy},
};
use k8s_openapi::{
    api::core::v1::Pod,
    jiff::{SignedDuration, Timestamp},
};
use serde::Serialize;
use thiserror::Error;

use super::{
    demand::{self, Amounts, BadQuantity},
    pack::{self, Candidate, Misfit},
    room::Room,
};

/// More rounds than any rollout needs: each makes or removes a group.
const MOST_ROUNDS: usize = 10_000;

/// More holds than any rollout has: one for each step of a canary.
const MOST_HOLDS: usize = 100;

/// Stands for the image of the operator's configuration where the spec names none: it is no part of a hash.
pub const DEFAULT_IMAGE: &str = "the operator's default";

/// From where a course starts.
#[derive(Clone, Debug)]
pub struct Start {
    /// What is asked for.
    pub wanted: Validated,
    /// Groups that exist.
    pub groups: Vec<Group>,
    /// Their pods as they are, by name: those say what is asked for on nodes.
    pub pods: BTreeMap<String, Pod>,
    /// Revisions that are kept.
    pub revisions: Vec<Record>,
    /// Nodes; `None`: they are not known, and every pod gets one.
    pub rooms: Option<Vec<Room>>,
    /// When.
    pub now: Timestamp,
}

/// What happens until nothing more does.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sequence {
    /// One after the other.
    pub rounds: Vec<Round>,
    /// Ready groups at the moment with the fewest, from the first step on.
    pub fewest_ready: u32,
    /// Groups that exist at the moment with the most, draining ones included.
    pub most_groups: u32,
    /// Of those, how many are more than wanted.
    pub surge_groups: u32,
    /// Groups of the new revision that are ready in the end.
    pub updated: u32,
    /// Groups of other revisions that are left in the end.
    pub left: Vec<String>,
    /// Pods that never get a node.
    pub misfits: Vec<Misfit>,
    /// Rounds in which groups load.
    pub loads: u32,
    /// Rounds in which groups drain.
    pub drains: u32,
    /// Seconds for which steps, previews and old groups are held.
    pub hold_seconds: u64,
    /// Groups that the strategy lets exist on top of the wanted ones.
    pub surge: u32,
    /// Where the rollout is in the end: as `status.rollout.phase`.
    pub phase: String,
}

/// What is done at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Round {
    /// Groups that are created.
    pub create: Vec<String>,
    /// Groups that are drained, then removed.
    pub drain: Vec<String>,
    /// Pods that are made for groups that exist.
    pub replace: Vec<String>,
    /// Pods that get a node, and which: for people to see, the scheduler may choose others.
    pub placed: BTreeMap<String, String>,
    /// Pods that get none, for now.
    pub waiting: Vec<Misfit>,
    /// Groups that are ready while this goes on.
    pub ready: u32,
    /// Groups that exist meanwhile.
    pub groups: u32,
    /// Share of new requests that the new revision has, in percent; absent: as many as its groups take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_percent: Option<u32>,
}

/// Why there is no course.
#[derive(Debug, Error)]
pub enum CourseError {
    /// The operator has no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// What a pod asks for can't be read.
    #[error("pod {pod}")]
    Demand {
        /// Which.
        pod: String,
        /// Why.
        #[source]
        source: BadQuantity,
    },
    /// Times add up to more than a calendar has.
    #[error("the times of the rollout")]
    Time(#[from] jiff::Error),
    /// The operator's decisions go on and on.
    #[error("the rollout does not come to an end within {MOST_ROUNDS} steps")]
    Endless,
}

/// Plays it through. Also says which revision is asked for.
///
/// # Errors
/// If no revision can be made of the spec, or a quantity is none.
pub fn sequence(start: Start) -> Result<(Sequence, Record), CourseError> {
    let mut scene = Scene::open(start)?;
    let mut sequence = Sequence { fewest_ready: u32::MAX, ..Sequence::default() };
    for _ in 0..MOST_ROUNDS {
        let plan = scene.plan()?;
        let got_on = scene.note(&plan);
        let mut round = scene.act(&plan)?;
        scene.place(&mut round);
        round.ready = count(scene.groups.iter().filter(|group| group.ready() && !group.draining()));
        round.groups = count(scene.groups.iter());
        let of_new = plan.stage.shares.iter().find(|share| share.role != TrafficRole::Stable);
        round.weight_percent = of_new.map(|share| share.percent);
        sequence.fewest_ready = sequence.fewest_ready.min(round.ready);
        sequence.most_groups = sequence.most_groups.max(round.groups);
        sequence.surge = sequence.surge.max(plan.stage.surge);
        let end = scene.come_to_an_end();
        let acts = !(round.create.is_empty() && round.drain.is_empty() && round.replace.is_empty());
        if !acts && !got_on && end == End::default() {
            // a hold is over after its time; whatever else is waited for does not come by itself
            let hold = scene.longest_hold();
            if plan.stage.phase == Phase::Holding && hold > 0 && scene.held < MOST_HOLDS {
                scene.held += 1;
                scene.now = scene.now.saturating_add(SignedDuration::from_secs(hold))?;
                sequence.hold_seconds += u64::try_from(scene.hold_of(&plan)).unwrap_or(0);
                continue;
            }
            sequence.misfits = round.waiting;
            sequence.surge_groups = sequence.most_groups.saturating_sub(scene.wanted.budget.desired);
            let (new, left): (Vec<&Group>, Vec<&Group>) =
                scene.groups.iter().partition(|group| group.revision == plan.target.revision);
            sequence.updated = count(new.iter().filter(|group| group.ready()));
            sequence.left = left.iter().map(|group| group.name.clone()).collect();
            sequence.phase = format!("{:?}", plan.stage.phase);
            return Ok((sequence, plan.target));
        }
        sequence.loads += u32::from(end.got_ready);
        sequence.drains += u32::from(end.went);
        let shifts = round.weight_percent.is_some() && round.weight_percent != scene.share;
        scene.share = round.weight_percent;
        if acts || shifts || !round.placed.is_empty() {
            sequence.rounds.push(round);
        }
    }
    Err(CourseError::Endless)
}

/// What came to its end in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    got_ready: bool,
    went: bool,
}

/// A pod in the play: what it asks for, and where it is.
struct Actor {
    candidate: Candidate,
    /// Whether it has a node.
    placed: bool,
    /// Which, if that one is known.
    room: Option<usize>,
}

struct Scene {
    wanted: Validated,
    groups: Vec<Group>,
    revisions: Vec<Record>,
    rooms: Option<Vec<Room>>,
    now: Timestamp,
    /// By name.
    actors: BTreeMap<String, Actor>,
    /// How often time has passed.
    held: usize,
    /// Share of the new revision in the round before.
    share: Option<u32>,
}

impl Scene {
    fn open(start: Start) -> Result<Self, CourseError> {
        let Start { wanted, groups, pods, revisions, rooms, now } = start;
        let actors = BTreeMap::new();
        let mut scene = Self { wanted, groups, revisions, rooms, now, actors, held: 0, share: None };
        let present: Vec<String> =
            scene.groups.iter().flat_map(Group::pods).map(|(_, pod)| pod.name.clone()).collect();
        for pod in present.iter().filter_map(|name| pods.get(name)) {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            let room = scene.rooms.iter().flatten().position(|room| Some(room.node.as_str()) == node);
            scene.enter(pod.clone(), node.is_some(), room)?;
        }
        Ok(scene)
    }

    fn enter(&mut self, pod: Pod, placed: bool, room: Option<usize>) -> Result<(), CourseError> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let asked: Amounts =
            demand::of_pod(&pod).map_err(|source| CourseError::Demand { pod: name.clone(), source })?;
        self.actors.insert(name, Actor { candidate: Candidate { pod, asked }, placed, room });
        Ok(())
    }

    fn leave(&mut self, pod: &str) {
        let Some(Actor { candidate, room: Some(room), .. }) = self.actors.remove(pod) else { return };
        if let Some(room) = self.rooms.as_mut().and_then(|rooms| rooms.get_mut(room)) {
            room.clear(&candidate.asked);
        }
    }

    /// What the operator would do now.
    fn plan(&self) -> Result<Plan, PlanError> {
        let evidence = Evidence::default();
        plan::plan(&self.wanted, &self.groups, &self.revisions, Some(DEFAULT_IMAGE), &evidence, self.now)
    }

    /// Writes down how far the rollout is; says whether that is news.
    fn note(&mut self, plan: &Plan) -> bool {
        let is_news = !self.revisions.contains(&plan.target);
        self.revisions.retain(|record| record.revision != plan.target.revision);
        self.revisions.push(plan.target.clone());
        is_news
    }

    /// How long what the strategy holds is held at most.
    fn longest_hold(&self) -> i64 {
        match &self.wanted.rules.strategy {
            Strategy::RollingUpdate { .. } => 0,
            Strategy::Canary { steps } => steps.iter().map(|(_, hold)| *hold).max().unwrap_or(0),
            Strategy::BlueGreen { preview_seconds, keep_seconds, .. } => *preview_seconds.max(keep_seconds),
        }
    }

    /// How long what is held now is held.
    fn hold_of(&self, plan: &Plan) -> i64 {
        let step = usize::try_from(plan.stage.state.step).unwrap_or(usize::MAX);
        match &self.wanted.rules.strategy {
            Strategy::RollingUpdate { .. } => 0,
            Strategy::Canary { steps } => steps.get(step).map_or(0, |(_, hold)| *hold),
            Strategy::BlueGreen { preview_seconds, .. } if step == 0 => *preview_seconds,
            Strategy::BlueGreen { keep_seconds, .. } => *keep_seconds,
        }
    }

    /// Does it.
    fn act(&mut self, plan: &Plan) -> Result<Round, CourseError> {
        let mut round = Round::default();
        for group_plan in &plan.groups {
            let Some(index) = self.groups.iter().position(|group| group.name == group_plan.name) else {
                continue;
            };
            match &group_plan.course {
                Course::Run { create, first_ready } => {
                    for removal in &group_plan.remove {
                        self.leave(&removal.pod);
                        vacate(&mut self.groups, index, |pod| pod.uid == removal.uid);
                    }
                    let Some(group) = self.groups.get_mut(index) else { continue };
                    group.first_ready = group.first_ready.or(*first_ready);
                    let (name, revision) = (group.name.clone(), group.revision.clone());
                    let record = self.revisions.iter().find(|record| record.revision == revision).cloned();
                    for worker in create {
                        if let Some(record) = &record {
                            round.replace.push(self.start_pod(index, record, &name, *worker)?);
                        }
                    }
                }
                Course::Drain { since, .. } => {
                    let Some(group) = self.groups.get_mut(index) else { continue };
                    if group.draining_since.replace(*since).is_none() {
                        round.drain.push(group.name.clone());
                    }
                }
                // its pods are gone: it goes at the end of the round
                Course::Clear => (),
            }
        }
        for new in &plan.create {
            let workers = usize::try_from(new.record.data.content.group.workers).unwrap_or(0);
            let ordinal =
                belay_crds::labels::group_ordinal(&self.wanted.name, &new.record.revision, &new.name);
            self.groups.push(Group {
                name: new.name.clone(),
                revision: new.record.revision.clone(),
                ordinal: ordinal.unwrap_or(u32::MAX),
                recorded: true,
                slots: vec![None; workers],
                ..Group::default()
            });
            let index = self.groups.len() - 1;
            for worker in (0u32..).take(workers) {
                self.start_pod(index, &new.record, &new.name, worker)?;
            }
            round.create.push(new.name.clone());
        }
        Ok(round)
    }

    fn start_pod(
        &mut self,
        index: usize,
        record: &Record,
        group: &str,
        worker: u32,
    ) -> Result<String, CourseError> {
        let pod = build::pod(&self.wanted, record, group, worker);
        let name = pod.metadata.name.clone().unwrap_or_default();
        self.enter(pod, false, None)?;
        let slots = self.groups.get_mut(index).map(|group| &mut group.slots);
        if let Some(slot) = slots.and_then(|slots| slots.get_mut(worker as usize)) {
            *slot = Some(WorkerPod { name: name.clone(), uid: name.clone(), ..WorkerPod::default() });
        }
        Ok(name)
    }

    /// Looks for nodes for pods that have none.
    fn place(&mut self, round: &mut Round) {
        let waiting: Vec<String> =
            self.actors.iter().filter(|(_, actor)| !actor.placed).map(|(name, _)| name.clone()).collect();
        let candidates: Vec<Candidate> =
            waiting.iter().filter_map(|name| Some(self.actors.get(name)?.candidate.clone())).collect();
        let places = match &mut self.rooms {
            Some(rooms) => pack::place(&candidates, rooms).into_iter().map(|place| place.map(Some)).collect(),
            None => vec![Some(None); candidates.len()],
        };
        for ((name, candidate), place) in waiting.iter().zip(&candidates).zip(places) {
            let rooms = self.rooms.as_deref().unwrap_or_default();
            let Some(room) = place else {
                round.waiting.push(pack::explain(candidate, rooms));
                continue;
            };
            let node = room.and_then(|room| rooms.get(room)).map(|room| room.node.clone());
            round.placed.insert(name.clone(), node.unwrap_or_default());
            if let Some(actor) = self.actors.get_mut(name) {
                (actor.placed, actor.room) = (true, room);
            }
            let pods = self.groups.iter_mut().flat_map(|group| group.slots.iter_mut().flatten());
            for pod in pods.filter(|pod| pod.name == *name) {
                // the scheduler was what it waited for
                pod.trouble = None;
            }
        }
    }

    /// Groups that drain are gone, pods that end have ended, groups whose pods have nodes are ready; what is broken stays so.
    fn come_to_an_end(&mut self) -> End {
        let mut end = End::default();
        let gone: Vec<String> = self
            .groups
            .iter()
            .filter(|group| group.draining())
            .flat_map(Group::pods)
            .map(|(_, pod)| pod.name.clone())
            .collect();
        let before = self.groups.len();
        self.groups.retain(|group| !group.draining());
        end.went = self.groups.len() < before;
        let ending = self.groups.iter().flat_map(Group::pods).filter(|(_, pod)| pod.terminating);
        let ending: Vec<String> = ending.map(|(_, pod)| pod.name.clone()).collect();
        gone.iter().chain(&ending).for_each(|pod| self.leave(pod));
        for index in 0..self.groups.len() {
            end.went |= vacate(&mut self.groups, index, |pod| pod.terminating);
        }
        let (actors, wanted, revisions, now) = (&self.actors, &self.wanted, &self.revisions, self.now);
        for group in &mut self.groups {
            let has_node = |slot: &Option<WorkerPod>| {
                let pod = slot.as_ref();
                pod.is_some_and(|pod| actors.get(&pod.name).is_some_and(|actor| actor.placed))
            };
            let can = !group.slots.is_empty() && group.slots.iter().all(has_node);
            if group.ready() || !can || is_broken(wanted, group, revisions, now) {
                continue;
            }
            for pod in group.slots.iter_mut().flatten() {
                (pod.ready, pod.running, pod.unreached, pod.worker) = (true, true, false, None);
            }
            end.got_ready = true;
        }
        end
    }
}

/// Whether there is evidence that a group does not get ready by itself: as the operator's planner sees it.
fn is_broken(wanted: &Validated, group: &Group, revisions: &[Record], now: Timestamp) -> bool {
    let record = revisions.iter().find(|record| record.revision == group.revision);
    let ranks = record.and_then(|record| u32::try_from(record.data.content.group.devices_per_worker).ok());
    let obstacle = ranks.and_then(|ranks_per_worker| {
        recovery::obstacle(&Ask { group, copies: wanted.experts.copies, ranks_per_worker, stays: false, now })
    });
    (obstacle.is_some() && !group.serves()) || group.health() == Health::Broken
}

/// Empties slots of a group; says whether there were any.
fn vacate(groups: &mut [Group], index: usize, which: impl Fn(&WorkerPod) -> bool) -> bool {
    let mut found = false;
    for slot in groups.get_mut(index).into_iter().flat_map(|group| &mut group.slots) {
        if slot.as_ref().is_some_and(&which) {
            *slot = None;
            found = true;
        }
    }
    found
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

//! What happens.

use std::{collections::BTreeSet, sync::Arc};

use belay_epoch::{
    Intent, Kind, Phase,
    conductor::{self, Wanted},
    document::{all_copies, copies},
    invariants::{self, Snapshot, Violation, Worker},
    member::Member,
};
use belay_proto::admin::{ExpertCopies, GroupWorker, LayerPlacement, SetPlacementRequest};

use super::{Action, Fault, Pod, Setup, State, View};

impl Setup {
    pub fn start(&self) -> State {
        State {
            history: vec![Arc::default()],
            operators: vec![None; self.operators],
            pods: (0..self.workers).map(|index| Arc::new(Pod::new(self, index, 0))).collect(),
            zombies: vec![],
            layout: 0,
            budget: self.budget,
            went_back: vec![],
        }
    }

    /// The group with its first placement, and nothing under way.
    pub fn start_placed(&self) -> State {
        let state = self.converge(&self.start()).expect("a first placement");
        State { budget: self.budget, ..state }
    }

    fn wanted(&self, state: &State) -> Wanted {
        let workers = state.pods.iter().map(|pod| {
            let slot = pod.member.slot();
            GroupWorker {
                index: slot.worker,
                fabric_address: String::new(),
                uid: slot.uid.clone(),
                expert_bytes_limit: 0,
            }
        });
        let experts = |ranks: &Vec<u32>| ExpertCopies { ranks: ranks.clone() };
        let layer = |layer: &Vec<Vec<u32>>| LayerPlacement { experts: layer.iter().map(experts).collect() };
        Wanted {
            group: "g".into(),
            revision: "r".into(),
            ranks_per_worker: self.ranks,
            workers: workers.collect(),
            layers: self.layouts[state.layout].iter().map(layer).collect(),
            expert_bytes: 1,
            kind: Kind::Rebalance,
            reason: String::new(),
        }
    }

    pub fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, view) in state.operators.iter().enumerate() {
            actions.push(Action::Observe(index));
            if view.is_some() {
                actions.extend([Action::Act(index), Action::Crash(index)]);
                if self.asks_one_by_one {
                    actions.extend((0..state.pods.len()).map(|pod| Action::Ask(index, pod)));
                }
            }
        }
        for (index, pod) in state.pods.iter().enumerate() {
            if pod.gone || (!pod.lives && state.budget.deaths > 0) {
                actions.push(Action::Replace(index));
            }
            if pod.gone {
                continue;
            }
            actions.extend(pod.sent.iter().map(|&intent| Action::Deliver(index, intent)));
            actions.extend([Action::Load(index), Action::Drop(index)]);
            if state.budget.restarts > 0 && pod.member.in_force().is_some() {
                actions.push(Action::Restart(index, None));
                // the same document in force is mounted for several intents
                let epoch = |intent: &Intent| intent.in_force.as_ref().map(|document| document.epoch);
                let is_first =
                    |at: &usize| *at > 0 && epoch(&state.history[*at]) != epoch(&state.history[*at - 1]);
                let mounts = (0..state.history.len()).filter(is_first);
                actions.extend(mounts.map(|intent| Action::Restart(index, Some(intent))));
            }
            if state.budget.deaths > 0 {
                actions.push(Action::End(index));
            }
            if !pod.lives {
                actions.push(Action::Find(index));
            } else if state.budget.losses > 0 {
                actions.push(Action::Lose(index));
            }
        }
        if state.budget.changes > 0 {
            actions
                .extend((0..self.layouts.len()).filter(|layout| *layout != state.layout).map(Action::Want));
        }
    }

    /// What an action leads to. `None` if nothing happens.
    pub fn step(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        self.apply(&mut state, action)?;
        let back = invariants::forward(&self.snapshot(before), &self.snapshot(&state));
        state.went_back = back.iter().map(Violation::to_string).collect();
        Some(state)
    }

    /// `None` if nothing happens; then the state is not to be used.
    fn apply(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Observe(index) => {
                let present = state.pods.iter().filter(|pod| !pod.gone);
                let members = present.map(|pod| pod.observed()).collect();
                let view = Some(Arc::new(View { intent: state.history.len() - 1, members }));
                if state.operators[index] == view {
                    return None;
                }
                state.operators[index] = view;
            }
            Action::Ask(index, pod) => {
                let status = state.pods[pod].observed();
                let members = &mut Arc::make_mut(state.operators[index].as_mut()?).members;
                let known = members.iter_mut().find(|member| member.uid == status.uid)?;
                if known.status == status.status {
                    return None;
                }
                known.status = status.status;
            }
            Action::Act(index) => self.act(state, index)?,
            Action::Crash(index) => state.operators[index] = None,
            Action::Deliver(index, intent) => {
                let request = conductor::request(&state.history[intent])?;
                Arc::make_mut(&mut state.pods[index]).accept(&request, self.fault).then_some(())?;
            }
            Action::Load(index) => {
                let mut copies = state.pods[index].to_load();
                if copies.is_empty() {
                    return None;
                }
                copies.truncate(if self.loads_one_by_one { 1 } else { copies.len() });
                Arc::make_mut(&mut state.pods[index]).member.loaded(copies);
            }
            Action::Drop(index) => {
                let copies = state.pods[index].to_drop(self.fault);
                if copies.is_empty() {
                    return None;
                }
                Arc::make_mut(&mut state.pods[index]).member.dropped(copies);
            }
            Action::Restart(index, mounted) => {
                state.budget.restarts = state.budget.restarts.checked_sub(1)?;
                let pod = Arc::make_mut(&mut state.pods[index]);
                pod.member = Member::new(pod.member.slot().clone());
                pod.doubted = true;
                if let Some(mounted) = mounted {
                    let in_force = state.history[mounted].in_force.clone();
                    let _ = pod.member.accept(&SetPlacementRequest { in_force, ..Default::default() });
                }
            }
            Action::End(index) => {
                state.budget.deaths = state.budget.deaths.checked_sub(1)?;
                Arc::make_mut(&mut state.pods[index]).gone = true;
            }
            Action::Replace(index) => {
                let has_ended = state.pods[index].gone;
                if !has_ended {
                    state.budget.deaths = state.budget.deaths.checked_sub(1)?;
                }
                let next = Arc::new(Pod::new(self, index as u32, state.pods[index].life + 1));
                let old = std::mem::replace(&mut state.pods[index], next);
                // one that was only thought lost goes on
                if !has_ended {
                    state.zombies.push(Arc::new(Pod { sent: BTreeSet::new(), ..(*old).clone() }));
                }
            }
            Action::Lose(index) => {
                state.budget.losses = state.budget.losses.checked_sub(1)?;
                let pod = Arc::make_mut(&mut state.pods[index]);
                (pod.lives, pod.doubted) = (false, true);
            }
            Action::Find(index) => Arc::make_mut(&mut state.pods[index]).lives = true,
            Action::Want(layout) => {
                state.budget.changes = state.budget.changes.checked_sub(1)?;
                state.layout = layout;
            }
        }
        let intent = Arc::clone(state.intent());
        for pod in &mut state.pods {
            if self.fault == Some(Fault::UsesTarget) && pod.member.prepared_epoch() > pod.uses() {
                let in_force = pod.member.target().map(|document| (**document).clone());
                let request = SetPlacementRequest { in_force, ..Default::default() };
                let _ = Arc::make_mut(pod).member.accept(&request);
            }
            if !pod.doubted {
                continue;
            }
            let due = intent.operation.as_ref().and_then(|operation| operation.target.as_ref());
            let is_due =
                due.or(intent.in_force.as_ref()).is_some_and(|due| due.epoch == pod.member.prepared_epoch());
            let is_current = intent.in_force.as_ref().is_some_and(|placement| placement.epoch == pod.uses());
            if pod.lives && is_current && is_due {
                Arc::make_mut(pod).doubted = false;
            }
        }
        Some(())
    }

    fn act(&self, state: &mut State, index: usize) -> Option<()> {
        let view = state.operators[index].take()?;
        let read = Arc::clone(&state.history[view.intent]);
        let written = self.next(state, &read, &view);
        let mut intent = view.intent;
        if written != *read {
            let holds = view.intent == state.history.len() - 1;
            if !holds && self.fault != Some(Fault::WritesBlindly) {
                return Some(());
            }
            intent = state.history.len();
            state.history.push(Arc::new(written));
        }
        for (worker, request) in conductor::requests(&state.history[intent], &view.members) {
            assert_eq!(Some(request), conductor::request(&state.history[intent]), "all are told the same");
            let pod = Arc::make_mut(&mut state.pods[worker as usize]);
            // what is sent to a pod that has gone arrives nowhere
            if view.members.iter().any(|member| member.uid == pod.member.slot().uid) {
                pod.sent.insert(intent);
            }
        }
        Some(())
    }

    fn next(&self, state: &State, read: &Intent, view: &View) -> Intent {
        let wanted = self.wanted(state);
        let mut members = view.members.clone();
        let phase = read.operation.as_ref().map(|operation| operation.phase);
        let epoch = read.highest_epoch();
        for status in members.iter_mut().flat_map(|member| &mut member.status) {
            match self.fault {
                Some(Fault::CommitsEarly) if phase == Some(Phase::Prepare) => status.prepared = epoch,
                Some(Fault::RetiresEarly) if phase == Some(Phase::Commit) => status.in_force = epoch,
                _ => {}
            }
        }
        let mut next = conductor::next(read, Some(&wanted), &members, 0, "");
        if self.fault == Some(Fault::ReusesEpoch)
            && let (Some(before), Some(after)) = (&read.operation, &mut next.operation)
            && after.phase == Phase::Prepare
            && after.epoch != before.epoch
        {
            after.epoch = before.epoch;
            after.target = Some(wanted.placement(before.epoch));
        }
        next
    }

    /// Every invariant that does not hold.
    pub fn violations(&self, state: &State) -> Vec<String> {
        let now = invariants::check(&self.snapshot(state));
        state.went_back.iter().cloned().chain(now.iter().map(Violation::to_string)).collect()
    }

    fn snapshot<'a>(&self, state: &'a State) -> Snapshot<'a> {
        let alive = state.pods.iter().filter(|pod| !pod.gone).map(|pod| (pod, pod.counts()));
        let zombies = state.zombies.iter().map(|pod| (pod, false));
        let mut workers: Vec<Worker<'a>> =
            alive.chain(zombies).map(|(pod, counts)| Worker::of(&pod.member, counts)).collect();
        if self.fault == Some(Fault::ServesAny) {
            serve_any(&mut workers);
        }
        Snapshot { in_force: state.intent().in_force.as_ref(), workers }
    }

    /// What happens when nothing fails any more and everybody does his part in turn. `None` if that leads nowhere.
    pub fn converge(&self, state: &State) -> Option<State> {
        let mut state = state.clone();
        for index in 0..state.pods.len() {
            let action = if state.pods[index].gone { Action::Replace(index) } else { Action::Find(index) };
            self.apply(&mut state, action)?;
        }
        for _ in 0..50 {
            let written = state.history.len();
            let mut changed = false;
            self.apply(&mut state, Action::Observe(0));
            self.apply(&mut state, Action::Act(0));
            for index in 0..state.pods.len() {
                if let Some(&intent) = state.pods[index].sent.last() {
                    changed |= self.apply(&mut state, Action::Deliver(index, intent)).is_some();
                }
                while self.apply(&mut state, Action::Load(index)).is_some() {
                    changed = true;
                }
                changed |= self.apply(&mut state, Action::Drop(index)).is_some();
            }
            if !changed && state.history.len() == written {
                return self.has_converged(&state).then_some(state);
            }
        }
        None
    }

    /// No operation; all use what is wanted, hold that and no more.
    pub fn has_converged(&self, state: &State) -> bool {
        let intent = state.intent();
        let Some(in_force) = &intent.in_force else { return false };
        let resident = |pod: &Pod| *pod.member.resident() == copies(in_force, pod.member.slot().worker);
        intent.operation.is_none()
            && *in_force == self.wanted(state).placement(in_force.epoch)
            && state.pods.iter().all(|pod| pod.uses() == in_force.epoch && resident(pod) && pod.counts())
            && all_copies(in_force).count()
                == state.pods.iter().map(|pod| pod.member.resident().len()).sum::<usize>()
    }
}

/// As if any common epoch were enough: who has one epoch in common with another is asked under all.
fn serve_any(workers: &mut [Worker<'_>]) {
    let known: Vec<BTreeSet<u64>> = workers
        .iter()
        .map(|worker| worker.serves.iter().copied().filter(|&epoch| epoch >= worker.uses).collect())
        .collect();
    for (index, worker) in workers.iter_mut().enumerate() {
        let met = known.iter().filter(|other| !other.is_disjoint(&known[index]));
        worker.serves = met.flatten().copied().collect::<BTreeSet<u64>>().into_iter().collect();
    }
}

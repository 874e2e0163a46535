//! Where the experts of a group should be, and how it gets there: the planner's wish and the epoch protocol's next step.
use belay_epoch::{Intent, conductor};
use belay_proto::admin::SetPlacementRequest;
use k8s_openapi::jiff::Timestamp;

use crate::{
    group::{Group, Trouble},
    reconcile::{seconds, validate::Validated},
    recovery::{self, Ask, GRACE_SECONDS, Proposal, Rebalances},
    revision::Record,
};

/// What a worker is to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// Its index.
    pub worker: u32,
    /// The whole of it.
    pub request: SetPlacementRequest,
}

/// What is intended for the experts of a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Experts {
    /// The intent from now on; to be written if it differs from the one that was read.
    pub intent: Intent,
    /// What was done about load, to be written with it.
    pub rebalances: Rebalances,
    /// Whom to tell, once that is written.
    pub pushes: Vec<Push>,
    /// Workers whose pods may be evicted.
    pub may_leave: Vec<u32>,
    /// Copies that the spec asks for, and that there are no workers or no room for.
    pub short: u32,
    /// Imbalance of what is in force, in percent; `None`: too little was counted.
    pub imbalance_percent: Option<u32>,
    /// A rebalance that was asked for came to nothing: why.
    pub refused: Option<String>,
    /// What stands in the way.
    pub problem: Option<Trouble>,
}

impl Experts {
    /// What was intended before.
    pub fn unchanged(group: &Group) -> Self {
        Self { intent: group.intent.clone(), rebalances: group.rebalances.clone(), ..Self::default() }
    }
}

/// What keeps a group from having any placement.
pub fn obstacle(
    wanted: &Validated,
    group: &Group,
    record: Option<&Record>,
    now: Timestamp,
) -> Option<Trouble> {
    recovery::obstacle(&ask(wanted, group, record?, false, now)?)
}

fn ask<'a>(
    wanted: &Validated,
    group: &'a Group,
    record: &Record,
    stays: bool,
    now: Timestamp,
) -> Option<Ask<'a>> {
    let ranks_per_worker = u32::try_from(record.data.content.group.devices_per_worker).ok()?;
    Some(Ask { group, copies: wanted.experts.copies, ranks_per_worker, stays, now })
}

/// Plans for a group that is to serve. `protected`: it is to stay when nodes are emptied.
pub fn plan(
    wanted: &Validated,
    group: &Group,
    record: Option<&Record>,
    protected: bool,
    now: Timestamp,
) -> Experts {
    let Some(ask) = record.and_then(|record| ask(wanted, group, record, protected, now)) else {
        return Experts::unchanged(group);
    };
    let decision = recovery::want(&ask);
    let asked = wanted.experts.asked.as_deref();
    let is_asked = group.rebalances.is_news(asked);
    let mut proposal: Option<Proposal> = None;
    let mut refused = None;
    if decision.at_rest {
        match recovery::propose(&ask, &wanted.experts, is_asked) {
            Ok(found) => proposal = Some(found),
            Err(why) => refused = is_asked.then_some(why),
        }
    }
    let members = group.members(GRACE_SECONDS, now);
    let goal = proposal.as_ref().map(|proposal| &proposal.wanted).or(decision.wanted.as_ref());
    let time = seconds(now);
    let intent = conductor::next(&group.intent, goal, &members, group.highest_epoch(), &time);
    let mut rebalances = group.rebalances.follow(&group.intent, &intent, proposal.as_ref(), asked, &time);
    if refused.is_some() {
        rebalances.heard = asked.map(str::to_owned);
    }
    let imbalance_percent = recovery::measured_imbalance(&ask);
    if let Some(percent) = imbalance_percent
        && recovery::is_measured(group, now)
        && let Some(last) = rebalances.last.as_mut()
    {
        last.measured_percent.get_or_insert(percent);
    }
    let pushes = conductor::requests(&intent, &members)
        .into_iter()
        .map(|(worker, request)| Push { worker, request })
        .collect();
    Experts {
        may_leave: if protected { recovery::may_leave(group, &intent, now) } else { vec![] },
        pushes,
        rebalances,
        short: decision.short,
        imbalance_percent,
        refused,
        problem: decision.problem,
        intent,
    }
}

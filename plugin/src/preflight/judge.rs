//! What was gathered becomes a report: pure.
use std::collections::BTreeMap;

use belay_crds::{ModelDeployment, labels};
use belay_operator::{
    group::Group,
    reconcile::{
        build,
        validate::{Validated, validate},
    },
    revision::Record,
    rollout::{Budget, Health, Strategy},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt as _;
use serde_json::Value;

use super::{
    compare::differences,
    course::{self, CourseError, Sequence, Start},
    demand::{self, Amounts},
    forecast,
    report::{BudgetView, Change, ChangeKind, Demands, Refusal, Report, Span, Verdict},
    room::Room,
};

/// Numbers of groups that are tried for something that fits.
const TRIES: u32 = 64;

/// What the judgement needs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What is asked for, as the API server would store it.
    pub wanted: ModelDeployment,
    /// Its spec, as it would be stored.
    pub wanted_spec: Value,
    /// The spec that is there; `None`: there is none.
    pub present_spec: Option<Value>,
    /// The revision that is asked for now.
    pub present_revision: Option<String>,
    /// Groups as the operator sees them.
    pub groups: Vec<Group>,
    /// Their pods.
    pub pods: Vec<Pod>,
    /// Their Services.
    pub services: Vec<Service>,
    /// Revisions that are kept.
    pub revisions: Vec<Record>,
    /// When groups were created and ready, by what events tell.
    pub past: BTreeMap<String, (Timestamp, Timestamp)>,
    /// Nodes with what is left on them, or why they are not known.
    pub rooms: Result<Vec<Room>, String>,
    /// When.
    pub now: Timestamp,
}

/// The report.
///
/// # Errors
/// If the rollout can't be played through.
pub fn judge(facts: &Facts) -> Result<Report, CourseError> {
    let mut report = Report {
        name: facts.wanted.name_any(),
        namespace: facts.wanted.namespace().unwrap_or_default(),
        ..Report::default()
    };
    report.change.fields = match &facts.present_spec {
        Some(present) => differences(present, &facts.wanted_spec),
        None => vec![],
    };
    let wanted = match validate(&facts.wanted) {
        Ok(wanted) => wanted,
        Err(invalid) => {
            report.verdict = Verdict::Refused;
            report.refusals =
                vec![Refusal { field: invalid.field.to_owned(), message: invalid.message.clone() }];
            return Ok(report);
        }
    };
    let (sequence, target) = course::sequence(start(facts, wanted.clone()))?;
    report.change = change(facts, &target, std::mem::take(&mut report.change.fields));
    let Budget { desired, unavailable, .. } = wanted.budget;
    let surge = sequence.surge;
    let present = u32::try_from(facts.groups.len()).unwrap_or(u32::MAX);
    report.budget = BudgetView { desired, surge, unavailable, present };
    report.demand = demands(&wanted, &target, sequence.surge_groups)?;
    report.memory = forecast::memory(&wanted, &target, &facts.groups, &facts.revisions);
    report.duration = duration(facts, &wanted, &sequence);
    verdict(facts, &wanted, &sequence, &mut report)?;
    notes(facts, &wanted, &sequence, &target, &mut report);
    report.course = Some(sequence);
    Ok(report)
}

fn start(facts: &Facts, wanted: Validated) -> Start {
    Start {
        wanted,
        groups: facts.groups.clone(),
        pods: facts.pods.iter().map(|pod| (pod.name_any(), pod.clone())).collect(),
        revisions: facts.revisions.clone(),
        rooms: facts.rooms.as_ref().ok().cloned(),
        now: facts.now,
    }
}

fn change(facts: &Facts, target: &Record, fields: Vec<super::compare::Difference>) -> Change {
    let from = facts.present_revision.clone();
    let kind = match &facts.present_spec {
        None => ChangeKind::Creation,
        Some(_) if from.as_ref().is_some_and(|from| *from != target.revision) => ChangeKind::Revision,
        Some(_) if fields.is_empty() => ChangeKind::None,
        // the operator has not seen what is there yet: fields tell
        Some(_) if from.is_none() && fields.iter().any(|field| field.reaches_pods) => ChangeKind::Revision,
        Some(_) => ChangeKind::Settings,
    };
    let goes_back = kind == ChangeKind::Revision
        && facts.revisions.iter().any(|record| record.revision == target.revision);
    Change { kind, fields, revision: target.revision.clone(), from_revision: from, goes_back }
}

fn demands(wanted: &Validated, target: &Record, surge_groups: u32) -> Result<Demands, CourseError> {
    let workers = target.data.content.group.workers.max(0);
    let pod = build::pod(wanted, target, "group", 0);
    let one = demand::of_pod(&pod).map_err(|source| CourseError::Demand { pod: pod.name_any(), source })?;
    let times = |count: i128| -> Amounts {
        one.iter().map(|(resource, amount)| (resource.clone(), amount.saturating_mul(count))).collect()
    };
    let group = i128::from(workers);
    Ok(Demands { group: times(group), surge: times(group.saturating_mul(i128::from(surge_groups))) })
}

fn duration(facts: &Facts, wanted: &Validated, sequence: &Sequence) -> Option<Span> {
    let pace = forecast::pace(&facts.services, &facts.past, &facts.pods)?;
    Some(Span {
        load_seconds: pace.ready_seconds.saturating_mul(u64::from(sequence.loads)),
        hold_seconds: sequence.hold_seconds,
        waves: sequence.loads,
        drain_seconds_at_most: u64::from(wanted.drain_seconds).saturating_mul(u64::from(sequence.drains)),
        pace,
    })
}

fn verdict(
    facts: &Facts,
    wanted: &Validated,
    sequence: &Sequence,
    report: &mut Report,
) -> Result<(), CourseError> {
    report.verdict = Verdict::Fits;
    if let Some(problem) = report.memory.as_ref().and_then(|memory| memory.problem.clone()) {
        match problem.fatal {
            true => {
                report.verdict = Verdict::DoesNotFit;
                report.reasons.push(problem.message);
            }
            false => report.notes.push(format!("{}: fewer copies will be made", problem.message)),
        }
    }
    if !sequence.misfits.is_empty() {
        report.verdict = Verdict::DoesNotFit;
        let told = sequence.misfits.iter().map(|misfit| format!("pod {}: {}", misfit.pod, misfit.message));
        report.reasons.extend(told);
        report.help = help(facts, wanted)?;
    }
    if report.verdict == Verdict::Fits {
        let unknown = facts.rooms.as_ref().err().map(|why| format!("the nodes are not known: {why}"));
        let unknown = unknown.or_else(|| devices_unknown(wanted));
        let unknown = unknown.or_else(|| {
            let affinity = wanted.content.group.template.affinity.as_ref();
            let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
            let apart = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
            let required = near
                .is_some_and(|rules| rules.required_during_scheduling_ignored_during_execution.is_some())
                || apart
                    .is_some_and(|rules| rules.required_during_scheduling_ignored_during_execution.is_some());
            required.then(|| {
                "there is room, but spec.group.template.affinity requires pods beside or away from others, which is not \
                 looked at"
                    .to_owned()
            })
        });
        if let Some(why) = unknown {
            report.verdict = Verdict::Unknown;
            report.reasons.push(why);
        }
    }
    Ok(())
}

/// Why it is not known whether there are devices for the pods where nodes have room for them.
fn devices_unknown(wanted: &Validated) -> Option<String> {
    let group = &wanted.content.group;
    let spec = group.ascend.as_ref()?;
    if let Some(template) = &spec.resource_claim_template_name {
        return Some(format!(
            "there is room, but the devices of ResourceClaimTemplate {template} are not looked at"
        ));
    }
    let block = build::superpod_block(group, spec)?;
    Some(format!(
        "there is room, but Volcano must find {block} devices in one superpod, which is not looked at"
    ))
}

/// What else would fit: an old group that goes before the new one comes, or fewer groups.
fn help(facts: &Facts, wanted: &Validated) -> Result<Vec<String>, CourseError> {
    let fits = |wanted: Validated| -> Result<Option<Sequence>, CourseError> {
        let (sequence, _) = course::sequence(start(facts, wanted))?;
        Ok(sequence.misfits.is_empty().then_some(sequence))
    };
    let with = |budget: Budget| fits(Validated { budget, ..wanted.clone() });
    let mut help = vec![];
    let Budget { desired, surge, unavailable } = wanted.budget;
    let is_rolling = matches!(wanted.rules.strategy, Strategy::RollingUpdate { .. });
    if !is_rolling {
        let mut rolling = wanted.clone();
        rolling.rules.strategy = Strategy::RollingUpdate { partition: 0 };
        if fits(rolling)?.is_some() {
            help.push("spec.rollout.strategy: RollingUpdate: fewer groups are there at once".to_owned());
        }
    }
    // a canary is a group more in any case
    if is_rolling && unavailable == 0 && desired > 0 {
        let less = [
            (surge, "spec.rollout.maxUnavailable: 1"),
            (0, "spec.rollout.maxSurge: 0 with maxUnavailable: 1"),
        ];
        for (surge, words) in less {
            if let Some(sequence) = with(Budget { desired, surge, unavailable: 1 })? {
                help.push(format!(
                    "{words}: a group goes before the next one comes; {} of {desired} groups are ready at the moment with \
                     the fewest",
                    sequence.fewest_ready
                ));
                break;
            }
        }
    }
    if help.is_empty() {
        for fewer in (1..desired).rev().take(TRIES as usize) {
            if with(Budget { desired: fewer, surge, unavailable })?.is_some() {
                help.push(format!("spec.replicas: {fewer}: so many groups fit"));
                break;
            }
        }
    }
    Ok(help)
}

fn notes(facts: &Facts, wanted: &Validated, sequence: &Sequence, target: &Record, report: &mut Report) {
    if !sequence.misfits.is_empty()
        && wanted.rules.rolls_back
        && let Some(seconds) = wanted.rules.deadline_seconds
    {
        report.notes.push(format!("after {seconds} s without progress the new revision is taken back"));
    }
    if wanted.analysis.is_some() && sequence.hold_seconds > 0 {
        report.notes.push("an analysis decides as well; it is taken to find nothing bad".to_owned());
    }
    let stays = sequence.left.len();
    if stays > 0 && sequence.misfits.is_empty() {
        let why = match sequence.phase.as_str() {
            "Paused" => "spec.rollout.progress is Paused",
            "Partitioned" => "spec.rollout.partition keeps them",
            "WaitingForPromotion" => "a person has to promote the preview: kubectl belay rollout promote",
            "RolledBack" => {
                "the new revision was taken back before; it is tried anew once the spec was another one"
            }
            _ => "groups of the new revision do not get ready",
        };
        report
            .notes
            .push(format!("groups of older revisions that stay: {} ({why})", sequence.left.join(", ")));
    }
    let broken = facts.groups.iter().filter(|group| {
        group.revision == target.revision && !group.draining() && group.health() == Health::Broken
    });
    for group in broken {
        let why = group.pods().find_map(|(_, pod)| pod.problem());
        let why =
            why.map_or_else(String::new, |trouble| format!(": {}: {}", trouble.reason, trouble.message));
        report.notes.push(format!("group {} does not get ready by itself{why}", group.name));
    }
    let foreign = facts.pods.iter().filter(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.labels().contains_key(labels::GROUP) && phase == Some("Failed")
    });
    let ended: Vec<String> = foreign.map(Pod::name_any).collect();
    if !ended.is_empty() {
        report.notes.push(format!("pods that have ended and are replaced: {}", ended.join(", ")));
    }
}

//! The order of the rules.
use belay_crds::{DuringRollout, ScalingReason as Reason};
use jiff::Timestamp;

use super::{
    demand::{self, Metric},
    history,
    memory::Memory,
    schedule::Bounds,
    signals::{Groups, Heard, Signals},
    terms::Terms,
};

/// What is seen.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// `spec.replicas`.
    pub current: u32,
    /// The groups there are.
    pub groups: Groups,
    /// Whether groups of an old revision are being replaced.
    pub rolling_out: bool,
    /// What was measured; `None`: nothing.
    pub signals: Option<&'a Signals>,
}

/// How many groups there should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// So many.
    pub desired: u32,
    /// Why.
    pub reason: Reason,
    /// Why, with numbers.
    pub message: String,
    /// The bounds of the time.
    pub bounds: Bounds,
    /// What it goes by.
    pub metrics: Vec<Metric>,
}

/// Decides. `memory` is that of the deployment; it takes note of what it was told. Whoever does what was decided says so
/// with [`Memory::scaled`] before.
pub fn decide(terms: &Terms, view: &View<'_>, memory: &mut Memory, now: Timestamp) -> Decision {
    memory.began.get_or_insert(now);
    let bounds = terms.bounds_at(now);
    let current = view.current;
    if memory.expected.replace(current).is_some_and(|expected| expected != current) {
        // what somebody decides counts as something that was asked for: it is kept for a while
        memory.asked.push(current, now);
        memory.contest.note(memory.steps.last().map(|step| step.at), now);
    }
    history::forget(&mut memory.steps, &terms.up, &terms.down, now);
    let more = memory.ready.0.is_some_and(|before| view.groups.ready > before);
    memory.ready = (Some(view.groups.ready), if more { Some(now) } else { memory.ready.1 });

    let mut decision = Decision {
        desired: current,
        reason: Reason::AsLoadAsks,
        message: String::new(),
        bounds,
        metrics: vec![],
    };
    let fresh = view.signals.filter(|signals| signals.fresh(now));
    let asked = fresh.map(|signals| look(terms, view, signals, memory, now));
    if let Some((metrics, _)) = &asked {
        decision.metrics.clone_from(metrics);
    }
    let set = |mut decision: Decision, desired, reason, message| {
        (decision.desired, decision.reason, decision.message) = (desired, reason, message);
        decision
    };
    if let Some(until) = memory.contest.until(now) {
        let message =
            format!("somebody else sets spec.replicas again and again: it is left to them until {until}");
        return set(decision, current, Reason::ScalingContested, message);
    }
    if bounds.clamp(current) != current {
        let message = format!("{current} groups are not between {} and {}", bounds.min, bounds.max);
        return set(decision, bounds.clamp(current), Reason::OutOfBounds, message);
    }
    if current == 0 {
        let held = view.signals.map_or(0, |signals| signals.held);
        return match view.signals {
            _ if held > 0 => {
                set(decision, 1, Reason::RequestWaits, format!("{held} requests wait, and there is no group"))
            }
            Some(_) => set(decision, 0, Reason::Idle, "no request waits".to_owned()),
            None => set(decision, 0, Reason::SignalsMissing, "no gateway tells what it has".to_owned()),
        };
    }
    let (Some(signals), Some((_, asked))) = (fresh, asked) else {
        let (reason, message) = match view.signals {
            None => (Reason::SignalsMissing, "no gateway tells what it has".to_owned()),
            Some(signals) => {
                (Reason::SignalsIncomplete, format!("what gateways told last is of {}", signals.measured))
            }
        };
        return set(decision, current, reason, message);
    };
    let held = view.rolling_out && terms.during_rollout == DuringRollout::Hold;
    let idle_seconds = memory.idle_seconds(signals.idle_seconds, now);
    let idle = signals.quiet() && idle_seconds >= u64::from(terms.idle_seconds);
    if bounds.min == 0 && idle && signals.heard == Heard::All && !held {
        let message = format!("no request for {idle_seconds} seconds");
        return set(decision, 0, Reason::Idle, message);
    }
    let (desired, reason, message) = weigh(terms, view, signals, &asked, bounds, memory, now);
    if desired != current && held {
        let message = format!("groups are being replaced; otherwise: {message}");
        return set(decision, current, Reason::RolloutUnderWay, message);
    }
    set(decision, desired, reason, message)
}

/// What the load asks for, before time and policies have their say.
struct Asked {
    /// Groups.
    groups: u32,
    /// The largest number that a measurement asks for by itself.
    most: u32,
    /// Why `groups` is not `most`, or the load itself.
    reason: Reason,
    /// In words.
    words: String,
}

fn look(
    terms: &Terms,
    view: &View<'_>,
    signals: &Signals,
    memory: &mut Memory,
    now: Timestamp,
) -> (Vec<Metric>, Asked) {
    let (current, groups) = (view.current, view.groups);
    let metrics = demand::metrics(terms, signals, groups, current, memory, now);
    let full = demand::full(&metrics, current, groups.ready);
    memory.rates.note(signals, groups.ready, full, now);
    let known = || metrics.iter().filter_map(|metric| Some((metric, metric.groups?)));
    let most = known().map(|(_, groups)| groups).max().unwrap_or(current);
    // what waits may be drained soon by what is there or loads: a queue alone does not tell
    let enough = demand::enough(memory, terms, signals, groups).map(|enough| enough.max(current));
    let capped = |(metric, groups): (&Metric, u32)| match enough {
        Some(enough) if metric.measure.is_queue() => groups.min(enough),
        _ => groups,
    };
    let needed = known().map(capped).max().unwrap_or(current);
    let words = known()
        .filter(|(_, groups)| *groups == most)
        .map(|(metric, groups)| match metric.current {
            Some(value) => {
                format!("{value} with {} {} asks for {groups} groups", metric.measure.field(), metric.target)
            }
            None => format!("no request: {} asks for {groups} groups", metric.measure.field()),
        })
        .next();
    let mut asked = Asked {
        groups: needed,
        most,
        reason: if most > current { Reason::LoadAboveTarget } else { Reason::LoadBelowTarget },
        words: words.unwrap_or_else(|| "nothing is known of the load".to_owned()),
    };
    if needed < most {
        if needed == current {
            asked.reason = if groups.loading > 0 { Reason::GroupsLoading } else { Reason::Draining };
        }
        let eta = groups.eta_seconds.map(|eta| format!(", ready in about {eta} s")).unwrap_or_default();
        let loading =
            if groups.loading > 0 { format!(" ({} load{eta})", groups.loading) } else { String::new() };
        asked.words = format!("{}; {needed} do what comes and drain what waits{loading}", asked.words);
    }
    if asked.groups < current {
        if metrics.iter().any(|metric| metric.groups.is_none()) || signals.heard == Heard::Some {
            asked.groups = current;
            asked.reason = Reason::SignalsIncomplete;
            asked.words = format!("{}; but not all is known", asked.words);
        } else if let Some(busy) = demand::busy(memory).map(|busy| busy.min(current))
            && busy > asked.groups
        {
            asked.groups = busy;
            asked.words = format!("{}; {busy} have enough to do", asked.words);
            if busy == current {
                asked.reason = Reason::Busy;
            }
        }
    }
    // the way to zero is another one
    asked.groups = asked.groups.max(1);
    memory.asked.note(asked.groups, current, terms.up.window_seconds.max(terms.down.window_seconds), now);
    (metrics, asked)
}

/// From what is asked for to what is done now.
fn weigh(
    terms: &Terms,
    view: &View<'_>,
    signals: &Signals,
    asked: &Asked,
    bounds: Bounds,
    memory: &Memory,
    now: Timestamp,
) -> (u32, Reason, String) {
    let current = view.current;
    let words = asked.words.clone();
    let stable = memory.asked.stabilized(asked.groups, current, &terms.up, &terms.down, now);
    let bounded = bounds.clamp(stable);
    if bounded == current {
        let reason = match asked.groups {
            _ if stable > current => Reason::AtMaximum,
            _ if stable < current => Reason::AtMinimum,
            asked_for if asked_for != current => Reason::Stabilizing,
            _ if asked.most == current && asked.reason != Reason::SignalsIncomplete => Reason::AsLoadAsks,
            _ => asked.reason,
        };
        // one group, and no request: the least that there can be before the way to zero
        let reason = if reason == Reason::LoadBelowTarget { Reason::AtMinimum } else { reason };
        let words = match reason {
            Reason::AtMinimum if bounds.min == 0 && signals.quiet() => {
                let idle = memory.idle_seconds(signals.idle_seconds, now);
                format!("no request for {idle} of {} seconds", terms.idle_seconds)
            }
            Reason::Stabilizing => format!("{words}; not for long enough"),
            _ => words,
        };
        return (current, reason, words);
    }
    if bounded > current {
        if view.groups.failing > 0 {
            let words = format!("{words}; but {} groups cannot start", view.groups.failing);
            return (current, Reason::GroupsFailing, words);
        }
        let allowed = bounded.min(history::highest(&memory.steps, current, &terms.up, now));
        let reason = if allowed == current { Reason::LimitedByPolicy } else { Reason::LoadAboveTarget };
        return (allowed, reason, words);
    }
    let allowed = bounded.max(history::lowest(&memory.steps, current, &terms.down, now));
    let reason = if allowed == current { Reason::LimitedByPolicy } else { Reason::LoadBelowTarget };
    (allowed, reason, words)
}

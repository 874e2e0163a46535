//! The report in lines.
use serde_json::Value;

use super::{
    amount::words,
    compare::Difference,
    course::{Round, Sequence},
    forecast::Memory,
    report::{Change, ChangeKind, Report, Span, Verdict},
};
use crate::{
    picture::units::{bytes, clean, count, seconds},
    terminal::line::{Line, Style, flow},
};

/// Longest value of a field that is shown whole.
const LONGEST_VALUE: usize = 60;

/// Steps that are told one by one.
const MOST_STEPS: usize = 12;

/// Everything, in lines of at most `width` characters.
pub fn render(report: &Report, width: usize) -> Vec<Line> {
    let mut lines = vec![];
    let mut tell = |indent: usize, pieces: Vec<Line>| {
        let blanks = " ".repeat(indent);
        for line in flow(pieces, width.saturating_sub(indent).max(20), 2) {
            let mut moved = Line::default().with(&blanks, Style::PLAIN);
            line.spans.into_iter().for_each(|span| moved.push(span.text, span.style));
            lines.push(moved);
        }
    };
    tell(0, vec![headline(report)]);
    report.reasons.iter().for_each(|reason| tell(2, vec![word(clean(reason), Style::BAD)]));
    for refusal in &report.refusals {
        let field = word(&refusal.field, Style::STRONG);
        let separator = if refusal.field.is_empty() { "" } else { ": " };
        tell(2, vec![field.with(format!("{separator}{}", clean(&refusal.message)), Style::BAD)]);
    }
    report.help.iter().for_each(|help| tell(2, vec![word(format!("would help: {help}"), Style::NOTE)]));
    if report.verdict != Verdict::Refused {
        tell(0, vec![change(&report.change)]);
    }
    report.change.fields.iter().for_each(|field| tell(2, vec![difference(field)]));
    if let Some(course) = &report.course {
        for (indent, line) in self::course(course, report) {
            tell(indent, vec![line]);
        }
    }
    if report.verdict != Verdict::Refused {
        tell(0, vec![word("memory", Style::STRONG).with(memory(report.memory.as_ref()), Style::PLAIN)]);
        let course = report.course.as_ref();
        let nothing = course.is_some_and(|course| course.rounds.is_empty());
        let stalls = course.is_some_and(|course| !course.misfits.is_empty());
        let time = match (stalls, nothing) {
            (true, _) => "  it does not come to its end by itself".to_owned(),
            (false, true) => "  nothing to wait for".to_owned(),
            (false, false) => duration(report.duration.as_ref()),
        };
        tell(0, vec![word("time", Style::STRONG).with(time, Style::PLAIN)]);
    }
    report.notes.iter().for_each(|note| tell(0, vec![word(format!("note: {}", clean(note)), Style::NOTE)]));
    lines.into_iter().map(|line| line.clipped(width)).collect()
}

fn headline(report: &Report) -> Line {
    let (text, style) = match report.verdict {
        Verdict::Fits => ("fits", Style::GOOD),
        Verdict::DoesNotFit => ("does not fit", Style::BAD),
        Verdict::Refused => ("is refused", Style::BAD),
        Verdict::Unknown => ("may fit or not", Style::NOTE),
    };
    word(format!("modeldeployment {}/{}: ", report.namespace, report.name), Style::STRONG).with(text, style)
}

fn change(change: &Change) -> Line {
    let Change { revision, from_revision, .. } = change;
    let from = from_revision.as_deref().unwrap_or("?");
    let text = match change.kind {
        ChangeKind::None => format!("  nothing: revision stays {revision}"),
        ChangeKind::Creation => format!("  it is new: revision {revision}"),
        ChangeKind::Settings => format!("  no pod is made anew for it: revision stays {revision}"),
        ChangeKind::Revision if change.goes_back => format!("  back to revision {revision}, from {from}"),
        ChangeKind::Revision => format!("  a new revision {revision}, after {from}: groups are replaced"),
    };
    word("change", Style::STRONG).with(text, Style::PLAIN)
}

fn difference(difference: &Difference) -> Line {
    let Difference { field, old, new, reaches_pods } = difference;
    let style = if *reaches_pods { Style::NOTE } else { Style::PLAIN };
    word(format!("{field}: {} -> {}", value(old), value(new)), style)
}

fn value(value: &Value) -> String {
    let text = match value {
        Value::Null => "not set".to_owned(),
        value => clean(&value.to_string()),
    };
    match text.chars().count() > LONGEST_VALUE {
        true => text.chars().take(LONGEST_VALUE).chain("...".chars()).collect(),
        false => text,
    }
}

fn course(course: &Sequence, report: &Report) -> Vec<(usize, Line)> {
    let budget = &report.budget;
    let groups = |number: u32| count(u64::from(number), "group", "groups");
    let mut lines = vec![];
    let rule = format!(
        "  with at most {} on top of {}, and {} missing",
        budget.surge, budget.desired, budget.unavailable
    );
    match course.rounds.is_empty() {
        true => lines.push((0, word("steps", Style::STRONG).with("  none", Style::PLAIN))),
        false => lines.push((0, word("steps", Style::STRONG).with(rule, Style::FAINT))),
    }
    for (number, round) in (1..).zip(&course.rounds).take(MOST_STEPS) {
        lines.push((2, word(format!("{number}. {}", step(round)), Style::PLAIN)));
    }
    if course.rounds.len() > MOST_STEPS {
        lines.push((2, word(format!("... and {} more", course.rounds.len() - MOST_STEPS), Style::FAINT)));
    }
    if !course.misfits.is_empty() {
        let stalls = "then nothing more happens until there is room: groups that are ready stay as they are";
        lines.push((2, word(stalls, Style::BAD)));
    }
    if budget.present > 0 {
        let worst = format!(
            "  {} of {} ready at the moment with the fewest",
            course.fewest_ready,
            groups(budget.desired)
        );
        lines.push((0, word("coverage", Style::STRONG).with(worst, Style::PLAIN)));
    }
    let listed = |amounts: &std::collections::BTreeMap<String, i128>| {
        let told = amounts.iter().filter(|(_, amount)| **amount > 0);
        told.map(|(resource, amount)| format!("{resource} {}", words(resource, *amount)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut room = format!(
        "  {} at once at most; one group asks for {}",
        groups(course.most_groups),
        listed(&report.demand.group)
    );
    if course.surge_groups > 0 {
        room += &format!("; the {} on top for {}", groups(course.surge_groups), listed(&report.demand.surge));
    }
    lines.push((0, word("room", Style::STRONG).with(room, Style::PLAIN)));
    lines
}

fn step(round: &Round) -> String {
    let mut parts = vec![];
    if !round.create.is_empty() {
        parts.push(format!("create {}", round.create.join(", ")));
    }
    if !round.replace.is_empty() {
        parts.push(format!("make pods {}", round.replace.join(", ")));
    }
    if !round.drain.is_empty() {
        parts.push(format!("drain and remove {}", round.drain.join(", ")));
    }
    if parts.is_empty() {
        let shifts = round.placed.is_empty();
        parts.push(if shifts { "share requests anew" } else { "pods that waited get nodes" }.to_owned());
    }
    let share = round.weight_percent.map(|percent| format!(", {percent}% of requests to the new revision"));
    let mut text = format!("{} ({} ready{})", parts.join("; "), round.ready, share.unwrap_or_default());
    if !round.waiting.is_empty() {
        let pods: Vec<&str> = round.waiting.iter().map(|misfit| misfit.pod.as_str()).collect();
        text += &format!("; no node for {}", pods.join(", "));
    }
    text
}

fn memory(memory: Option<&Memory>) -> String {
    let Some(memory) = memory else { return "  unknown until a worker has read the checkpoint".to_owned() };
    let mut text = format!(
        "  {} a worker: dense weights {}, experts {} ({} a rank), cache {}",
        bytes(memory.total_bytes),
        bytes(memory.dense_bytes),
        bytes(memory.expert_bytes),
        bytes(memory.rank_expert_bytes),
        bytes(memory.cache_bytes)
    );
    text += &memory
        .limit_bytes
        .map_or_else(|| "; no limit".to_owned(), |limit| format!("; limit {}", bytes(limit)));
    text + &format!(" (sizes from {})", memory.told_by)
}

fn duration(span: Option<&Span>) -> String {
    let Some(Span { load_seconds, hold_seconds, waves, drain_seconds_at_most, pace }) = span else {
        return "  unknown until a group of it was ready once".to_owned();
    };
    let mut text = format!(
        "  about {}: {} of {} (median of {}",
        seconds(*load_seconds),
        count(u64::from(*waves), "wave", "waves"),
        seconds(pace.ready_seconds),
        count(u64::try_from(pace.groups).unwrap_or(0), "group", "groups")
    );
    let phases = [
        ("to get a node", pace.scheduled_seconds),
        ("to start", pace.started_seconds),
        ("to load", pace.loaded_seconds),
    ];
    let told: Vec<String> =
        phases.into_iter().filter_map(|(what, time)| Some(format!("{} {what}", seconds(time?)))).collect();
    if !told.is_empty() {
        text += &format!("; its pods took {}", told.join(", "));
    }
    text += ")";
    if *hold_seconds > 0 {
        text += &format!(", holds of {}", seconds(*hold_seconds));
    }
    if *drain_seconds_at_most > 0 {
        text +=
            &format!(", and drains as long as requests go on, {} at most", seconds(*drain_seconds_at_most));
    }
    text
}

fn word(text: impl Into<String>, style: Style) -> Line {
    Line::default().with(text, style)
}

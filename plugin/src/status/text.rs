//! The tree in lines.
use super::tree::{Age, ConditionView, EventView, GroupView, LoadView, PodView, RevisionView, Teller, Tree};
use crate::{
    picture::units::{bytes, clean, count, seconds},
    terminal::line::{Line, Style, flow},
};

/// Narrower terminals get what is beyond this cut off.
const NARROWEST: usize = 20;

/// Longest message that is shown whole.
const LONGEST: usize = 240;

/// Everything, in lines of at most `width` characters.
pub fn render(tree: &Tree, width: usize) -> Vec<Line> {
    let wide = width.max(NARROWEST);
    let mut lines = header(tree, wide);
    for revision in &tree.revisions {
        lines.push(Line::default());
        lines.extend(flow(self::revision(revision), wide, 4));
        for group in &revision.groups {
            lines.extend(indented(self::group(group, tree), wide, 2));
            if let Some(message) = &group.message {
                lines.extend(indented(vec![note(message, Style::NOTE)], wide, 4));
            }
            for pod in &group.pods {
                lines.extend(indented(self::pod(pod), wide, 4));
                if let Some(message) = &pod.message {
                    lines.extend(indented(vec![note(message, tone(pod))], wide, 8));
                }
            }
        }
        if revision.groups.is_empty() {
            lines.extend(indented(vec![word("no groups", Style::FAINT)], wide, 2));
        }
    }
    if tree.revisions.is_empty() {
        lines.push(Line::default());
        lines.push(word("no groups", Style::NOTE));
    }
    if !tree.events.is_empty() {
        lines.push(Line::default());
        lines.push(word("last events", Style::STRONG));
        lines.extend(tree.events.iter().flat_map(|event| indented(vec![self::event(event)], wide, 2)));
    }
    lines.into_iter().map(|line| line.clipped(width)).collect()
}

fn header(tree: &Tree, width: usize) -> Vec<Line> {
    let name = word(&tree.name, Style::STRONG).with(format!(" in {}", tree.namespace), Style::FAINT);
    let complete = tree.ready >= tree.desired;
    let style = if complete { Style::GOOD } else { Style::NOTE };
    let wanted = count(u64::try_from(tree.desired).unwrap_or(0), "group", "groups");
    let groups = word(format!("{} of {wanted} ready", tree.ready), style);
    let groups = groups.with(format!(", {} updated", tree.updated), Style::PLAIN);
    let model = word(format!("model {}", tree.model), Style::PLAIN);
    let strategy = word(&tree.strategy, Style::PLAIN);
    let mut lines = flow(vec![name, groups, model, strategy], width, 2);
    if !tree.observed {
        lines.push(word("the operator has not seen the newest spec yet", Style::NOTE));
    }
    let told = tree.conditions.iter().filter(|condition| {
        condition.is_trouble() || (condition.kind == "Progressing" && condition.reason != "Settled")
    });
    lines.extend(told.flat_map(|condition| flow(vec![self::condition(condition)], width, 2)));
    lines.extend(tree.rollout.iter().flat_map(|rollout| flow(self::rollout(rollout), width, 2)));
    lines
}

fn condition(condition: &ConditionView) -> Line {
    let style = if condition.is_trouble() { Style::BAD } else { Style::NOTE };
    let ConditionView { kind, status, reason, message } = condition;
    let line = word(format!("{kind}={status} {reason}"), style);
    if message.is_empty() { line } else { line.with(format!(": {}", short(message)), Style::PLAIN) }
}

/// What the operator says about a rollout: read leniently, since it may know more than this program.
pub fn rollout(rollout: &serde_json::Value) -> Vec<Line> {
    let text = |path: &str| rollout.pointer(path).and_then(|value| value.as_str()).map(clean);
    let number = |path: &str| rollout.pointer(path).and_then(serde_json::Value::as_i64);
    let mut pieces = vec![];
    if let Some(phase) = text("/phase").filter(|phase| phase != "Complete") {
        let mut line =
            word(format!("rollout of {}: {phase}", text("/revision").unwrap_or_default()), Style::NOTE);
        match (number("/step"), number("/steps")) {
            (Some(step), Some(steps)) => line.push(format!(", step {step} of {steps}"), Style::PLAIN),
            (Some(step), None) => line.push(format!(", step {step}"), Style::PLAIN),
            _ => (),
        }
        if let Some(weight) = number("/weightPercent") {
            line.push(format!(", {weight}% of requests"), Style::PLAIN);
        }
        if let Some(since) = text("/since") {
            line.push(format!(", since {since}"), Style::FAINT);
        }
        if let Some(message) = text("/message").filter(|message| !message.is_empty()) {
            line.push(format!(": {}", short(&message)), Style::PLAIN);
        }
        pieces.push(line);
    }
    if let Some(revision) = text("/lastRollback/revision") {
        let [reason, message, time] = ["reason", "message", "time"]
            .map(|key| text(&format!("/lastRollback/{key}")).unwrap_or_default());
        let line = word(format!("rolled back: {revision}, {reason}"), Style::BAD);
        pieces.push(line.with(format!(": {} ({time})", short(&message)), Style::PLAIN));
    }
    pieces
}

fn revision(revision: &RevisionView) -> Vec<Line> {
    let age = match revision.age {
        Age::Updated => "of the spec",
        Age::Current => "of before",
        Age::Older => "older",
    };
    let mut pieces = vec![
        word(format!("revision {}", revision.name), Style::STRONG).with(format!(" {age}"), Style::FAINT),
    ];
    if let Some(percent) = revision.traffic_percent {
        let role = revision.traffic_role.as_deref().unwrap_or("Stable").to_lowercase();
        pieces.push(word(format!("{percent}% of requests, {role}"), Style::PLAIN));
    }
    pieces
}

fn group(group: &GroupView, tree: &Tree) -> Vec<Line> {
    let complete = group.ready_workers >= group.workers && group.workers > 0;
    let style = if group.draining || !complete { Style::NOTE } else { Style::GOOD };
    let mut pieces = vec![
        word(format!("group {}", group.name), Style::STRONG),
        word(format!("{}/{} workers ready", group.ready_workers, group.workers), style),
    ];
    if group.draining {
        let since = group.draining_since.as_deref().and_then(|since| age(since, &tree.time));
        pieces.push(match since {
            Some(age) => word(format!("drains for {}", seconds(age)), Style::NOTE),
            None => word("drains", Style::NOTE),
        });
    }
    pieces.extend(group.requests_in_flight.map(requests));
    pieces.extend(group.loading.map(|load| word(loading(&load), Style::NOTE)));
    pieces
}

/// Seconds between two times.
fn age(since: &str, now: &str) -> Option<u64> {
    let (since, now): (jiff::Timestamp, jiff::Timestamp) = (since.parse().ok()?, now.parse().ok()?);
    u64::try_from(now.as_second() - since.as_second()).ok()
}

fn pod(pod: &PodView) -> Vec<Line> {
    let name = word(format!("pod {}", pod.worker), Style::PLAIN).with(format!(" {}", pod.name), Style::FAINT);
    let mut phase = word(&pod.phase, tone(pod));
    if pod.told_by == Teller::Pod {
        phase.push(" (pod)", Style::FAINT);
    }
    let mut pieces = vec![name, phase];
    if !pod.node.is_empty() {
        pieces.push(word(format!("on {}", pod.node), Style::PLAIN));
    }
    pieces.extend(pod.requests_in_flight.map(requests));
    match pod.loading {
        Some(load) => pieces.push(word(loading(&load), Style::NOTE)),
        None => pieces.extend(
            pod.expert_bytes
                .filter(|held| *held > 0)
                .map(|held| word(format!("experts {}", bytes(held)), Style::FAINT)),
        ),
    }
    if pod.draining {
        pieces.push(word("takes no new requests", Style::NOTE));
    }
    if pod.restarts > 0 {
        let restarts = count(u64::try_from(pod.restarts).unwrap_or(0), "restart", "restarts");
        pieces.push(word(restarts, Style::NOTE));
    }
    pieces
}

fn tone(pod: &PodView) -> Style {
    match pod.phase.as_str() {
        "READY" | "Ready" => Style::GOOD,
        "FAILED" => Style::BAD,
        // reasons of trouble stand in place of a phase
        phase if pod.told_by == Teller::Pod && pod.message.is_some() && phase != "Terminating" => Style::BAD,
        _ => Style::NOTE,
    }
}

fn requests(requests: u64) -> Line {
    word(count(requests, "request", "requests"), if requests > 0 { Style::PLAIN } else { Style::FAINT })
}

/// Bytes, rate and what is left.
pub fn loading(load: &LoadView) -> String {
    let mut text = format!("{} of {}", bytes(load.bytes_done), bytes(load.bytes_total));
    if let Some(rate) = load.bytes_per_second {
        text += &format!(", {}/s", bytes(rate));
    }
    if let Some(eta) = load.eta_seconds {
        text += &format!(", {} left", seconds(eta));
    }
    text
}

fn event(event: &EventView) -> Line {
    let style = if event.kind == "Warning" { Style::BAD } else { Style::PLAIN };
    let mut line = word(format!("{} ago ", seconds(event.age_seconds)), Style::FAINT);
    line.push(&event.reason, style);
    if !event.subject.is_empty() && !event.message.contains(&event.subject) {
        line.push(format!(" {}", event.subject), Style::PLAIN);
    }
    line.push(format!(": {}", short(&event.message)), Style::PLAIN);
    if event.count > 1 {
        line.push(format!(" (x{})", event.count), Style::FAINT);
    }
    line
}

fn indented(pieces: Vec<Line>, width: usize, indent: usize) -> Vec<Line> {
    let blanks = " ".repeat(indent);
    let room = width.saturating_sub(indent).max(1);
    let lines = flow(pieces, room, 2).into_iter();
    lines
        .map(|line| {
            let mut moved = word(&blanks, Style::PLAIN);
            line.spans.into_iter().for_each(|span| moved.push(span.text, span.style));
            moved
        })
        .collect()
}

fn word(text: impl Into<String>, style: Style) -> Line {
    Line::default().with(text, style)
}

fn note(text: &str, style: Style) -> Line {
    word(short(text), style)
}

fn short(text: &str) -> String {
    match text.chars().count() > LONGEST {
        true => text.chars().take(LONGEST).chain("...".chars()).collect(),
        false => text.to_owned(),
    }
}

//! The picture in lines of words and signs.
use belay_epoch::Phase;

use super::{
    grid::{Cell, Grid, Mark, Row},
    heat::{self, colours},
    operation::OperationView,
    units::{bytes, count, ranges, seconds},
    view::{GroupView, View},
    workers::{Presence, WorkerView},
};
use crate::terminal::line::{Line, Style, flow};

/// How the picture is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Characters in a line.
    pub width: usize,
    /// Whether colours tell the load of a copy; else a digit behind its sign does.
    pub coloured: bool,
}

/// Narrower terminals get what is beyond this cut off.
const NARROWEST: usize = 20;

/// Longest message of a worker that is shown.
const LONGEST_MESSAGE: usize = 200;

/// Imbalance from which it stands out: the operator's threshold, unless the spec has another.
const UNEVEN: u64 = 130;

/// Everything.
pub fn render(view: &View, options: Options) -> Vec<Line> {
    let width = options.width.max(NARROWEST);
    let mut lines = vec![
        Line::default()
            .with(&view.deployment, Style::STRONG)
            .with(format!(" in {}", view.namespace), Style::FAINT),
    ];
    lines.extend(view.troubles.iter().flat_map(|trouble| flow(vec![word(trouble, Style::BAD)], width, 2)));
    if view.groups.is_empty() {
        lines.push(word("it has no groups", Style::NOTE));
    }
    let mut used = vec![];
    for group in &view.groups {
        lines.push(Line::default());
        lines.extend(header(group, width));
        lines.push(Line::default());
        lines.extend(heat_map(group, Options { width, ..options }, &mut used));
    }
    if !used.is_empty() {
        lines.push(Line::default());
        lines.extend(legend(&used, Options { width, ..options }));
    }
    lines.into_iter().map(|line| line.clipped(options.width)).collect()
}

fn word(text: impl Into<String>, style: Style) -> Line {
    Line::default().with(text, style)
}

fn header(group: &GroupView, width: usize) -> Vec<Line> {
    let experts = &group.experts;
    let covered = format!("covered {}/{}", experts.covered, experts.total);
    let is_covered = experts.covered == experts.total;
    let mut pieces = vec![word(format!("group {}", group.name), Style::STRONG)];
    if !group.revision.is_empty() {
        pieces.push(word(format!("revision {}", group.revision), Style::FAINT));
    }
    pieces.push(match group.epoch {
        0 => word("no placement yet", Style::NOTE),
        epoch => word(format!("epoch {epoch}"), Style::PLAIN),
    });
    if experts.total > 0 {
        pieces.push(word(covered, if is_covered { Style::GOOD } else { Style::LOST }));
        pieces.push(word(format!("fewest live copies {}", experts.min_live_copies), Style::PLAIN));
    }
    if experts.adopted > 0 {
        pieces.push(word(format!("{} adopted", experts.adopted), Style::NOTE));
    }
    pieces.push(match group.imbalance_percent {
        Some(percent) => {
            let style = if percent < UNEVEN { Style::PLAIN } else { Style::NOTE };
            word(format!("imbalance {percent}%"), style)
        }
        None => word("no load", Style::FAINT),
    });
    let mut lines = flow(pieces, width, 2);
    lines.extend(group.operation.iter().flat_map(|operation| progress(operation, width)));
    lines.extend(group.notes.iter().flat_map(|note| flow(vec![word(note, Style::BAD)], width, 2)));
    lines
}

fn progress(operation: &OperationView, width: usize) -> Vec<Line> {
    const LENGTH: usize = 20;
    let done = (operation.percent as usize * LENGTH / 100).min(LENGTH);
    let bar = format!("[{}{}]", "#".repeat(done), ".".repeat(LENGTH - done));
    let mut pieces = vec![
        word(format!("{} to epoch {}", operation.kind_name(), operation.epoch), Style::STRONG),
        word(format!("{} {bar} {}%", operation.phase_name(), operation.percent), Style::NOTE),
    ];
    if operation.phase == Phase::Prepare && operation.bytes_total > 0 {
        let amount = format!("{} of {}", bytes(operation.bytes_done), bytes(operation.bytes_total));
        pieces.push(word(amount, Style::PLAIN));
    }
    pieces.extend(operation.elapsed_seconds.map(|s| word(format!("since {}", seconds(s)), Style::PLAIN)));
    pieces.extend(operation.eta_seconds.map(|s| word(format!("done in {}", seconds(s)), Style::STRONG)));
    if !operation.reason.is_empty() {
        pieces.push(word(format!("({})", operation.reason), Style::FAINT));
    }
    let mut lines = flow(pieces, width, 2);
    let busy: Vec<u32> =
        operation.waiting_for.iter().filter(|w| w.why.is_empty()).map(|waiting| waiting.worker).collect();
    let mut waiting = vec![];
    if !busy.is_empty() {
        let workers = if busy.len() == 1 { "worker" } else { "workers" };
        waiting.push(word(format!("waits for {workers} {}", ranges(&busy)), Style::FAINT));
    }
    let stuck = operation.waiting_for.iter().filter(|w| !w.why.is_empty());
    waiting.extend(stuck.map(|w| word(format!("worker {}: {}", w.worker, short(&w.why)), Style::BAD)));
    lines.extend(flow(waiting, width, 2));
    lines
}

fn short(message: &str) -> String {
    match message.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}...", &message[..end]),
        None => message.to_owned(),
    }
}

/// Where things stand in a row.
struct Frame {
    /// Characters of a rank's number.
    label: usize,
    /// Characters of a cell.
    cell: usize,
    /// Characters of a rank's load; 0: left out.
    load: usize,
    /// Characters of a rank's copies; 0: left out.
    copies: usize,
    coloured: bool,
}

impl Frame {
    fn of(group: &GroupView, options: Options) -> Self {
        let digits = |number: u32| number.to_string().len();
        let last = group.ranks.last().map_or(0, |rank| rank.rank);
        let mut frame = Self {
            label: digits(last).max("rank".len()),
            cell: 2,
            load: if options.width >= 32 { 7 } else { 0 },
            copies: if options.width >= 50 { 8 } else { 0 },
            coloured: options.coloured,
        };
        let fits = frame.columns(options.width) >= group.copies.shape.experts;
        // a colour needs one character; a digit needs the second one, as long as there are columns enough
        if options.coloured && !fits || options.width < 32 {
            frame.cell = 1;
        }
        frame
    }

    fn columns(&self, width: usize) -> u32 {
        let room = width.saturating_sub(self.label + 1 + self.load + self.copies);
        u32::try_from((room / self.cell).max(1)).unwrap_or(u32::MAX)
    }

    fn label(&self, text: &str) -> String {
        format!("{text:>label$} ", label = self.label)
    }
}

fn heat_map(group: &GroupView, options: Options, used: &mut Vec<Mark>) -> Vec<Line> {
    let frame = Frame::of(group, options);
    let grid = Grid::of(&group.copies, &group.ranks, frame.columns(options.width));
    let mut lines = vec![];
    if grid.columns > 0 && !grid.rows.is_empty() {
        let layers = match group.copies.only {
            Some(layer) => format!("experts of layer {layer}"),
            None => format!(
                "experts, {}",
                count(u64::from(group.copies.shape.layers), "layer", "layers together")
            ),
        };
        let fold = match grid.experts_per_column {
            1 => String::new(),
            experts => format!(", {experts} a column"),
        };
        lines.push(word(format!("{}{layers}{fold}", frame.label("")), Style::FAINT));
        lines.push(word(scale(&grid, &frame), Style::FAINT));
    }
    for worker in &group.workers {
        lines.extend(about(worker, group.epoch, options.width));
        let rows = grid.rows.iter().filter(|row| grid.columns > 0 && row.worker == worker.worker);
        lines.extend(rows.map(|row| draw(row, &frame, used)));
    }
    // ranks that no worker of the placement owns: only a document that contradicts itself has them
    let known = |row: &&Row| group.workers.iter().any(|worker| worker.worker == row.worker);
    lines.extend(grid.rows.iter().filter(|row| !known(row)).map(|row| draw(row, &frame, used)));
    if group.workers.is_empty() {
        lines.push(word("it has no workers", Style::NOTE));
    }
    lines
}

/// Numbers of experts over their columns, as many as there is room for.
fn scale(grid: &Grid, frame: &Frame) -> String {
    let last = grid.columns.saturating_sub(1) * grid.experts_per_column;
    let room = last.to_string().len() + 2;
    let step = [1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 256]
        .into_iter()
        .find(|step| step * frame.cell >= room)
        .unwrap_or(512);
    let length = grid.columns as usize * frame.cell;
    let mut numbers = String::new();
    for column in (0..grid.columns).step_by(step) {
        let place = column as usize * frame.cell;
        let number = (column * grid.experts_per_column).to_string();
        if place + number.len() <= length.max(number.len()) {
            numbers = format!("{numbers:<place$}{number}");
        }
    }
    let mut line = format!("{}{numbers:<length$}", frame.label("rank"));
    if frame.load > 0 {
        line = format!("{line}{:>width$}", "load", width = frame.load);
    }
    if frame.copies > 0 {
        line = format!("{line}{:>width$}", "copies", width = frame.copies);
    }
    line
}

fn draw(row: &Row, frame: &Frame, used: &mut Vec<Mark>) -> Line {
    let mut line = word(frame.label(&row.rank.to_string()), Style::PLAIN);
    for cell in &row.cells {
        if !used.contains(&cell.mark) {
            used.push(cell.mark);
        }
        let sign = cell.mark.sign();
        let text = match (frame.cell, cell.heat.filter(|_| !frame.coloured)) {
            (1, _) => sign.to_string(),
            (_, Some(heat)) => format!("{sign}{heat}"),
            (_, None) => format!("{sign} "),
        };
        line.push(text, style(cell, frame.coloured));
    }
    if frame.load > 0 {
        let load = row.load_percent.map(|percent| format!("{percent}%")).unwrap_or_default();
        line.push(format!("{load:>width$}", width = frame.load), Style::PLAIN);
    }
    if frame.copies > 0 {
        line.push(format!("{:>width$}", row.resident, width = frame.copies), Style::FAINT);
    }
    line
}

fn style(cell: &Cell, coloured: bool) -> Style {
    const UNHEATED: Style = Style { foreground: Some(255), background: Some(238), bold: false };
    match (cell.mark, cell.heat) {
        (Mark::Nothing, _) => Style::FAINT,
        (Mark::Uncovered, _) => Style::LOST,
        (Mark::Missing, _) => Style::BAD,
        (Mark::Unseen, _) => Style::NOTE,
        (Mark::Leaving, None) => Style::FAINT,
        (Mark::Arriving, None) => Style { bold: true, ..Style::NOTE },
        (mark, Some(heat)) if coloured => {
            let (background, foreground) = colours(heat);
            let bold = matches!(mark, Mark::Adopted | Mark::Arriving | Mark::Leaving);
            Style { foreground: Some(foreground), background: Some(background), bold }
        }
        _ if coloured => UNHEATED,
        _ => Style::PLAIN,
    }
}

fn about(worker: &WorkerView, epoch: u64, width: usize) -> Vec<Line> {
    let mut pieces = vec![word(format!("worker {}", worker.worker), Style::STRONG)];
    match &worker.pod {
        Some(pod) => pieces.push(word(pod, Style::PLAIN)),
        None => pieces.push(word("no pod", Style::BAD)),
    }
    match worker.node.as_str() {
        "" if worker.pod.is_some() => pieces.push(word("on no node", Style::NOTE)),
        "" => (),
        node => pieces.push(word(format!("on {node}"), Style::FAINT)),
    }
    match (worker.phase.as_deref(), worker.presence) {
        (Some("READY"), _) => pieces.push(word("READY", Style::GOOD)),
        (Some("FAILED"), _) => pieces.push(word("FAILED", Style::BAD)),
        (Some(phase), _) => pieces.push(word(phase, Style::NOTE)),
        (None, Presence::Unseen) => pieces.push(word("does not answer here, but its peers", Style::NOTE)),
        (None, Presence::NoPod) => (),
        (None, _) => pieces.push(word("does not answer", Style::BAD)),
    }
    if !worker.message.is_empty() {
        pieces.push(word(short(&worker.message), Style::NOTE));
    }
    if worker.phase.is_some() {
        pieces.push(word(
            match worker.expert_bytes_limit {
                0 => bytes(worker.expert_bytes),
                limit => format!("{} of {}", bytes(worker.expert_bytes), bytes(limit)),
            },
            Style::PLAIN,
        ));
        if worker.epoch != epoch {
            pieces.push(word(format!("at epoch {}", worker.epoch), Style::NOTE));
        }
    }
    if worker.pod.is_some() && !worker.in_placement {
        pieces.push(word("not in the placement", Style::NOTE));
    }
    for (is, text) in [(worker.leaving, "is being deleted"), (worker.draining, "drains")] {
        if is {
            pieces.push(word(text, Style::NOTE));
        }
    }
    if worker.requests_in_flight > 0 {
        let requests = count(u64::from(worker.requests_in_flight), "request", "requests");
        pieces.push(word(requests, Style::PLAIN));
    }
    if !worker.lost_to.is_empty() {
        let workers = if worker.lost_to.len() == 1 { "worker" } else { "workers" };
        pieces.push(word(format!("lost to {workers} {}", ranges(&worker.lost_to)), Style::BAD));
    }
    pieces.extend(worker.notes.iter().map(|note| word(short(note), Style::NOTE)));
    flow(pieces, width, 4)
}

fn legend(used: &[Mark], options: Options) -> Vec<Line> {
    let mut pieces = vec![];
    for mark in Mark::ALL.into_iter().filter(|mark| used.contains(mark)) {
        let cell = Cell { mark, resident: 0, heat: None };
        let sign = word(mark.sign(), style(&cell, options.coloured));
        pieces.push(sign.with(format!(" {}", mark.meaning()), Style::FAINT));
    }
    let even = heat::EVEN;
    if options.coloured {
        let mut scale = word("load of a copy ", Style::FAINT);
        for heat in 0..=heat::MOST {
            let (background, foreground) = colours(heat);
            let style = Style { foreground: Some(foreground), background: Some(background), bold: false };
            scale.push(heat.to_string(), style);
        }
        pieces.push(scale.with(format!(" {even} is average"), Style::FAINT));
    } else {
        pieces.push(word(format!("digit: load of a copy, {even} is average"), Style::FAINT));
    }
    flow(pieces, options.width, 0)
}

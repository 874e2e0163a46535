//! The measured part of `docs/reliability.md`.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};

use super::{
    change::Change,
    load::{Moment, Summary},
    row::Row,
    scaling::Run,
    scenario::Fault,
};

/// Puts the tables between a page's marks.
///
/// # Errors
/// If the page can't be read or written, or a mark is missing.
pub fn publish(page: &Path, faults: &[Row], load: &[Moment]) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let text = between(&text, "faults", &fault_table(faults))?;
    let text = between(&text, "load", &load_table(load))?;
    fs::write(page, text).with_context(|| page.display().to_string())
}

/// Puts the table of changes between its marks.
///
/// # Errors
/// If the page can't be read or written, or a mark is missing.
pub fn publish_changes(page: &Path, changes: &[Change]) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let text = between(&text, "changes", &change_table(changes))?;
    fs::write(page, text).with_context(|| page.display().to_string())
}

/// Puts the table of autoscalers between its marks.
///
/// # Errors
/// If the page can't be read or written, or a mark is missing.
pub fn publish_scaling(page: &Path, runs: &[Run]) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let text = between(&text, "scaling", &scaling_table(runs))?;
    fs::write(page, text).with_context(|| page.display().to_string())
}

/// A line for each scenario, as it was played last, and what was seen besides.
#[must_use]
pub fn scaling_table(runs: &[Run]) -> String {
    let Some(last) = runs.last() else { return "Nothing was measured yet.\n".into() };
    let mut latest: Vec<&Run> = Vec::new();
    for run in runs {
        match latest.iter_mut().find(|older| older.scenario == run.scenario) {
            Some(older) => *older = run,
            None => latest.push(run),
        }
    }
    let seconds = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0}"));
    let mut text = format!("{}, {}.\n\n", last.provenance.date, last.provenance.machine);
    text += "| scenario | commit | streams | failed | sent away | differ | groups | turns | up after | down after | worst wait for a first piece | as it should be |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|\n";
    for run in &latest {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.1} | {} |",
            run.scenario,
            run.provenance.commit,
            run.right + run.failed + run.differing,
            run.failed,
            run.refused,
            run.differing,
            run.groups.replace('>', "→"),
            run.turns,
            seconds(run.up_s),
            seconds(run.down_s),
            run.first_s,
            if run.problem.is_empty() { "yes" } else { "**no**" },
        );
    }
    text += "\n";
    for Run { scenario, saw, problem, .. } in latest {
        let problem = if problem.is_empty() { String::new() } else { format!(" **{problem}**") };
        let _ = writeln!(text, "- {scenario}: {saw}.{problem}");
    }
    text
}

/// A line for each kind of change, of the commit with which it was made last.
#[must_use]
pub fn change_table(changes: &[Change]) -> String {
    let Some(last) = changes.last() else { return "Nothing was measured yet.\n".into() };
    let mut groups: Vec<Vec<&Change>> = Vec::new();
    for change in changes {
        match groups.iter_mut().find(|group| group[0].event == change.event) {
            Some(group) if group[0].provenance.commit == change.provenance.commit => group.push(change),
            Some(older) => *older = vec![change],
            None => groups.push(vec![change]),
        }
    }
    let mut text = format!("{}, {}.\n\n", last.provenance.date, last.provenance.machine);
    text += "| change | commit | n | streams | failed | differ | worst wait for a first piece | worst wait between two | took | not as it should be |\n\
             |---|---|---|---|---|---|---|---|---|---|\n";
    for group in groups {
        let sum = |of: fn(&Change) -> usize| group.iter().map(|change| of(change)).sum::<usize>();
        let spread = |of: fn(&Change) -> f64| spread(group.iter().map(|change| Some(of(change))).collect());
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            group[0].event,
            group[0].provenance.commit,
            group.len(),
            sum(|change| change.right + change.failed + change.differing),
            sum(|change| change.failed),
            sum(|change| change.differing),
            spread(|change| change.first_s),
            spread(|change| change.gap_s),
            spread(|change| change.took_s),
            group.iter().filter(|change| !change.problem.is_empty()).count(),
        );
    }
    text
}

fn between(text: &str, name: &str, new: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
    let (head, rest) = text.split_once(&begin).with_context(|| format!("no line {begin}"))?;
    let (_, tail) = rest.split_once(&end).with_context(|| format!("no line {end}"))?;
    Ok(format!("{head}{begin}{new}{end}{tail}"))
}

/// A line for each fault, layout and number of copies, of the commit with which it was tried last.
#[must_use]
pub fn fault_table(rows: &[Row]) -> String {
    let Some(last) = rows.last() else { return "Nothing was measured yet.\n".into() };
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    let key = |row: &Row| (row.fault.clone(), row.layout.clone(), row.copies);
    for row in rows {
        match groups.iter_mut().find(|group| key(group[0]) == key(row)) {
            Some(group) if group[0].provenance.commit == row.provenance.commit => group.push(row),
            Some(older) => *older = vec![row],
            None => groups.push(vec![row]),
        }
    }
    groups.sort_by_key(|group| (group[0].layout.clone(), group[0].copies));
    let mut text = format!("{}, {}.\n\n", last.provenance.date, last.provenance.machine);
    text += "| fault | layout | copies | commit | n | streams | failed | differ | worst stall | noticed after | serving again after | all copies again after | broken promises |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|\n";
    for group in groups {
        let first = group[0];
        let title = Fault::named(&first.fault).map(Fault::title).unwrap_or(&first.fault);
        let sum = |of: fn(&Row) -> usize| group.iter().map(|row| of(row)).sum::<usize>();
        let spread = |of: fn(&Row) -> Option<f64>| spread(group.iter().map(|row| of(row)).collect());
        let broken = group.iter().filter(|row| !row.problem.is_empty()).count();
        let _ = writeln!(
            text,
            "| {title} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {broken} |",
            first.layout.replace('x', " × "),
            first.copies,
            first.provenance.commit,
            group.len(),
            sum(|row| row.right + row.failed + row.differing),
            sum(|row| row.failed),
            sum(|row| row.differing),
            spread(|row| Some(row.stall_s())),
            spread(|row| row.noticed_s),
            spread(|row| row.serving_s),
            spread(|row| row.restored_s),
        );
    }
    text
}

/// A line for each run, of the commit that was measured last.
#[must_use]
pub fn load_table(moments: &[Moment]) -> String {
    let Some(last) = moments.last() else { return "Nothing was measured yet.\n".into() };
    let mut runs: Vec<Vec<Moment>> = Vec::new();
    for moment in moments.iter().filter(|moment| moment.provenance.commit == last.provenance.commit) {
        match runs.last_mut() {
            // time goes on within a run
            Some(run) if run.last().is_some_and(|before| follows(before, moment)) => run.push(moment.clone()),
            _ => runs.push(vec![moment.clone()]),
        }
    }
    let mut text = heading(&last.provenance);
    text += "| mix | layout | interval s | seconds | moves | imbalance before, after, at most % | below 120 % after s | tokens/s before, after |\n\
             |---|---|---|---|---|---|---|---|\n";
    for run in runs {
        let (Some(summary), Some(first)) = (Summary::of(&run), run.first()) else { continue };
        let Summary { seconds, moves, before_percent, after_percent, most_percent, .. } = summary;
        let even = summary.even_after_s.map_or_else(|| "–".to_owned(), |seconds| format!("{seconds:.0}"));
        let tokens = match moves {
            0 => format!("{:.0}", summary.tokens_before),
            _ => format!("{:.0}, {:.0}", summary.tokens_before, summary.tokens_after),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {seconds:.0} | {moves} | {before_percent:.0}, {after_percent:.0}, {most_percent:.0} | {even} | {tokens} |",
            first.mix,
            first.layout.replace('x', " × "),
            first.interval_s,
        );
    }
    text
}

fn follows(before: &Moment, moment: &Moment) -> bool {
    (&before.mix, &before.layout, before.interval_s) == (&moment.mix, &moment.layout, moment.interval_s)
        && moment.at_s > before.at_s
}

fn heading(provenance: &super::provenance::Provenance) -> String {
    let super::provenance::Provenance { date, commit, machine } = provenance;
    format!("{date}, commit {commit}, {machine}.\n\n")
}

/// Smallest, median and largest; `–` where nothing was seen, and how often that was.
fn spread(values: Vec<Option<f64>>) -> String {
    let mut seen: Vec<f64> = values.iter().copied().flatten().collect();
    seen.sort_by(f64::total_cmp);
    let missing = match values.len() - seen.len() {
        0 => String::new(),
        missing => format!(", – in {missing}"),
    };
    match (seen.first(), seen.last()) {
        (Some(least), Some(most)) => {
            let middle = seen.len() / 2;
            let median = if seen.len() % 2 == 1 {
                seen[middle]
            } else {
                f64::midpoint(seen[middle - 1], seen[middle])
            };
            format!("{least:.1} / {median:.1} / {most:.1}{missing}")
        }
        _ => "–".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::provenance::Provenance;

    fn row(fault: &str, commit: &str, gap_s: f64, noticed_s: Option<f64>, problem: &str) -> Row {
        Row {
            provenance: Provenance { date: "d".into(), commit: commit.into(), machine: "m".into() },
            fault: fault.into(),
            layout: "2x2".into(),
            copies: 2,
            right: 10,
            gap_s,
            noticed_s,
            problem: problem.into(),
            ..Row::default()
        }
    }

    #[test]
    fn equal_trials_are_a_line_and_what_was_tried_again_since_is_left_out() {
        let rows = [
            row("kill", "old", 9.0, None, ""),
            row("starve-5s", "old", 1.0, None, ""),
            row("kill", "new", 1.0, Some(0.25), ""),
            row("stop-node", "new", 2.0, None, ""),
            row("kill", "new", 3.0, None, "late"),
            row("kill", "new", 2.0, Some(0.75), ""),
        ];
        let table = fault_table(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "d, m.");
        assert_eq!(lines.len(), 7, "{table}");
        assert_eq!(
            lines[4],
            "| worker killed (SIGKILL) | 2 × 2 | 2 | new | 3 | 30 | 0 | 0 | 1.0 / 2.0 / 3.0 | 0.2 / 0.5 / 0.8, – in 1 | – | – | 1 |"
        );
        assert!(lines[5].contains("SIGSTOP) | 2 × 2 | 2 | old | 1 |"), "{table}");
        assert!(
            lines[6].starts_with("| node stopped | 2 × 2 | 2 | new | 1 | 10 | 0 | 0 | 2.0 / 2.0 / 2.0 | – |")
        );
    }

    #[test]
    fn changes_of_a_kind_are_a_line() {
        let change = |event: &str, commit: &str, gap_s, problem: &str| Change {
            provenance: Provenance { date: "d".into(), commit: commit.into(), machine: "m".into() },
            event: event.into(),
            right: 10,
            gap_s,
            problem: problem.into(),
            ..Change::default()
        };
        let changes = [
            change("scale", "old", 9.0, ""),
            change("drain", "old", 1.0, ""),
            change("scale", "new", 1.0, ""),
            change("scale", "new", 2.0, "late"),
        ];
        let table = change_table(&changes);
        let lines: Vec<&str> = table.lines().skip(4).collect();
        assert_eq!(lines.len(), 2, "{table}");
        assert_eq!(
            lines[0],
            "| scale | new | 2 | 20 | 0 | 0 | 0.0 / 0.0 / 0.0 | 1.0 / 1.5 / 2.0 | 0.0 / 0.0 / 0.0 | 1 |"
        );
    }

    #[test]
    fn a_scenario_is_a_line_as_it_was_played_last() {
        let run = |scenario: &str, right, problem: &str| Run {
            provenance: Provenance { date: "d".into(), commit: "c".into(), machine: "m".into() },
            scenario: scenario.into(),
            right,
            groups: "1 > 3 > 1".into(),
            turns: 1,
            down_s: Some(30.4),
            saw: "much".into(),
            problem: problem.into(),
            ..Run::default()
        };
        let table = scaling_table(&[run("a", 10, "late"), run("b", 5, "lost"), run("a", 20, "")]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[4], "| a | c | 20 | 0 | 0 | 0 | 1 → 3 → 1 | 1 | – | 30 | 0.0 | yes |");
        assert!(lines[5].ends_with("| **no** |"), "{table}");
        assert_eq!(&lines[6..], ["", "- a: much.", "- b: much. **lost**"]);
    }

    #[test]
    fn runs_are_told_apart_by_their_time() {
        let moment = |mix: &str, at_s, imbalance_percent, epoch| Moment {
            mix: mix.into(),
            layout: "4x1".into(),
            interval_s: 30,
            at_s,
            imbalance_percent,
            epoch,
            ..Moment::default()
        };
        let moments = [
            moment("skewed", 1.0, 180.0, 1),
            moment("skewed", 2.0, 110.0, 2),
            moment("skewed", 1.0, 150.0, 2),
            moment("even", 2.0, 104.0, 2),
        ];
        let table = load_table(&moments);
        let lines: Vec<&str> = table.lines().skip(4).collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert!(lines[0].starts_with("| skewed | 4 × 1 | 30 | 1 | 1 | 180, 110, 180 | 2 |"), "{table}");
        assert!(lines[1].starts_with("| skewed | 4 × 1 | 30 | 0 | 0 | 150, 150, 150 | – |"), "{table}");
        assert!(lines[2].starts_with("| even | 4 × 1 | 30 | 0 | 0 | 104, 104, 104 | 2 |"), "{table}");
    }

    #[test]
    fn a_page_keeps_all_but_what_is_between_the_marks() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("page.md");
        let marks = |name: &str| format!("<!-- {name}: begin -->\nold\n<!-- {name}: end -->\n");
        fs::write(&page, format!("# Title\n{}middle\n{}end\n", marks("faults"), marks("load"))).unwrap();
        publish(&page, &[row("kill", "new", 1.0, None, "")], &[]).unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.starts_with("# Title\n") && text.ends_with("end\n"), "{text}");
        assert!(
            text.contains("\nmiddle\n") && text.contains("worker killed") && !text.contains("old"),
            "{text}"
        );
        publish(&page, &[], &[]).unwrap();
        assert!(!fs::read_to_string(&page).unwrap().contains("worker killed"));
        fs::write(&page, "# Title\n").unwrap();
        publish(&page, &[], &[]).unwrap_err();
    }
}

//! The whole forward of a model, against llama.cpp's on a model of the same sizes: a prompt in one go, and tokens one by one.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use belay_cpu::{CpuBackend, Level, Products, Weights};
use serde::Deserialize;

use crate::bare::Bare;
use crate::kernels::KernelRow;
use crate::load::{Endpoint, Request};
use crate::process::Others;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Model to load.
    pub dir: PathBuf,
    /// What inputs of linears are multiplied as.
    pub products: Products,
    /// Where weights lie.
    pub weights: Weights,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens one by one.
    pub tokens: usize,
    /// Times that each is measured.
    pub rounds: usize,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// `llama-bench`, and a model for it.
    pub peer: Option<(PathBuf, PathBuf)>,
    /// Day, commit and machine, for every row.
    pub stamp: KernelRow,
}

/// Measures; `on_row` gets each row as it comes.
///
/// # Errors
/// A model that can't be loaded, or a peer that fails.
pub fn run(plan: &Plan, mut on_row: impl FnMut(KernelRow)) -> Result<()> {
    for &threads in &plan.threads {
        let level = Level::detect();
        let backend =
            CpuBackend::with(level, threads).with_context(|| format!("this machine has no {level}"))?;
        let model =
            Bare::load_for(backend.with_products(plan.products).with_weights(plan.weights), &plan.dir)?;
        let (prompt, tokens) = (request(plan.prompt, 1), request(1, plan.tokens));
        let (of_prompt, of_tokens) = (format!("prefill {}", plan.prompt), format!("decode {}", plan.tokens));
        // weights are read from files at first
        model.run(&[request(8, 2)], 1, plan.prompt)?;
        let mut row = |round: usize, by: &str, case: &str, ms: f64, others: f64| {
            let named =
                KernelRow { threads, case: case.to_owned(), by: by.to_owned(), round, ..plan.stamp.clone() };
            on_row(KernelRow { min_ms: ms, median_ms: ms, cpu_others_percent: others, ..named });
        };
        for round in 0..plan.rounds {
            for (case, request) in [(&of_prompt, &prompt), (&of_tokens, &tokens)] {
                let others = Others::than(std::process::id())?;
                let seconds = model.run(std::slice::from_ref(request), 1, plan.prompt)?.seconds;
                row(round, "belay", case, 1e3 * seconds, others.percent()?);
            }
            if let Some((program, file)) = &plan.peer {
                let ms = llama(program, file, plan, threads)?;
                for (case, ms) in [(&of_prompt, ms[0]), (&of_tokens, ms[1])] {
                    row(round, "llama.cpp", case, ms, 0.0);
                }
            }
            eprintln!("{threads} threads: round {} of {}", round + 1, plan.rounds);
        }
    }
    Ok(())
}

/// Tokens without a meaning.
fn request(prompt: usize, output: usize) -> Request {
    Request {
        kind: "forward",
        endpoint: Endpoint::Completions,
        body: Vec::new().into(),
        prompt_ids: (0..prompt as u32).map(|i| 16 + i * 7919 % 2000).collect(),
        output_tokens: output as u32,
    }
}

/// What `llama-bench` prints of each of its tests.
#[derive(Deserialize)]
struct LlamaTest {
    n_prompt: usize,
    n_gen: usize,
    avg_ns: f64,
}

/// Milliseconds of the prompt, and of the tokens.
fn llama(program: &Path, model: &Path, plan: &Plan, threads: usize) -> Result<[f64; 2]> {
    let mut command = Command::new(program);
    command.arg("-m").arg(model).args(["-o", "json", "-r", "1", "-t", &threads.to_string()]);
    command.args(["-p", &plan.prompt.to_string(), "-n", &plan.tokens.to_string()]);
    let output = command.output().with_context(|| program.display().to_string())?;
    ensure!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    let tests: Vec<LlamaTest> = serde_json::from_slice(&output.stdout).context("what llama-bench printed")?;
    let of = |is: fn(&LlamaTest) -> usize| {
        let test = tests.iter().find(|test| is(test) > 0).context("llama-bench left out a test")?;
        anyhow::Ok(test.avg_ns * 1e-6)
    };
    Ok([of(|test| test.n_prompt)?, of(|test| test.n_gen)?])
}

/// A line for each case and number of threads: tokens a second, and ratios of the same round.
#[must_use]
pub fn markdown(rows: &[KernelRow]) -> String {
    let mut text = String::from(
        "| threads | work | ours, token/s: best (median) | llama.cpp, token/s: best (median) | times as fast: median (least, best) | rounds | others' CPU |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let mut cases: Vec<(usize, &str)> = rows.iter().map(|row| (row.threads, row.case.as_str())).collect();
    cases.sort_unstable();
    cases.dedup();
    for (threads, case) in cases {
        let of = |by: &str| -> Vec<&KernelRow> {
            let same = |row: &&KernelRow| row.threads == threads && row.case == case && row.by == by;
            rows.iter().filter(same).collect()
        };
        let (ours, theirs) = (of("belay"), of("llama.cpp"));
        let tokens: f64 = case.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN);
        let rate = |rows: &[&KernelRow]| {
            let rates = sorted(rows.iter().map(|row| tokens / row.min_ms * 1e3));
            rates.last().map_or("–".to_owned(), |best| format!("{best:.1} ({:.1})", rates[rates.len() / 2]))
        };
        let ratios = sorted(ours.iter().filter_map(|row| {
            let other = theirs.iter().find(|other| other.round == row.round)?;
            Some(other.min_ms / row.min_ms)
        }));
        let lead = match (ratios.first(), ratios.last()) {
            (Some(least), Some(best)) => format!("{:.2} ({least:.2}, {best:.2})", ratios[ratios.len() / 2]),
            _ => "–".to_owned(),
        };
        let foreign = sorted(ours.iter().map(|row| row.cpu_others_percent));
        let foreign = foreign.get(foreign.len() / 2).copied().unwrap_or_default();
        let (mine, other, rounds) = (rate(&ours), rate(&theirs), ours.len());
        let _ =
            writeln!(text, "| {threads} | {case} | {mine} | {other} | {lead} | {rounds} | {foreign:.0} % |");
    }
    text
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_all_tokens_and_ratios_of_the_same_round() {
        let row = |by: &str, round, min_ms| KernelRow {
            threads: 2,
            case: "decode 64".to_owned(),
            by: by.to_owned(),
            round,
            min_ms,
            ..KernelRow::default()
        };
        let rows = [
            row("belay", 0, 640.0),
            row("llama.cpp", 0, 1280.0),
            row("belay", 1, 6400.0),
            row("llama.cpp", 1, 3200.0),
        ];
        let table = markdown(&rows);
        let expected = "| 2 | decode 64 | 100.0 (100.0) | 50.0 (50.0) | 2.00 (0.50, 2.00) | 2 | 0 % |";
        assert!(table.ends_with(&format!("{expected}\n")), "{table}");
    }
}

//! The autoscaler against a fixed number of groups and HorizontalPodAutoscalers, in simulated time: the same on every
//! machine.
//!
//! `cargo bench -p belay-operator --bench scaling -- [--csv FILE] [--trace FILE]... [--write DIR]`
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod simulation;

use std::{fs, path::PathBuf};

use clap::Parser;
use serde_json::json;

use self::simulation::{
    Autoscaler,
    others::{Fixed, Hpa, HpaMetric},
    ours::Belay,
    result::Outcome,
    run,
    trace::{Trace, recorded, synthetic},
};

#[derive(Parser)]
struct Args {
    /// Also write the results to a file.
    #[arg(long)]
    csv: Option<PathBuf>,
    /// Recorded traces to run in place of all others: CSV with arrival_seconds,prompt_tokens,output_tokens.
    #[arg(long)]
    trace: Vec<PathBuf>,
    /// Write the traces to a folder, in that format, and run nothing.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Most groups.
    #[arg(long, default_value_t = 12)]
    max_replicas: u32,
    /// Seconds that a group takes to load.
    #[arg(long, default_value_t = 90.0)]
    load_seconds: f64,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let traces: Vec<Trace> = if args.trace.is_empty() {
        synthetic().into_iter().chain(recorded()).collect()
    } else {
        args.trace.iter().map(|path| Trace::read(path)).collect()
    };
    if let Some(dir) = args.write {
        fs::create_dir_all(&dir).unwrap();
        for trace in traces {
            fs::write(dir.join(format!("{}.csv", trace.name.replace(' ', "-"))), trace.csv()).unwrap();
        }
        return;
    }
    println!(
        "| trace | autoscaler | requests | late or refused | refused | p99 s | worst s | group-hours | most | changes | flaps |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut csv = "trace,autoscaler,requests,late_percent,refused,p99_seconds,worst_seconds,group_hours,most,changes,flaps\n".to_owned();
    for trace in &traces {
        let from_zero = trace.name.contains("zero");
        let min = u32::from(!from_zero);
        let spec = json!({ "minReplicas": min, "maxReplicas": args.max_replicas,
            "targetOutstandingTokensPerReplica": 4096, "targetTimeToFirstTokenMilliseconds": 1500 });
        let mut autoscalers: [Box<dyn Autoscaler>; 4] = [
            Box::new(Belay::new(spec, min)),
            Box::new(Hpa::new(HpaMetric::Requests(12.0), args.max_replicas)),
            Box::new(Hpa::new(HpaMetric::Use(0.7), args.max_replicas)),
            Box::new(Fixed(args.max_replicas)),
        ];
        for autoscaler in &mut autoscalers {
            let outcome = run(trace, autoscaler.as_mut(), args.load_seconds);
            println!("| {} |", row(&outcome, "%").join(" | "));
            csv.push_str(&row(&outcome, "").join(",").replace("HPA, ", "HPA "));
            csv.push('\n');
        }
    }
    if let Some(path) = args.csv {
        fs::write(path, csv).unwrap();
    }
}

fn row(outcome: &Outcome, percent: &str) -> Vec<String> {
    vec![
        outcome.trace.clone(),
        outcome.autoscaler.clone(),
        outcome.requests.to_string(),
        format!("{:.2}{percent}", outcome.late_percent()),
        outcome.refused.to_string(),
        format!("{:.1}", outcome.p99_seconds),
        format!("{:.1}", outcome.worst_seconds),
        format!("{:.1}", outcome.group_seconds / 3600.0),
        outcome.most.to_string(),
        outcome.changes.len().to_string(),
        outcome.flaps().to_string(),
    ]
}

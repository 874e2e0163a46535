//! Requests of every kind, good and bad, abandoned and read to the end, leave nothing behind in real processes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use belay_bench::model::{Preset, write};
use belay_bench::process::{Programs, Stack, StackOptions};
use belay_bench::soak::{Kind, Outcome, Soak, WORKER_ARGS};

/// `make soak` sends more.
const REQUESTS: usize = 3000;

#[tokio::test]
async fn nothing_is_left_and_memory_stays() {
    let root = tempfile::tempdir().unwrap();
    let model_dir = root.path().join("model");
    write(&Preset::TINY, 0, &model_dir).unwrap();
    let options = StackOptions {
        programs: Programs { own: env!("CARGO_BIN_EXE_belay-bench").into(), worker: None, gateway: None },
        model_dir,
        model: "tiny".into(),
        worker_args: WORKER_ARGS.map(str::to_owned).to_vec(),
        logs: root.path().to_path_buf(),
    };
    let stack = Stack::start(&options).await.unwrap();
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    println!("seed {seed}");
    // settles, or says what is left: see `Soak::run`
    let report =
        Soak { requests: REQUESTS, clients: 24, seed, only: None }.run(&stack, "tiny").await.unwrap();
    println!("{report:#?}");

    assert_eq!(report.outcomes.values().sum::<usize>(), REQUESTS);
    let kinds: BTreeSet<Kind> = report.outcomes.keys().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds.len(), 9, "every kind took part");
    let count =
        |outcome| report.outcomes.iter().filter(|((_, o), _)| *o == outcome).map(|(_, n)| n).sum::<usize>();
    for outcome in [Outcome::Answered, Outcome::Left, Outcome::Refused, Outcome::OutOfTime] {
        assert!(count(outcome) > REQUESTS / 200, "{outcome:?}: {}", count(outcome));
    }
    report.is_flat().unwrap();

    // what a busy worker does took part: prefixes were kept and found, guesses were checked
    let metrics = stack.worker_metrics().await.unwrap();
    let cached = metrics.get("belay_prefix_cache_bytes").unwrap();
    assert!(cached > 0.0 && cached <= metrics.get("belay_kv_cache_bytes_limit").unwrap(), "{cached}");
    assert!(metrics.get("belay_prefix_cache_hits_total").unwrap() > 0.0);
    assert!(metrics.sum("belay_spec_decode_num_draft_tokens_total") > 0.0);
}

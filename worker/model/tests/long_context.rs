//! A context of 131072 tokens: what it takes, and what the next token costs.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use belay_cpu::{CpuBackend, Level, RowsRead};
use belay_model::{CacheOptions, Config, KvFormat, LayerKind, Logits, Numerics, Scratch, Segment, State};
use common::edit::*;
use common::*;

const CONTEXT: usize = 128 * 1024;
const CHUNK: usize = 512;

/// Rows that one token reads as the `n`-th of a sequence: the window in every layer, every 128th token's entry in a
/// compressed layer, the chosen ones of every 4th in an indexed one, for which the indexer looks at all of them.
fn expected(config: &Config, n: usize) -> RowsRead {
    let mut rows = RowsRead::default();
    let top_k = config.indexer.unwrap().top_k;
    for kind in &config.layers {
        let entries = if kind.ratio() > 0 { n / kind.ratio() } else { 0 };
        let (read, scored) = match kind {
            LayerKind::Indexed => (entries.min(top_k), if entries > top_k { entries } else { 0 }),
            _ => (entries, 0),
        };
        rows.attention += (n.min(config.window) + read) as u64;
        rows.select += scored as u64;
    }
    rows
}

#[test]
fn memory_and_work_at_128k_tokens_are_as_computed() {
    let dir = copy_of(&nano_dir("fp4"));
    let text = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let longer = text.replace("\"max_position_embeddings\": 4096", "\"max_position_embeddings\": 131073");
    assert_ne!(text, longer);
    std::fs::write(dir.path().join("config.json"), longer).unwrap();

    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let backend = || CpuBackend::with(Level::detect(), threads).unwrap();
    let cache = |memory| CacheOptions { memory, format: KvFormat::F32 };
    let needed = load_cached(dir.path(), backend(), Numerics::EXACT, 0, cache(1 << 30))
        .model
        .step_bytes(CONTEXT - CHUNK, CHUNK - 1);
    // exactly what it takes at the worst moment: the last chunk, which leaves a compression window open
    let loaded = load_cached(dir.path(), backend(), Numerics::EXACT, 0, cache(needed));
    let model = &loaded.model;
    let config = model.config();

    let mut state = model.new_state();
    let mut scratch = Scratch::default();
    let mut out = Vec::new();
    let mut feed = |state: &mut State, tokens: &[u32]| {
        let before = model.backend().rows_read();
        let start = Instant::now();
        let mut segments = [Segment { state, tokens, logits: Logits::Last, rewindable: false }];
        model.forward(&mut scratch, &mut segments, &*loaded.fabric, &mut out).unwrap();
        let after = model.backend().rows_read();
        let read =
            RowsRead { attention: after.attention - before.attention, select: after.select - before.select };
        (read, start.elapsed())
    };
    // a fixed sequence without a short period
    let ids: Vec<u32> = (0..CONTEXT as u32)
        .map(|i| i.wrapping_mul(2_654_435_761).rotate_left(11) % config.vocab_size as u32)
        .collect();
    let begin = Instant::now();
    let mut report = CHUNK;
    while state.position() < CONTEXT {
        let at = state.position();
        // the last token of some lengths alone, as decoding does
        let alone = (at + CHUNK).is_power_of_two() && at + CHUNK >= report;
        feed(&mut state, &ids[at..at + CHUNK - usize::from(alone)]);
        if alone {
            report = 4 * (at + CHUNK);
            let last = state.position();
            let (read, time) = feed(&mut state, &ids[last..=last]);
            let n = state.position();
            println!(
                "{n} tokens: {} bytes; the last one read {} keys and {} indexer keys in {time:.1?}",
                model.memory().used,
                read.attention,
                read.select
            );
            assert_eq!(read, expected(config, n), "{n} tokens");
        }
        assert_eq!(model.memory().used, model.state_bytes(state.position()), "{} tokens", state.position());
    }
    println!("{CONTEXT} tokens in {:.1?}", begin.elapsed());
    assert_eq!(state.position(), CONTEXT);
    assert!(model.memory().limit - needed < 64 << 10, "a page more than needed at most");
}

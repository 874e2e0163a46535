//! What choosing a token costs beside the forward, at DeepSeek-V4's vocabulary: draws, log-probabilities, masks.
//!
//! `cargo bench -p belay-engine --bench choice`
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use belay_engine::{Chooser, Constraint, Grammar, Request, Sampler, Sampling, Tokenizer, token_logprobs};
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Map, json};

const VOCAB: usize = 129_280;

/// Bell-shaped with the standard deviation of a model's logits.
fn row(random: &mut Pcg64, vocab: usize) -> Vec<f32> {
    let mut uniform = || (random.next_u64() >> 40) as f32 / (1u64 << 24) as f32;
    (0..vocab).map(|_| (uniform() + uniform() + uniform() - 1.5) * 6.0).collect()
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("p50 {:9.1?}  p99 {:9.1?}  max {:9.1?}", at(0.5), at(0.99), at(1.0))
}

fn resident_mib() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    (statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096) >> 20
}

/// A tokenizer with as many tokens as DeepSeek-V4's: bytes, numbers, words with and without a space before them,
/// code, and text of three bytes a character.
fn large_tokenizer() -> Arc<Tokenizer> {
    let mut random = Pcg64::seed_from_u64(1);
    let mut vocab = Map::new();
    for code in (0x21..=0x7E).chain(0xA1..=0xAC).chain(0xAE..=0xFF).chain(0x100..0x144) {
        vocab.insert(char::from_u32(code).unwrap().into(), vocab.len().into());
    }
    (0..1000).for_each(|number| drop(vocab.insert(format!("{number:03}"), (vocab.len()).into())));
    while vocab.len() < VOCAB - 1 {
        let mut pick = |from: &str| {
            let chars: Vec<char> = from.chars().collect();
            chars[random.next_u64() as usize % chars.len()]
        };
        let mut word = match pick("0123456789") {
            '0'..='4' => "Ġ".to_owned(),
            '5' => pick("\"{}[]():;,.<>=/_-").to_string(),
            _ => String::new(),
        };
        if pick("0123456789") < '2' {
            for _ in 0..pick("\u{1}\u{2}\u{3}") as usize {
                word.extend(['æ', pick("°²³´µ¶·¸¹º"), pick("¡¢£¤¥¦§¨©ª")]);
            }
        } else {
            for _ in 0..pick("\u{1}\u{2}\u{3}\u{4}") as usize {
                word.extend([pick("bcdfghjklmnprstvwz"), pick("aeiouy")]);
            }
            word.push(pick("nrstlm"));
        }
        let id = vocab.len();
        vocab.entry(word).or_insert(id.into());
    }
    let eos = json!({"id": VOCAB - 1, "content": "<｜end▁of▁sentence｜>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [eos], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    Arc::new(Tokenizer::load(dir.path()).unwrap())
}

fn nano_tokenizer() -> Arc<Tokenizer> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/nano/bf16");
    Arc::new(Tokenizer::load(&dir).unwrap())
}

fn choices(tokenizer: &Arc<Tokenizer>) {
    let mut random = Pcg64::seed_from_u64(2);
    let rows: Vec<Vec<f32>> = (0..8).map(|_| row(&mut random, VOCAB)).collect();
    let plain = Sampling { temperature: 0.8, ..Sampling::default() };
    let cases = [
        ("greedy", Sampling::greedy(), None),
        ("temperature", plain.clone(), None),
        ("top_p 0.95", Sampling { top_p: 0.95, ..plain.clone() }, None),
        ("top_k 50", Sampling { top_k: 50, ..plain.clone() }, None),
        ("min_p 0.05", Sampling { min_p: 0.05, ..plain.clone() }, None),
        ("penalties", Sampling { frequency_penalty: 0.5, repetition_penalty: 1.1, ..plain.clone() }, None),
        ("greedy, logprobs 20", Sampling::greedy(), Some(20)),
    ];
    for (name, sampling, logprobs) in cases {
        let request = Request { prompt: (0..1000).collect(), sampling, logprobs, ..Request::default() };
        let mut chooser = Chooser::new(&request, tokenizer, VOCAB).unwrap();
        let mut sampler = Sampler::default();
        let mut times = Vec::new();
        for index in 0..300u32 {
            let started = Instant::now();
            let choice = chooser.choose(&rows[index as usize % 8], index, &mut sampler).unwrap();
            chooser.accept(choice.token).unwrap();
            times.push(started.elapsed());
        }
        println!("choose, vocabulary {VOCAB}, {name:20} {}", percentiles(times));
    }
    let times = (0..300)
        .map(|index| {
            let started = Instant::now();
            black_box(token_logprobs(&rows[index % 8], 7, 20).unwrap());
            started.elapsed()
        })
        .collect();
    println!("token_logprobs, 20                         {}", percentiles(times));
}

fn masks(name: &str, tokenizer: &Arc<Tokenizer>) {
    let vocab = tokenizer.vocab_size();
    let schema = json!({"type": "array", "minItems": 30, "items": {
        "type": "object", "required": ["name", "age", "tags", "kind"], "additionalProperties": false,
        "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer", "minimum": 0},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
            "kind": {"enum": ["person", "place", "thing"]}}}});
    let before = (Instant::now(), resident_mib());
    for (what, grammar) in [
        ("first JSON object", Grammar::JsonObject),
        ("JSON object", Grammar::JsonObject),
        ("JSON schema", Grammar::JsonSchema(schema)),
        ("regex", Grammar::Regex("([A-Z][a-z]{2,10} ?){40,80}".into())),
        (
            "Lark",
            Grammar::Lark(
                "start: (word \" \")+ \"end\"\nword: /[a-z]{1,9}/ | NUMBER\nNUMBER: /[0-9]+/".into(),
            ),
        ),
    ] {
        let constraint = Some(Constraint { grammar, after: None });
        let request = Request { prompt: vec![1], constraint, ..Request::default() };
        let started = Instant::now();
        let mut chooser = Chooser::new(&request, tokenizer, vocab).unwrap();
        let compiled = started.elapsed();
        let mut random = Pcg64::seed_from_u64(3);
        let mut sampler = Sampler::default();
        let (mut choose, mut accept) = (Vec::new(), Vec::new());
        for index in 0..300 {
            let row = row(&mut random, vocab);
            let started = Instant::now();
            let token = chooser.choose(&row, index, &mut sampler).unwrap().token;
            choose.push(started.elapsed());
            let started = Instant::now();
            chooser.accept(token).unwrap();
            accept.push(started.elapsed());
            if chooser.is_complete() {
                break;
            }
        }
        println!("{name}, {what:18} compiled in {compiled:9.1?}; {} tokens", choose.len());
        println!("    choose with its mask {}", percentiles(choose));
        println!("    accept               {}", percentiles(accept));
    }
    println!("{name}: {} MiB more after {:.1?}", resident_mib() - before.1, before.0.elapsed());
}

fn main() {
    let large = large_tokenizer();
    choices(&large);
    masks("nano, 2 thousand tokens", &nano_tokenizer());
    masks("129 thousand tokens", &large);
}

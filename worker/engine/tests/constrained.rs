//! The nano model under constraints it was never trained for, in a batch with requests that have none, with guesses and
//! without.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use belay_cpu::CpuBackend;
use belay_engine::chat::{ToolChoice, tool_grammar};
use belay_engine::{
    Constraint, Engine, EngineConfig, Event, FinishReason, Grammar, Request, Sampling, ServedModel, Stop,
    Tokenizer,
};
use belay_model::{CacheOptions, Checkpoint, Drafting, ExpertBank, LocalExperts, Model, Numerics};
use serde_json::{Value, json};

fn nano() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/nano")
}

fn engine(drafting: Drafting) -> Engine {
    let dir = nano().join("bf16");
    let backend = Arc::new(CpuBackend::detect());
    let checkpoint = Arc::new(Checkpoint::open_with(&dir, drafting).unwrap());
    let cache = CacheOptions::default();
    let model = Model::load(backend.clone(), &checkpoint, Numerics::EXACT, cache, &mut |_, _| {}).unwrap();
    let bank = Arc::new(ExpertBank::new(backend, checkpoint.clone(), Numerics::EXACT));
    let card = checkpoint.card();
    let all = (0..card.layers).flat_map(|layer| (0..card.experts).map(move |expert| (layer, expert)));
    bank.load(all, &mut |_, _| {}).unwrap();
    let model = ServedModel::new(model, Arc::new(LocalExperts::new(bank)));
    Engine::start(model, Arc::new(Tokenizer::load(&dir).unwrap()), EngineConfig::default()).unwrap()
}

/// Token ids, text and end of all requests, run as one batch.
fn run(engine: &Engine, requests: &[Request]) -> Vec<(Vec<u32>, String, FinishReason)> {
    let receivers: Vec<_> = requests
        .iter()
        .map(|request| {
            let (sender, receiver) = channel();
            engine.submit(request.clone(), Box::new(move |event| sender.send(event).is_ok())).unwrap();
            receiver
        })
        .collect();
    receivers
        .into_iter()
        .map(|receiver| {
            let (mut ids, mut text) = (Vec::new(), String::new());
            loop {
                match receiver.recv_timeout(Duration::from_secs(120)).expect("an event in time") {
                    Event::Tokens { ids: new, text: piece, .. } => {
                        ids.extend(new);
                        text.push_str(&piece);
                    }
                    Event::Finished { reason, .. } => return (ids, text, reason),
                    other => panic!("{other:?}"),
                }
            }
        })
        .collect()
}

fn schema() -> Value {
    json!({
        "type": "object", "required": ["topic", "words", "sure"], "additionalProperties": false,
        "properties": {
            "topic": {"type": "string", "maxLength": 12},
            "words": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "string", "maxLength": 8}},
            "sure": {"type": "boolean"},
            "score": {"type": "integer", "minimum": 0, "maximum": 100},
        },
    })
}

fn check(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let fields = value.as_object().unwrap();
    assert!(fields["topic"].as_str().unwrap().chars().count() <= 12);
    let words = fields["words"].as_array().unwrap();
    assert!((1..=3).contains(&words.len()));
    assert!(words.iter().all(|word| word.as_str().unwrap().chars().count() <= 8));
    assert!(fields["sure"].is_boolean());
    assert!(fields.get("score").is_none_or(|score| score.as_u64().unwrap() <= 100));
    assert!(fields.keys().all(|key| ["topic", "words", "sure", "score"].contains(&key.as_str())));
}

#[test]
fn nano_keeps_to_the_grammar_with_guesses_and_without() {
    let text = std::fs::read_to_string(nano().join("eval.jsonl")).unwrap();
    let prompts: Vec<Vec<u32>> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|item| item["thinking"] == false)
        .take(6)
        .map(|item| serde_json::from_value(item["prompt_ids"].clone()).unwrap())
        .collect();
    let parameters = json!({"type": "object", "required": ["unit"], "properties": {
        "days": {"type": "integer", "minimum": 1, "maximum": 9}, "unit": {"enum": ["C", "F"]}}});
    let tool = json!({"type": "function", "function": {"name": "get_weather", "parameters": parameters}});
    let calls = tool_grammar(&[&tool], &ToolChoice::Required, true).unwrap().unwrap();
    let mut requests = Vec::new();
    for (index, prompt) in (0..).zip(prompts) {
        let sampled = Sampling { temperature: 1.2, seed: index, ..Sampling::default() };
        for sampling in [Sampling::greedy(), sampled] {
            let grammars = [
                None,
                Some(Grammar::JsonSchema(schema())),
                Some(Grammar::Regex("[A-Z][a-z]{2,6}: (yes|no), [0-9]{2}%".into())),
                Some(Grammar::Lark(calls.clone())),
            ];
            requests.extend(grammars.into_iter().map(|grammar| Request {
                prompt: prompt.clone(),
                sampling: sampling.clone(),
                stop: Stop { max_tokens: Some(250), ..Stop::default() },
                constraint: grammar.map(|grammar| Constraint { grammar, after: None }),
                ..Request::default()
            }));
        }
    }
    let steady = engine(Drafting::OFF);
    let plain = run(&steady, &requests);
    let pattern = regex::Regex::new("^[A-Z][a-z]{2,6}: (yes|no), [0-9]{2}%$").unwrap();
    for (request, (ids, text, reason)) in requests.iter().zip(&plain) {
        let Some(constraint) = &request.constraint else { continue };
        assert_eq!(*reason, FinishReason::EndOfSequence, "{text}");
        match &constraint.grammar {
            Grammar::JsonSchema(_) => check(text),
            Grammar::Regex(_) => assert!(pattern.is_match(text), "{text}"),
            Grammar::Lark(_) => {
                assert!(text.starts_with("\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"get_weather\">"));
                assert!(text.ends_with("</｜DSML｜tool_calls>"), "{text}");
            }
            Grammar::JsonObject => {}
        }
        // Another worker goes on in the middle.
        if ids.len() > 4 && request.sampling.seed == 3 {
            let resumed = Request { resume: ids[..ids.len() / 2].to_vec(), ..request.clone() };
            let rest = run(&steady, &[resumed]);
            assert_eq!(rest[0].0, ids[ids.len() / 2..]);
        }
    }
    let guessing = engine(Drafting::tokens(2).unwrap());
    assert_eq!(run(&guessing, &requests), plain);
    // Each alone, as in the batch.
    for (request, expected) in requests.iter().zip(&plain).step_by(5) {
        assert_eq!(run(&guessing, std::slice::from_ref(request))[0], *expected);
    }
}

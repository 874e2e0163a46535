//! Constrained output: whatever the logits, what comes out is in the grammar's language.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

mod babble;

use babble::{Babble, TOKENIZER, babble, chooser, closing, request};
use belay_engine::{Constraint, Grammar, Request, SampleError, Sampler, Sampling, Stop};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

#[test]
fn json_mode_gives_an_object() {
    for seed in 0..40 {
        let text = babble(&request(Grammar::JsonObject), seed, 2000, closing);
        let value: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("seed {seed}: {error}: {text}"));
        assert!(value.is_object(), "seed {seed}: {text}");
    }
}

/// A schema, and what it says about a value; not all of JSON Schema, but for what it has, exact.
fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "null"})),
        Just(json!({"type": "boolean"})),
        // Without bounds it could be 1e999, which is JSON, but which not every parser takes.
        (-9i32..9, 0i32..9)
            .prop_map(|(low, span)| json!({"type": "number", "minimum": low, "maximum": low + span})),
        (-50i64..50, 0i64..200)
            .prop_map(|(low, span)| json!({"type": "integer", "minimum": low, "maximum": low + span})),
        (0usize..4, 0usize..9)
            .prop_map(|(low, span)| json!({"type": "string", "minLength": low, "maxLength": low + span})),
        prop::collection::btree_set("[a-zé \"\\\\]{0,6}", 1..5).prop_map(|texts| json!({"enum": texts})),
        any::<i32>().prop_map(|value| json!({"const": {"is": value}})),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            (inner.clone(), 0usize..3, 0usize..3).prop_map(|(items, low, span)| {
                json!({"type": "array", "items": items, "minItems": low, "maxItems": low + span})
            }),
            (prop::collection::btree_map("[a-z]{1,5}", inner.clone(), 0..4), any::<u8>()).prop_map(
                |(properties, bits)| {
                    let names = properties.keys().zip(0..8);
                    let required: Vec<&String> =
                        names.filter(|(_, bit)| bits >> bit & 1 == 1).map(|(name, _)| name).collect();
                    json!({
                        "type": "object", "properties": properties, "required": required,
                        "additionalProperties": false,
                    })
                }
            ),
            prop::collection::vec(inner, 1..3).prop_map(|options| json!({"anyOf": options})),
        ]
    })
}

fn follows(schema: &Value, value: &Value) -> bool {
    if let Some(options) = schema["anyOf"].as_array() {
        return options.iter().any(|option| follows(option, value));
    }
    if let Some(options) = schema["enum"].as_array() {
        return options.contains(value);
    }
    if let Some(constant) = schema.get("const") {
        return constant == value;
    }
    let within = |size: usize, least: &str, most: &str| {
        size as u64 >= schema[least].as_u64().unwrap() && size as u64 <= schema[most].as_u64().unwrap()
    };
    match schema["type"].as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        kind @ ("number" | "integer") => {
            let bounds = schema["minimum"].as_f64().unwrap()..=schema["maximum"].as_f64().unwrap();
            // `-0` is an integer of JSON Schema, but none of serde's.
            value
                .as_f64()
                .is_some_and(|value| bounds.contains(&value) && (kind == "number" || value.fract() == 0.0))
        }
        "string" => value.as_str().is_some_and(|text| within(text.chars().count(), "minLength", "maxLength")),
        "array" => value.as_array().is_some_and(|items| {
            within(items.len(), "minItems", "maxItems")
                && items.iter().all(|item| follows(&schema["items"], item))
        }),
        "object" => value.as_object().is_some_and(|fields| {
            let properties = schema["properties"].as_object().unwrap();
            let required = schema["required"].as_array().unwrap();
            required.iter().all(|name| fields.contains_key(name.as_str().unwrap()))
                && fields.iter().all(|(name, field)| {
                    properties.get(name).is_some_and(|property| follows(property, field))
                })
        }),
        other => panic!("{other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_comes_out_follows_the_schema(schema in schemas(), seed in any::<u64>()) {
        let text = babble(&request(Grammar::JsonSchema(schema.clone())), seed, 3000, closing);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        prop_assert!(follows(&schema, &value), "{}", text);
    }
}

#[test]
fn a_schema_may_refer_to_itself() {
    let schema = json!({
        "$defs": {"tree": {
            "type": "object", "additionalProperties": false, "required": ["name", "children"],
            "properties": {
                "name": {"type": "string", "maxLength": 5},
                "children": {"type": "array", "maxItems": 3, "items": {"$ref": "#/$defs/tree"}},
            },
        }},
        "$ref": "#/$defs/tree",
    });
    fn count(tree: &Map<String, Value>) -> usize {
        assert_eq!(tree.keys().collect::<Vec<_>>(), ["name", "children"]);
        let children = tree["children"].as_array().unwrap();
        1 + children.iter().map(|child| count(child.as_object().unwrap())).sum::<usize>()
    }
    let mut most = 0;
    for seed in 0..20 {
        let text = babble(&request(Grammar::JsonSchema(schema.clone())), seed, 4000, closing);
        let value: Value = serde_json::from_str(&text).unwrap();
        most = most.max(count(value.as_object().unwrap()));
    }
    assert!(most > 1, "no tree had a child");
}

/// A weak model would write spaces for ever.
#[test]
fn json_ends_even_if_white_space_is_liked_best() {
    let spaces = |row: &mut [f32]| {
        closing(row);
        for (id, logit) in (0u32..).zip(row.iter_mut()) {
            let bytes = TOKENIZER.bytes(id);
            if !bytes.is_empty() && bytes.iter().all(u8::is_ascii_whitespace) {
                *logit += 50.0;
            }
        }
    };
    let schema = json!({"type": "object", "required": ["a", "b"], "additionalProperties": false, "properties": {
        "a": {"type": "array", "items": {"type": "boolean"}, "maxItems": 5},
        "b": {"type": "object", "properties": {"c": {"type": "null"}}, "additionalProperties": false},
    }});
    // What a client says about white space does not count.
    let mut own = schema.clone();
    own["x-guidance"] = json!({"whitespace_pattern": "[ \\n]*"});
    for schema in [schema, own] {
        for seed in 0..10 {
            let text = babble(&request(Grammar::JsonSchema(schema.clone())), seed, 4000, spaces);
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(value["a"].is_array() && value["b"].is_object());
            let longest = text.split(|c: char| !c.is_ascii_whitespace()).map(str::len).max();
            assert!(longest > Some(0) && longest <= Some(34), "{longest:?}");
        }
    }
}

#[test]
fn a_regular_expression_matches_the_whole_text() {
    for pattern in [
        "[a-z]{3,8}@[a-z]{2,5}\\.(com|org)",
        "(yes|no|maybe)",
        "\\d{4}-\\d{2}-\\d{2}",
        "a/b\\\\c",
        "(é|東京|🦀){2,4}",
        "[^x]{0,5}",
        "\\w+( \\w+){0,3}",
    ] {
        let matches = regex::Regex::new(&format!("^(?s:{pattern})$")).unwrap();
        for seed in 0..10 {
            let text = babble(&request(Grammar::Regex(pattern.into())), seed, 500, closing);
            assert!(matches.is_match(&text), "{pattern}, seed {seed}: {text:?}");
        }
    }
}

#[test]
fn a_grammar_can_name_special_tokens_and_text_that_is_one_token() {
    let eos = TOKENIZER.eos()[0];
    let spelled = String::from_utf8(TOKENIZER.spelling(eos)).unwrap();
    let marker = TOKENIZER.encode("｜DSML｜").unwrap();
    let end = TOKENIZER.think_end().unwrap();
    let grammar = format!("start: \"<｜DSML｜x>\" /[ab]{{2}}/ \"</think>\" <[{}]> \"z\"", 0);
    let ids = babble::ids(&request(Grammar::Lark(grammar)), 3, 100, closing);
    assert_eq!(marker.len(), 1, "the marker is a token of this vocabulary");
    assert!(ids.contains(&marker[0]), "a text that must come is written as the model would: {ids:?}");
    assert!(ids.contains(&end));
    assert_eq!(ids.iter().filter(|&&id| id == 0).count(), 1);
    assert!(TOKENIZER.bytes(0).is_empty(), "token 0 is special");
    // The spelling of a special token is text like any other, and never the token.
    let ids = babble::ids(&request(Grammar::Lark(format!("start: \"{spelled}!\""))), 3, 100, closing);
    assert_eq!(ids.iter().filter(|&&id| id == eos).count(), 1, "only at the end");
    let text: Vec<u8> = ids.iter().flat_map(|&id| TOKENIZER.bytes(id)).copied().collect();
    assert_eq!(String::from_utf8(text).unwrap(), format!("{spelled}!"));
}

#[test]
fn the_reasoning_is_free() {
    let end = TOKENIZER.think_end().unwrap();
    let constraint = Constraint { grammar: Grammar::Regex("[0-9]{3}".into()), after: Some(end) };
    let request = Request { constraint: Some(constraint), ..request(Grammar::JsonObject) };
    for seed in 0..5 {
        let mut thinks = 0;
        let ids = babble::ids(&request, seed, 400, |row| {
            closing(row);
            thinks += 1;
            row[end as usize] += if thinks == 20 { 1000.0 } else { -1000.0 };
            for &eos in TOKENIZER.eos() {
                row[eos as usize] -= 25.0;
            }
        });
        assert_eq!(ids.iter().position(|&id| id == end), Some(19));
        let answer = TOKENIZER.decode(&ids[20..]);
        assert!(answer.len() == 3 && answer.bytes().all(|byte| byte.is_ascii_digit()), "{answer:?}");
    }
}

/// Masks ahead, late or twice; refused guesses; another worker in the middle: the tokens are the same.
#[test]
fn the_tokens_do_not_depend_on_when_masks_are_computed() {
    let schema = json!({"type": "array", "items": {"type": "string", "maxLength": 6}, "minItems": 2});
    for seed in 0..6 {
        let request = request(Grammar::JsonSchema(schema.clone()));
        let plain = babble::ids(&request, seed, 600, closing);
        let mut sampler = Sampler::default();
        let mut rows = Babble::new(seed);
        let mut current = chooser(&request).unwrap();
        for (index, &token) in plain.iter().enumerate() {
            if index % 5 == 3 {
                current = chooser(&request).unwrap();
                plain[..index].iter().for_each(|&token| current.accept(token).unwrap());
            }
            match (index + seed as usize) % 3 {
                0 => current.prepare(),
                1 => (0..3).for_each(|_| current.prepare()),
                _ => {}
            }
            let mut row = rows.row(TOKENIZER.vocab_size());
            closing(&mut row);
            // The logits of a guess that turns out wrong are of no concern to the next.
            let _ = current.choose(&Babble::new(99).row(TOKENIZER.vocab_size()), 77, &mut sampler).unwrap();
            let choice = current.choose(&row, index as u32, &mut sampler).unwrap();
            assert_eq!(choice.token, token, "seed {seed}, index {index}");
            current.accept(token).unwrap();
        }
        assert!(current.is_complete());
    }
}

#[test]
fn a_token_that_may_not_come_is_refused() {
    let request = request(Grammar::Regex("ab".into()));
    let id = |text: &str| TOKENIZER.encode(text).unwrap()[0];
    let mut chooser = chooser(&request).unwrap();
    chooser.accept(id("a")).unwrap();
    let error = chooser.accept(id("c")).unwrap_err();
    assert!(matches!(error, SampleError::Constraint(_)), "{error}");
    assert!(chooser.choose(&vec![0.0; TOKENIZER.vocab_size()], 1, &mut Sampler::default()).is_err());
}

#[test]
fn a_complete_text_ends_whatever_else_is_asked() {
    let eos = TOKENIZER.eos()[0];
    for stop in [
        Stop { ignore_eos: true, ..Stop::default() },
        Stop { min_tokens: 50, ..Stop::default() },
        Stop { min_tokens: 50, ids: vec![eos, eos], ..Stop::default() },
    ] {
        let request = Request { stop, ..request(Grammar::Regex("yes|no".into())) };
        let ids = babble::ids(&request, 1, 20, |_| {});
        assert!(["yes", "no"].contains(&TOKENIZER.decode(&ids).as_str()));
        assert_eq!(ids.last(), Some(&eos));
    }
    // As long as there is a choice, `min_tokens` holds.
    let stop = Stop { min_tokens: 10, ..Stop::default() };
    let request = Request { stop, ..request(Grammar::Regex("[a-z]*".into())) };
    let ids = babble::ids(&request, 1, 500, |row| row[eos as usize] += 100.0);
    assert_eq!(ids.len(), 11);
}

#[test]
fn bias_and_greedy_choices_stay_within_the_grammar() {
    let digit = TOKENIZER.encode("7").unwrap()[0];
    let sampling =
        Sampling { logit_bias: vec![(digit, 100.0)], frequency_penalty: 2.0, ..Sampling::greedy() };
    let request = Request { sampling, ..request(Grammar::Regex("[a-z]{4}7[a-z]{2}".into())) };
    let text = babble(&request, 5, 50, |_| {});
    assert!(text.len() == 7 && text.find('7') == Some(4), "{text}");
}

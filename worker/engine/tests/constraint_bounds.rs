//! Grammars come from clients: whatever they are, they are taken or refused in bounded time and memory, and with a
//! reason; and those that are taken cannot make a step long.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

mod babble;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use babble::{Babble, TOKENIZER, chooser, closing, request};
use belay_engine::{Grammar, Sampler, SubmitError};
use serde_json::{Value, json};

/// Generous: tests share their machine. Measured, the slowest is under a second.
const COMPILES_WITHIN: Duration = Duration::from_secs(20);
const STEPS_WITHIN: Duration = Duration::from_secs(5);

fn refusal(grammar: Grammar) -> (&'static str, String) {
    match chooser(&request(grammar)) {
        Err(SubmitError::Invalid { field, message }) => (field, message),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("taken"),
    }
}

#[test]
fn what_is_no_grammar_is_refused_with_the_reason() {
    let schema = |schema: Value| Grammar::JsonSchema(schema);
    let regex = |text: &str| Grammar::Regex(text.into());
    let lark = |text: &str| Grammar::Lark(text.into());
    for (grammar, field, reason) in [
        (schema(json!(7)), "response_format", "schema must be an object or boolean"),
        (schema(json!(false)), "response_format", "schema is false"),
        (schema(json!({"type": "strin"})), "response_format", "strin"),
        (schema(json!({"type": "integer", "minimum": 3, "maximum": 2})), "response_format", "Unsatisfiable"),
        (schema(json!({"type": "string", "if": {}})), "response_format", "Unimplemented keys: [\"if\"]"),
        (schema(json!({"$ref": "#"})), "response_format", "no text satisfies it"),
        (schema(json!({"type": "integer", "multipleOf": 999_999_937})), "response_format", "overflow"),
        (schema(json!({"$ref": "#/$defs/none"})), "response_format", "none"),
        (schema(json!({"$ref": "https://example.com/schema.json"})), "response_format", "example.com"),
        (schema(json!({"properties": []})), "response_format", "properties must be an object"),
        (schema(json!({"type": "string", "pattern": "("})), "response_format", "unclosed group"),
        (regex("("), "regex", "unclosed group"),
        (regex("a(?=b)"), "regex", "look-around"),
        (regex("(a)\\1"), "regex", "backreferences"),
        (regex("a^"), "regex", ""),
        (lark(""), "grammar", ""),
        (lark("start: other"), "grammar", "other"),
        (lark("start: \"a\" )"), "grammar", "1("),
        (lark("start: <none>"), "grammar", "none"),
        (lark("rule: \"a\""), "grammar", "start"),
        (lark("start: start"), "grammar", ""),
    ] {
        let shown = format!("{grammar:?}");
        let (found, message) = refusal(grammar);
        assert_eq!(found, field, "{shown}");
        assert!(message.contains(reason), "{shown}: {message}");
        assert!(!message.contains("backtrace") && !message.contains("non-verbose"), "{shown}: {message}");
        assert!(!message.is_empty() && message.len() < 1500, "{shown}: {message}");
    }
}

#[test]
fn what_is_too_large_is_refused_by_its_size() {
    let deep = |levels: usize| {
        (0..levels).fold(json!({"type": "null"}), |schema, _| json!({"type": "array", "items": schema}))
    };
    assert!(chooser(&request(Grammar::JsonSchema(deep(100)))).is_ok());
    let message = "the schema is nested more than 128 levels deep";
    assert_eq!(refusal(Grammar::JsonSchema(deep(300))), ("response_format", message.into()));
    let fields: serde_json::Map<String, Value> = (0..5000).map(|i| (format!("a{i}"), json!({}))).collect();
    let wide = json!({"type": "object", "properties": fields});
    let inside = Grammar::Lark(format!("start: \"x\" %json\n{wide}"));
    let message = "an object of the schema has 5000 fields, at most 1024 are taken";
    assert_eq!(refusal(Grammar::JsonSchema(wide)), ("response_format", message.into()));
    assert_eq!(refusal(inside), ("grammar", message.into()));
    let large = json!({"enum": [" ".repeat(600_000)]});
    let message = "the schema has 600013 bytes, at most 524288 are taken";
    assert_eq!(refusal(Grammar::JsonSchema(large)), ("response_format", message.into()));
    let message = "the expression has 200000 bytes, at most 147456 are taken";
    assert_eq!(refusal(Grammar::Regex("a".repeat(200_000))), ("regex", message.into()));
    let message = "the grammar has 9000 lines, at most 8192 are taken";
    assert_eq!(refusal(Grammar::Lark("\n".repeat(9000))), ("grammar", message.into()));
    let message = "the grammar has 2000000 bytes, at most 1048576 are taken";
    assert_eq!(refusal(Grammar::Lark(" ".repeat(2_000_000))), ("grammar", message.into()));
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Compiles it, and if it is taken, goes some steps: all of it in time.
fn endure(name: &str, grammar: Grammar) {
    let (started, before) = (Instant::now(), resident_bytes());
    let result = chooser(&request(grammar));
    let compiled = started.elapsed();
    let mut slowest = Duration::ZERO;
    let outcome = match result {
        Ok(mut chooser) => {
            let (mut rows, mut sampler) = (Babble::new(7), Sampler::default());
            let mut outcome = "taken".to_owned();
            for index in 0..40 {
                let mut row = rows.row(TOKENIZER.vocab_size());
                if index > 20 {
                    closing(&mut row);
                }
                let started = Instant::now();
                let next = chooser.choose(&row, index, &mut sampler);
                let next = next.and_then(|choice| chooser.accept(choice.token));
                slowest = slowest.max(started.elapsed());
                if let Err(error) = next {
                    outcome = format!("taken, token {index}: {error}");
                    break;
                }
                if chooser.is_complete() {
                    break;
                }
            }
            outcome
        }
        Err(SubmitError::Invalid { message, .. }) => {
            assert!(!message.contains("longer than"), "{name}: only the deadline refused it");
            assert!(!message.contains("cannot be compiled"), "{name}: panicked");
            format!("refused: {message}")
        }
        Err(other) => panic!("{name}: {other}"),
    };
    let grown = resident_bytes().saturating_sub(before) >> 20;
    let outcome: String = outcome.chars().take(160).collect();
    println!("{name}: compiled in {compiled:.1?}, slowest step {slowest:.1?}, {grown} MiB; {outcome}");
    assert!(compiled < COMPILES_WITHIN, "{name}: {compiled:?}");
    assert!(slowest < STEPS_WITHIN, "{name}: {slowest:?}");
    assert!(grown < 600, "{name}: {grown} MiB");
}

#[test]
fn regular_expressions_that_explode_are_bounded() {
    for (name, regex) in [
        ("nested stars", "(a*)*b".to_owned()),
        ("(a|aa)+", "(a|aa)+c".to_owned()),
        ("a long repetition", "a{100000}".to_owned()),
        ("repetitions of repetitions", "((a{0,100}){0,100}){0,100}b".to_owned()),
        ("repetitions of anything", "(.{0,1000}){1000}".to_owned()),
        ("far apart", "(?s:.{1,4000}x.{1,4000}y.{1,4000})".to_owned()),
        ("the state of all subsets", "(a|b)*a(a|b){200}".to_owned()),
        ("many of the same start", format!("({})", vec!["a*b"; 4000].join("|"))),
        ("many words", format!("({})", (0..2500).map(|i| format!("w{i}")).collect::<Vec<_>>().join("|"))),
        ("open groups", "(".repeat(16_000)),
        ("deep groups", format!("{}a{}", "(".repeat(240), ")".repeat(240))),
        ("deep optional groups", format!("{}a{}", "(b?".repeat(240), "c?)*".repeat(240))),
        ("a long text", "ab".repeat(8_000)),
        ("classes", "\\p{L}{500}\\w{500}".to_owned()),
        ("a chain of optional letters", "a?".repeat(8_000)),
        ("a chain of stars", "a*b*".repeat(4_000)),
        ("a longer chain of optional letters", "a?".repeat(70_000)),
        (
            "many choices",
            format!("({})", (0..1024).map(|i| format!("{i:063}")).collect::<Vec<_>>().join("|")),
        ),
    ] {
        endure(name, Grammar::Regex(regex));
    }
}

#[test]
fn schemas_that_explode_are_bounded() {
    let product = |factors: usize, width: usize| {
        let any_of = |factor: usize| {
            let options: Vec<Value> = (0..width)
                .map(|option| json!({"properties": {format!("p{factor}_{option}"): {"type": "integer"}}}))
                .collect();
            json!({"anyOf": options})
        };
        json!({"type": "object", "allOf": (0..factors).map(any_of).collect::<Vec<_>>()})
    };
    let properties = |count: usize| -> Value {
        let properties: serde_json::Map<String, Value> =
            (0..count).map(|i| (format!("property{i}"), json!({"type": ["string", "null"]}))).collect();
        json!({"type": "object", "properties": properties, "additionalProperties": false})
    };
    let chain: serde_json::Map<String, Value> =
        (0..1000).map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)}))).collect();
    let all_refs: Vec<Value> = (0..40).map(|i| json!({"$ref": format!("#/$defs/d{i}")})).collect();
    let mutual: serde_json::Map<String, Value> =
        (0..40).map(|i| (format!("d{i}"), json!({"anyOf": all_refs, "title": i}))).collect();
    for (name, schema) in [
        ("refers to itself", json!({"$ref": "#"})),
        (
            "refers in a circle",
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        ),
        ("a chain of references", json!({"$defs": chain, "$ref": "#/$defs/d0"})),
        ("all refer to all", json!({"$defs": mutual, "$ref": "#/$defs/d0"})),
        ("itself and itself", json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]})),
        ("needs itself", json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]})),
        ("a product of 20^20", product(20, 20)),
        ("a product of 2^14", product(14, 2)),
        ("many items", json!({"type": "array", "items": {"type": "string"}, "minItems": 1_000_000_000u64})),
        ("a long text", json!({"type": "string", "minLength": 1_000_000_000u64})),
        ("a range of lengths", json!({"type": "string", "minLength": 1000, "maxLength": 1_000_000})),
        ("a negative length", json!({"type": "string", "minLength": -1})),
        ("1000 properties", properties(1000)),
        ("300 properties", properties(300)),
        ("a large choice", json!({"enum": (0..20_000).map(|i| format!("choice {i}")).collect::<Vec<_>>()})),
        ("tiny multiples", json!({"type": "number", "multipleOf": 1e-30})),
        ("large multiples", json!({"type": "integer", "multipleOf": 999_999_937})),
        (
            "multiples of everything",
            json!({"allOf": (1..60).map(|i| json!({"type": "integer", "multipleOf": i})).collect::<Vec<_>>()}),
        ),
        ("far bounds", json!({"type": "number", "minimum": -1.797e308, "maximum": 4.9e-324})),
        ("an evil pattern", json!({"type": "string", "pattern": "^((a{0,100}){0,100}){0,100}$"})),
        (
            "evil names",
            json!({"type": "object", "patternProperties": {"(a|b)*a(a|b){60}": {}, "(a|b)*b(a|b){60}": {}}}),
        ),
        ("a non-ASCII text where none belongs", json!({"$ref": ["é".repeat(200)]})),
        ("a long constant", json!({"const": "ab\"".repeat(100_000)})),
        ("a long pattern", json!({"type": "string", "pattern": "a?".repeat(100_000)})),
        (
            "many patterns",
            json!({"anyOf": (0..3000).map(|i| json!({"type": "string", "pattern": format!("^a?{i}(b|c)*d{{1,9}}$")})).collect::<Vec<_>>()}),
        ),
        ("an unknown format", json!({"type": "string", "format": "é".repeat(200)})),
    ] {
        endure(name, Grammar::JsonSchema(schema));
    }
}

#[test]
fn grammars_that_explode_are_bounded() {
    let chain = |count: usize| {
        let mut text = String::new();
        for i in 0..count {
            let name = if i == 0 { "start".to_owned() } else { format!("r{i}") };
            writeln!(text, "{name}: r{} | \"x\"", i + 1).unwrap();
        }
        writeln!(text, "r{count}: \"y\"").unwrap();
        text
    };
    let doubling = |count: usize| {
        let mut text = String::from("start: T0\n");
        for i in 0..count {
            writeln!(text, "T{i}: T{} T{}", i + 1, i + 1).unwrap();
        }
        writeln!(text, "T{count}: \"y\"").unwrap();
        text
    };
    for (name, text) in [
        ("left recursion", "start: start \"a\" | \"a\"".to_owned()),
        ("every way to part it", "start: start start | \"a\" | start start start".to_owned()),
        ("empty for ever", "start: a*\na: b*\nb: \"\"".to_owned()),
        ("a long chain of rules", chain(8_000)),
        ("a short chain of rules", chain(400)),
        ("doubling terminals", doubling(40)),
        ("deep groups", format!("start: {}\"a\"{}", "(".repeat(5_000), ")".repeat(5_000))),
        ("a large repetition", "start: \"a\"{1000000}".to_owned()),
        ("repetitions of repetitions", "start: a{1000}\na: b{1000}\nb: \"c\"{1000}".to_owned()),
        (
            "many alternatives",
            format!("start: {}", (0..30_000).map(|i| format!("\"w{i}\"")).collect::<Vec<_>>().join(" | ")),
        ),
        ("itself inside", "start: %lark { start: %lark { start: \"a\" } }".to_owned()),
        ("a schema inside", "start: %json {\"type\": \"string\", \"minLength\": 1000000000}".to_owned()),
        ("a long literal", format!("start: \"{}\"", "ab".repeat(250_000))),
        ("a long regex of letters", format!("start: /{}/", "ab".repeat(50_000))),
        ("a long regex of optional letters", format!("start: /{}/", "a?".repeat(25_000))),
        ("a longer regex of optional letters", format!("start: /{}/", "a?".repeat(100_000))),
        ("a very long regex of optional letters", format!("start: /{}/", "a?".repeat(250_000))),
        ("a long regex of stars", format!("start: /{}/", "a*b*".repeat(60_000))),
        (
            "a long regex of words",
            format!("start: /{}/", (0..25_000).map(|i| format!("w{i}")).collect::<Vec<_>>().join("|")),
        ),
        ("not a grammar", "\u{0}\u{1}é😀%%%{{{".repeat(1000)),
    ] {
        endure(name, Grammar::Lark(text));
    }
}

//! The language of forced calls, by the library that enforces it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

mod babble;

use babble::{TOKENIZER, babble, closing, request};
use belay_engine::Grammar;
use belay_engine::chat::{ChatError, ReplyEvent, ReplyParser, ToolChoice, tool_grammar};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

fn tool(name: &str, parameters: Value) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

fn grammar(tools: &[Value], choice: &ToolChoice, single: bool) -> String {
    tool_grammar(&tools.iter().collect::<Vec<_>>(), choice, single).unwrap().unwrap()
}

/// A language, one token a byte.
struct Language(Matcher);

impl Language {
    fn of(grammar: &str) -> Self {
        let factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
        let parser = factory.create_parser(TopLevelGrammar::from_lark(grammar.into()));
        let matcher = Matcher::new(parser);
        assert_eq!(matcher.get_error(), None, "{grammar}");
        Self(matcher)
    }

    /// Bytes of the text that the language admits, and whether it can end after them.
    fn admits(&self, text: &str) -> (usize, bool) {
        let mut matcher = self.0.deep_clone();
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        let taken = matcher.try_consume_tokens(&tokens).unwrap();
        (taken, matcher.is_accepting().unwrap())
    }

    #[track_caller]
    fn takes(&self, text: &str) {
        let (taken, is_whole) = self.admits(text);
        assert_eq!((&text[..taken], is_whole), (text, true));
    }

    /// The text fails where `wrong` begins.
    #[track_caller]
    fn refuses(&self, text: &str, wrong: &str) {
        let at = text.find(wrong).unwrap();
        let (taken, is_whole) = self.admits(text);
        assert!(!(taken == text.len() && is_whole), "{text} was taken");
        assert!((at..at + wrong.len()).contains(&taken), "{text} failed after {}", &text[..taken]);
    }
}

fn block(calls: &[String]) -> String {
    format!("\n\n<｜DSML｜tool_calls>\n{}\n</｜DSML｜tool_calls>", calls.join("\n"))
}

fn call(name: &str, parameters: &[(&str, bool, &str)]) -> String {
    let parameters: Vec<String> = parameters
        .iter()
        .map(|(name, is_string, value)| {
            format!("<｜DSML｜parameter name=\"{name}\" string=\"{is_string}\">{value}</｜DSML｜parameter>")
        })
        .collect();
    format!("<｜DSML｜invoke name=\"{name}\">\n{}\n</｜DSML｜invoke>", parameters.join("\n"))
}

fn weather() -> Value {
    tool(
        "get_weather",
        json!({
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"enum": ["celsius", "fahrenheit"]},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                          "required": ["lat", "lon"], "additionalProperties": false},
            },
            "required": ["city"],
        }),
    )
}

#[test]
fn a_named_tool_is_called_once_with_its_parameters() {
    let named = ToolChoice::Function("get_weather".into());
    let language = Language::of(&grammar(&[tool("other", json!({})), weather()], &named, false));
    let whole = call(
        "get_weather",
        &[
            ("city", true, "Paris </｜DSM \"<x>\"\nTexas｜"),
            ("days", false, "-3"),
            ("unit", true, "celsius"),
            ("where", false, "{\"lat\": 1.5, \"lon\": -2}"),
        ],
    );
    language.takes(&block(std::slice::from_ref(&whole)));
    language.takes(&block(&[call("get_weather", &[("city", true, ""), ("unit", true, "fahrenheit")])]));
    let twice = block(&[whole.clone(), whole.clone()]);
    let (taken, is_whole) = language.admits(&twice);
    assert_eq!(
        (&twice[..taken], is_whole),
        (format!("\n\n<｜DSML｜tool_calls>\n{whole}\n<").as_str(), false)
    );
    for (parameters, wrong) in [
        (vec![("days", false, "1")], "days"),
        (vec![("city", false, "1")], "false"),
        (vec![("city", true, "x"), ("days", false, "\"1\"")], "\"1\""),
        (vec![("city", true, "x"), ("unit", true, "kelvin")], "kelvin"),
        (vec![("city", true, "x"), ("where", false, "{\"lat\": 1}")], "1}"),
        (vec![("city", true, "x"), ("country", true, "y")], "country"),
        (vec![("city", true, "a ｜DSML｜ b")], "｜ b"),
        (vec![("city", true, "a</｜DSML｜invoke>")], "invoke>"),
    ] {
        language.refuses(&block(&[call("get_weather", &parameters)]), wrong);
    }
    language.refuses(&block(&[call("other", &[])]), "other");
    language.refuses("I think", "I");
}

#[test]
fn of_several_tools_any_may_be_called_and_several_times_unless_single() {
    let tools = [tool("f", json!({"type": "object", "properties": {}})), weather()];
    let calls = [call("f", &[]), call("get_weather", &[("city", true, "a")]), call("f", &[])];
    let many = Language::of(&grammar(&tools, &ToolChoice::Required, false));
    many.takes(&block(&calls));
    many.takes(&block(&calls[1..2]));
    let single = Language::of(&grammar(&tools, &ToolChoice::Required, true));
    single.takes(&block(&calls[..1]));
    let (taken, is_whole) = single.admits(&block(&calls[..2]));
    assert!(!is_whole && taken < block(&calls[..2]).len());
}

#[test]
fn parameters_that_are_all_optional_may_be_left_out() {
    let property = || json!({"type": "integer"});
    let tools = [tool("f", json!({"properties": {"a": property(), "b": property(), "c": property()}}))];
    let language = Language::of(&grammar(&tools, &ToolChoice::Required, false));
    for number in 0..8 {
        let chosen: Vec<(&str, bool, &str)> = ["a", "b", "c"]
            .into_iter()
            .enumerate()
            .filter(|(bit, _)| number >> bit & 1 == 1)
            .map(|(_, name)| (name, false, "1"))
            .collect();
        language.takes(&block(&[call("f", &chosen)]));
    }
    language.refuses(&block(&[call("f", &[("b", false, "1"), ("a", false, "1")])]), "a\" string");
    language.refuses(
        &block(&[call("f", &[("b", false, "1"), ("b", false, "1")])]),
        "b\" string=\"false\">1</｜DSML｜parameter>\n<｜DSML｜parameter name=\"b",
    );
}

#[test]
fn types_are_found_behind_references_and_alternatives() {
    let parameters = json!({
        "$defs": {
            "name": {"type": "string"},
            "tree": {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                     "additionalProperties": false},
            "loop": {"$ref": "#/$defs/loop"},
        },
        "properties": {
            "name": {"$ref": "#/$defs/name"},
            "tree": {"$ref": "#/$defs/tree"},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "id": {"type": ["string", "integer"]},
            "level": {"enum": [1, 2]},
            "free": {},
            "never": false,
            "self": {"$ref": "#"},
        },
        "required": ["name"],
    });
    let language = Language::of(&grammar(&[tool("f", parameters)], &ToolChoice::Required, false));
    for parameters in [
        vec![("name", true, "n"), ("tree", false, "{\"children\": [{\"children\": []}, {}]}")],
        vec![("name", true, "n"), ("maybe", true, "x"), ("id", true, "y")],
        vec![("name", true, "n"), ("maybe", false, "null"), ("id", false, "7"), ("level", false, "2")],
        vec![("name", true, "n"), ("free", true, "any")],
        vec![("name", true, "n"), ("free", false, "[{\"x\": null}]")],
        vec![("name", true, "n"), ("self", false, "{\"name\": \"a\"}")],
    ] {
        language.takes(&block(&[call("f", &parameters)]));
    }
    for (parameters, wrong) in [
        (vec![("name", false, "\"n\"")], "false"),
        (vec![("name", true, "n"), ("tree", false, "{\"child\": []}")], "child\""),
        (vec![("name", true, "n"), ("level", false, "3")], "3"),
        (vec![("name", true, "n"), ("never", false, "1")], "never"),
    ] {
        language.refuses(&block(&[call("f", &parameters)]), wrong);
    }
}

#[test]
fn a_tool_that_names_no_parameters_takes_any() {
    for parameters in [json!(null), json!({}), json!({"type": "object"})] {
        let language = Language::of(&grammar(&[tool("f", parameters)], &ToolChoice::Required, false));
        language.takes(&block(&[call("f", &[])]));
        language.takes(&block(&[call("f", &[("any thing", true, "<x>"), ("n", false, "{\"a\": [1]}")])]));
    }
    let closed = tool("f", json!({"type": "object", "additionalProperties": false}));
    let language = Language::of(&grammar(&[closed], &ToolChoice::Required, false));
    language.takes(&block(&[call("f", &[])]));
    language.refuses(&block(&[call("f", &[("a", true, "x")])]), "<｜DSML｜parameter");
}

#[test]
fn names_and_values_with_any_characters_are_written_as_they_are() {
    let odd = "q\"\\ / \u{7f}\u{1}é🦀 %json {";
    let tools = [tool(odd, json!({"properties": {odd: {"enum": [odd, "<x>\n"]}, "b": {"const": 1}}}))];
    let language = Language::of(&grammar(&tools, &ToolChoice::Required, false));
    language.takes(&block(&[call(odd, &[(odd, true, odd), ("b", false, "1")])]));
    language.takes(&block(&[call(odd, &[(odd, true, "<x>\n")])]));
}

#[test]
fn a_free_choice_has_no_grammar_and_a_wrong_one_an_error() {
    let tools = [&weather()];
    assert_eq!(tool_grammar(&tools, &ToolChoice::Auto, false), Ok(None));
    assert_eq!(tool_grammar(&tools, &ToolChoice::None, false), Ok(None));
    assert_eq!(tool_grammar(&[], &ToolChoice::Required, false), Err(ChatError::NoTools));
    let unknown = ToolChoice::Function("f".into());
    assert_eq!(tool_grammar(&tools, &unknown, false), Err(ChatError::UnknownTool { name: "f".into() }));
    // each of the parameters would carry the whole schema
    let many: serde_json::Map<String, Value> =
        (0..2000).map(|index| (format!("p{index}"), json!({"$ref": "#/properties/p0"}))).collect();
    let huge = [&tool("f", json!({"properties": many}))];
    let error = tool_grammar(&huge, &ToolChoice::Required, false).unwrap_err().to_string();
    assert!(error.starts_with("tools: their schemas are too long"), "{error}");
}

/// Noise instead of a model: what comes out is read back as calls that the schemas allow.
#[test]
fn whatever_the_logits_the_reply_is_calls() {
    let alarm = json!({
        "properties": {"hour": {"type": "integer", "minimum": 0, "maximum": 23}, "loud": {"type": "boolean"}},
        "required": ["hour", "loud"],
    });
    let weather = json!({
        "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}, "city": {"type": "string"}, "near": {"type": "array", "items": {"enum": [1, "a"]}}},
        "required": ["city"],
    });
    let tools = [tool("get_weather", weather), tool("set_alarm", alarm)];
    let tools: Vec<&Value> = tools.iter().collect();
    let end = TOKENIZER.encode("</｜DSML｜parameter>").unwrap();
    for seed in 0..20 {
        let grammar = tool_grammar(&tools, &ToolChoice::Required, seed % 2 == 0).unwrap().unwrap();
        let mut step = 0;
        let text = babble(&request(Grammar::Lark(grammar)), seed, 3000, |row| {
            closing(row);
            // noise would hardly ever write the tag that ends a string
            let wanted = end[step % end.len()];
            row[wanted as usize] += if step / end.len() % 4 == 3 { 1000.0 } else { 0.0 };
            step += 1;
        });
        let mut parser = ReplyParser::new(false, &tools, "request");
        let mut events = parser.push(&text);
        events.extend(parser.finish(true));
        assert!(parser.calls() > 0 && (seed % 2 == 1 || parser.calls() == 1), "seed {seed}: {text}");
        let mut calls = vec![(String::new(), String::new(), false); parser.calls()];
        for event in events {
            match event {
                ReplyEvent::ToolCallBegin { index, name, .. } => calls[index].0 = name,
                ReplyEvent::ToolCallArguments { index, text } => calls[index].1.push_str(&text),
                ReplyEvent::ToolCallEnd { index } => calls[index].2 = true,
                other => panic!("seed {seed}: {other:?} in {text}"),
            }
        }
        for (name, arguments, is_whole) in calls {
            let arguments: Value = serde_json::from_str(&arguments).unwrap();
            let is_allowed = match name.as_str() {
                "get_weather" => arguments["city"].is_string(),
                "set_alarm" => {
                    arguments["hour"].as_u64().is_some_and(|hour| hour < 24) && arguments["loud"].is_boolean()
                }
                _ => false,
            };
            assert!(is_whole && is_allowed, "seed {seed}: {name} {arguments} in {text}");
        }
    }
}

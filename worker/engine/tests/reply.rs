//! Replies taken apart: the same events however the text is cut, and none of it lost whatever the model wrote.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use belay_engine::chat::{
    Conversation, FunctionCall, Message, ReplyEvent, ReplyParser, ToolCall, ends_in_reasoning, render,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// What a client makes of the events.
#[derive(Debug, Default, PartialEq)]
struct Reply {
    reasoning: String,
    content: String,
    /// Name, arguments, whether the call is whole.
    calls: Vec<(String, String, bool)>,
    /// All text.
    all: String,
}

impl Reply {
    fn of(events: &[ReplyEvent]) -> Self {
        let mut reply = Self::default();
        for event in events {
            match event {
                ReplyEvent::Reasoning(text) => {
                    reply.reasoning.push_str(text);
                    reply.all.push_str(text);
                }
                ReplyEvent::Content(text) => {
                    reply.content.push_str(text);
                    reply.all.push_str(text);
                }
                ReplyEvent::ToolCallBegin { index, name, .. } => {
                    assert_eq!(*index, reply.calls.len(), "calls begin in order");
                    reply.calls.push((name.clone(), String::new(), false));
                    reply.all.push_str(name);
                }
                ReplyEvent::ToolCallArguments { index, text } => {
                    let (_, arguments, is_whole) = &mut reply.calls[*index];
                    assert!(!*is_whole, "arguments after the end");
                    arguments.push_str(text);
                    reply.all.push_str(text);
                }
                ReplyEvent::ToolCallEnd { index } => reply.calls[*index].2 = true,
            }
        }
        reply
    }

    fn of_one(event: &ReplyEvent) -> &str {
        match event {
            ReplyEvent::Reasoning(text) | ReplyEvent::Content(text) => text,
            ReplyEvent::ToolCallArguments { text, .. } => text,
            ReplyEvent::ToolCallBegin { .. } | ReplyEvent::ToolCallEnd { .. } => "",
        }
    }

    fn calls(&self) -> Vec<(&str, &str)> {
        self.calls.iter().map(|(name, arguments, _)| (name.as_str(), arguments.as_str())).collect()
    }
}

fn tools() -> Vec<Value> {
    let tool = |name: &str, properties: Value| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}});
    vec![
        tool("f", json!({"a": {"type": "string"}, "n": {"type": "integer"}})),
        tool("g", json!({"arguments": {"type": "string"}})),
        tool("h", json!({})),
    ]
}

fn parser(in_reasoning: bool) -> ReplyParser {
    let tools = tools();
    ReplyParser::new(in_reasoning, &tools.iter().collect::<Vec<_>>(), "request")
}

fn parse_pieces<'a>(in_reasoning: bool, pieces: impl IntoIterator<Item = &'a str>, was_cut: bool) -> Reply {
    let mut parser = parser(in_reasoning);
    let mut events: Vec<ReplyEvent> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish(was_cut));
    Reply::of(&events)
}

fn parse(text: &str) -> Reply {
    parse_pieces(false, [text], false)
}

/// One piece a character.
fn characters(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(|_| true)
}

/// Written with D for the marker.
fn dsml(text: &str) -> String {
    text.replace('D', "｜DSML｜")
}

const CALL: &str = "\n\n<Dtool_calls>\n<Dinvoke name=\"f\">\n<Dparameter name=\"a\" string=\"true\">x \"y\"\n</Dparameter>\n\
                    <Dparameter name=\"n\" string=\"false\">5</Dparameter>\n</Dinvoke>\n</Dtool_calls>";

#[test]
fn a_reply_is_parted_into_reasoning_content_and_calls() {
    let text = dsml(&format!("hm</think>I'll call.{CALL}"));
    let reply = parse_pieces(true, [text.as_str()], false);
    assert_eq!((reply.reasoning.as_str(), reply.content.as_str()), ("hm", "I'll call."));
    assert_eq!(reply.calls, [("f".into(), r#"{"a": "x \"y\"\n", "n": 5}"#.into(), true)]);
}

#[test]
fn several_calls_have_ids_of_their_own_that_follow_from_the_request() {
    let text =
        dsml("<Dtool_calls><Dinvoke name=\"h\"></Dinvoke>\n<Dinvoke name=\"h\">\n\n</Dinvoke></Dtool_calls>");
    let ids = |request_id: &str| -> Vec<String> {
        let tools = tools();
        let mut parser = ReplyParser::new(false, &tools.iter().collect::<Vec<_>>(), request_id);
        let events = parser.push(&text);
        assert_eq!(parser.calls(), 2);
        let id = |event: &ReplyEvent| match event {
            ReplyEvent::ToolCallBegin { id, .. } => Some(id.clone()),
            _ => None,
        };
        events.iter().filter_map(id).collect()
    };
    let ids_of_a = ids("a");
    assert_eq!(ids_of_a, ids("a"));
    assert!(ids_of_a.iter().all(|id| id.len() == 29 && id.starts_with("call_")), "{ids_of_a:?}");
    let mut all = [ids_of_a, ids("b")].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 4);
    assert_eq!(parse(&text).calls(), [("h", "{}"), ("h", "{}")]);
}

#[test]
fn a_long_string_comes_as_it_is_written() {
    let mut parser = parser(false);
    parser.push(&dsml("<Dtool_calls>\n<Dinvoke name=\"f\">\n<Dparameter name=\"a\" string=\"true\">"));
    let argument = |text: &str| vec![ReplyEvent::ToolCallArguments { index: 0, text: text.into() }];
    assert_eq!(parser.push("once"), argument("once"));
    assert_eq!(parser.push(" \"upon\""), argument(" \\\"upon\\\""));
    assert_eq!(parser.push(" a <"), argument(" a "));
    assert_eq!(parser.push("/"), []);
    assert_eq!(parser.push("b>"), argument("</b>"));
    assert_eq!(parser.push("\n"), [], "may belong to a tag");
    assert_eq!(parser.push("."), argument("\\n."));
}

#[test]
fn text_goes_on_at_once_unless_it_may_be_a_tag() {
    let mut parser = parser(true);
    let reasoning = |text: &str| vec![ReplyEvent::Reasoning(text.into())];
    assert_eq!(parser.push("a<b"), reasoning("a<b"));
    assert_eq!(parser.push("</th"), []);
    assert_eq!(parser.push("e end"), reasoning("</the end"));
    assert!(parser.in_reasoning());
    assert_eq!(parser.push("</think"), []);
    assert_eq!(parser.push(">x"), [ReplyEvent::Content("x".into())]);
    assert!(!parser.in_reasoning());
}

#[test]
fn stray_tags_are_swallowed() {
    assert_eq!(parse("</think>a</think>b").content, "ab");
    let reply = parse_pieces(true, ["<think>a<think>b</think>c<think>d"], false);
    assert_eq!((reply.reasoning.as_str(), reply.content.as_str()), ("abd", "c"));
}

#[test]
fn a_block_within_the_reasoning_ends_it() {
    let text = dsml(&format!("hm{CALL} done"));
    let reply = parse_pieces(true, [text.as_str()], false);
    assert_eq!((reply.reasoning.as_str(), reply.content.as_str()), ("hm", " done"));
    assert_eq!(reply.calls.len(), 1);
}

#[test]
fn closing_tags_may_be_missing() {
    let whole = r#"{"a": "x", "n": 5}"#;
    for text in [
        // of a parameter, before another one
        "<Dtool_calls>\n<Dinvoke name=\"f\">\n<Dparameter name=\"a\" string=\"true\">x\n\
         <Dparameter name=\"n\" string=\"false\">5</Dparameter>\n</Dinvoke>\n</Dtool_calls>",
        // of a parameter, before the end of the call
        "<Dtool_calls>\n<Dinvoke name=\"f\">\n<Dparameter name=\"a\" string=\"true\">x</Dparameter>\n\
         <Dparameter name=\"n\" string=\"false\">5\n</Dinvoke>\n</Dtool_calls>",
        // of the call
        "<Dtool_calls>\n<Dinvoke name=\"f\">\n<Dparameter name=\"a\" string=\"true\">x</Dparameter>\n\
         <Dparameter name=\"n\" string=\"false\">5</Dparameter>\n</Dtool_calls>",
        // of all, at the end of the reply
        "<Dtool_calls>\n<Dinvoke name=\"f\">\n<Dparameter name=\"a\" string=\"true\">x</Dparameter>\n\
         <Dparameter name=\"n\" string=\"false\">5",
        // of the call, before another
        "<Dtool_calls>\n<Dinvoke name=\"f\">\n<Dparameter name=\"a\" string=\"true\">x</Dparameter>\n\
         <Dparameter name=\"n\" string=\"false\">5</Dparameter>\n<Dinvoke name=\"h\">\n\n</Dinvoke></Dtool_calls>",
    ] {
        let reply = parse(&dsml(text));
        assert_eq!(reply.calls[0], ("f".into(), whole.into(), true), "{text}");
        assert_eq!(reply.content, "", "{text}");
    }
}

#[test]
fn a_call_without_a_block_around_it_counts_if_the_tool_is_known() {
    let call = |name: &str| dsml(&format!("Now\n\n<Dinvoke name=\"{name}\">\n\n</Dinvoke>"));
    assert_eq!(parse(&call("h")).calls(), [("h", "{}")]);
    assert_eq!(parse(&call("h")).content, "Now");
    let unknown = parse(&call("unknown"));
    assert_eq!((unknown.content, unknown.calls), (call("unknown"), Vec::new()));
}

#[test]
fn what_is_held_is_a_tag_at_most() {
    let long = "x".repeat(100_000);
    for begin in [
        "",
        "<Dtool_calls>\n<Dinvoke name=\"",
        "<Dtool_calls>\n<Dinvoke name=\"f\"><Dparameter name=\"",
        "<Dtool_calls>\n<Dinvoke name=\"f\"><Dparameter name=\"a\" string=\"true\">",
    ] {
        let mut parser = parser(false);
        let begun = parser.push(&dsml(begin));
        let out: usize =
            [begun, parser.push(&long)].concat().iter().map(|event| Reply::of_one(event).len()).sum();
        assert!(out >= long.len(), "{begin}: {out} bytes are out");
    }
    let mut parser = parser(false);
    let gap = dsml(&format!("<Dtool_calls>{}", " ".repeat(100)));
    assert_eq!(parser.push(&gap), [ReplyEvent::Content(gap)]);
}

#[test]
fn a_tag_in_prose_stays_prose() {
    for text in [
        "the tag <Dtool_calls> opens a block",
        "<Dtool_calls>\n</Dtool_calls>",
        "<Dtool_calls>\n<Dinvoke name=\"two\nlines\">",
        "<Dtool_calls>\n<Dinvoke name=\"\">",
        "<Dinvoke name=\"h",
        "<Dparameter name=\"a\" string=\"true\">",
    ] {
        let text = dsml(text);
        let reply = parse(&text);
        assert_eq!((reply.content.as_str(), reply.calls.len()), (text.as_str(), 0));
    }
}

#[test]
fn without_tools_tags_of_calls_are_text() {
    let text = dsml(CALL);
    let mut parser = ReplyParser::new(false, &[], "");
    let mut events = parser.push(&text);
    events.extend(parser.finish(false));
    assert_eq!(Reply::of(&events).content, text);
}

#[test]
fn a_call_that_was_cut_stays_open() {
    let text = dsml(CALL);
    for (end, arguments) in [
        ("x \"", r#"{"a": "x \""#),
        ("string=\"false\">5", r#"{"a": "x \"y\"\n", "n": 5"#),
        ("5</Dparameter>", r#"{"a": "x \"y\"\n", "n": 5"#),
        ("5</Dparameter>\n</Din", r#"{"a": "x \"y\"\n", "n": 5"#),
    ] {
        let end = dsml(end);
        let cut = &text[..text.find(&end).unwrap() + end.len()];
        let reply = parse_pieces(false, [cut], true);
        assert_eq!(reply.calls, [("f".into(), arguments.into(), false)], "{end}");
        assert_eq!(reply.content, "", "{end}");
    }
    // what the beginning of a head says is told
    let cut = &text[..text.find("n\" string=\"false\"").unwrap() + 1];
    assert_eq!(parse_pieces(false, [cut], true).content, dsml("<Dparameter name=\"n"));
    // of a wrapper nothing was out
    let cut = dsml("<Dtool_calls>\n<Dinvoke name=\"f\">\n<Dparameter name=\"input\" string=\"true\">{\"a\"");
    assert_eq!(parse_pieces(false, [cut.as_str()], true).calls[0].1, r#"{"input": "{\"a\""#);
}

#[test]
fn values_are_what_their_heads_say() {
    let value = |attribute: &str, value: &str| {
        let head = format!("<Dtool_calls><Dinvoke name=\"f\"><Dparameter name=\"n\"{attribute}>");
        let reply = parse(&dsml(&format!("{head}{value}</Dparameter></Dinvoke></Dtool_calls>")));
        reply.calls[0].1.strip_prefix("{\"n\": ").unwrap().strip_suffix('}').unwrap().to_owned()
    };
    assert_eq!(value(" string=\"true\"", "5"), "\"5\"");
    assert_eq!(value(" string=\"true\"", " &lt;\\\u{1} "), "\" &lt;\\\\\\u0001 \"");
    assert_eq!(value(" string=\"false\"", " [1,  {\"x\": null}] "), "[1,  {\"x\": null}]");
    assert_eq!(
        value(" string=\"false\"", "123456789012345678901234567890"),
        "123456789012345678901234567890"
    );
    assert_eq!(value(" string=\"false\"", "Tokyo"), "\"Tokyo\"");
    assert_eq!(value(" string=\"false\"", "{\"x\": "), "\"{\\\"x\\\": \"");
    assert_eq!(value(" string=\"false\"", ""), "\"\"");
    assert_eq!(value("  string=\"true\" ", "x"), "\"x\"");
    assert_eq!(value("", "5"), "5", "the attribute may be missing");
    assert_eq!(value("", "Tokyo"), "\"Tokyo\"");
}

#[test]
fn arguments_in_a_wrapper_are_unwrapped_if_the_tool_knows_them_but_not_the_wrapper() {
    let call = |tool: &str, parameters: &[(&str, bool, &str)]| {
        let parameters: Vec<String> = parameters
            .iter()
            .map(|(name, is_string, value)| {
                format!("<Dparameter name=\"{name}\" string=\"{is_string}\">{value}</Dparameter>\n")
            })
            .collect();
        let block = format!(
            "<Dtool_calls>\n<Dinvoke name=\"{tool}\">\n{}</Dinvoke>\n</Dtool_calls>",
            parameters.concat()
        );
        parse(&dsml(&block)).calls[0].1.clone()
    };
    assert_eq!(call("f", &[("arguments", true, "{\"a\": \"x\"}")]), "{\"a\": \"x\"}");
    assert_eq!(call("f", &[("input", false, " {\"n\":1} ")]), "{\"n\":1}");
    assert_eq!(call("f", &[("input", false, "\"{\\\"n\\\":1}\"")]), "{\"n\":1}");
    assert_eq!(call("f", &[("arguments", true, "{}")]), "{}");
    for (tool, parameters, whole) in [
        ("f", vec![("arguments", true, "{\"b\": 1}")], r#"{"arguments": "{\"b\": 1}"}"#),
        ("f", vec![("arguments", true, "no object")], r#"{"arguments": "no object"}"#),
        ("f", vec![("input", false, "[1]")], r#"{"input": [1]}"#),
        ("f", vec![("input", true, "{}"), ("n", false, "1")], r#"{"input": "{}", "n": 1}"#),
        ("f", vec![("n", false, "1"), ("input", true, "{}")], r#"{"n": 1, "input": "{}"}"#),
        ("g", vec![("arguments", true, "{}")], r#"{"arguments": "{}"}"#),
        ("h", vec![("arguments", true, "{}")], r#"{"arguments": "{}"}"#),
        ("unknown", vec![("arguments", true, "{}")], r#"{"arguments": "{}"}"#),
    ] {
        assert_eq!(call(tool, &parameters), whole);
    }
}

#[test]
fn text_between_the_tags_of_a_block_is_content() {
    let reply = parse(&dsml(
        "<Dtool_calls>\n<Dinvoke name=\"f\"> some words <Dparameter name=\"n\" string=\"false\">1</Dparameter>\
         </Dparameter></Dinvoke>\n and more\n<Dinvoke name=\"h\"></Dinvoke></think>\n</Dtool_calls>\n.",
    ));
    assert_eq!(reply.calls(), [("f", "{\"n\": 1}"), ("h", "{}")]);
    assert_eq!(reply.content, "some words and more\n\n.");
}

/// Pieces of which models make replies, right and wrong ones.
const PARTS: [&str; 18] = [
    "<think>",
    "</think>",
    "<Dtool_calls>",
    "</Dtool_calls>",
    "<Dinvoke name=\"f\">",
    "<Dinvoke name=\"",
    "</Dinvoke>",
    "<Dparameter name=\"a\" string=\"true\">",
    "<Dparameter name=\"arguments\" string=\"false\">",
    "<Dparameter name=\"",
    "</Dparameter>",
    "\" string=\"true\">",
    "\">",
    "\n",
    "<",
    "</D",
    " ",
    // a word of its own for each place
    "word",
];

/// A text of parts, and the words in it.
fn written(parts: impl IntoIterator<Item = &'static str>) -> (String, Vec<String>) {
    let mut words = Vec::new();
    let parts = parts.into_iter().map(|part| match part {
        "word" => {
            words.push(format!("w{:02}", words.len()));
            words.last().unwrap().clone()
        }
        part => dsml(part),
    });
    (parts.collect(), words)
}

fn words_of(text: &str) -> Vec<&str> {
    text.match_indices('w').map(|(at, _)| &text[at..at + 3]).collect()
}

/// The same events whole and by character; every word in exactly one of them; JSON wherever a call ended.
fn check(text: &str, words: &[String], in_reasoning: bool) {
    let whole = parse_pieces(in_reasoning, [text], false);
    assert_eq!(whole, parse_pieces(in_reasoning, characters(text), false), "{text:?}");
    for word in words {
        assert_eq!(whole.all.matches(word.as_str()).count(), 1, "{word} of {text:?}");
    }
    for text in [&whole.reasoning, &whole.content] {
        assert!(words_of(text).is_sorted(), "{text:?}");
    }
    for (_, arguments, is_whole) in &whole.calls {
        assert!(is_whole, "{text:?}");
        let json: Result<Value, _> = serde_json::from_str(arguments);
        assert!(json.is_ok_and(|json| json.is_object()), "{text:?}: {arguments}");
    }
    // a reply that was cut says the same, but does not pass off its last call as whole
    let cut = parse_pieces(in_reasoning, characters(text), true);
    assert_eq!((&cut.reasoning, &cut.content), (&whole.reasoning, &whole.content), "{text:?}");
    assert_eq!(cut.calls.len(), whole.calls.len(), "{text:?}");
    for (cut, whole) in cut.calls.iter().zip(&whole.calls).filter(|(cut, _)| cut.2) {
        assert_eq!(cut, whole, "{text:?}");
    }
}

#[test]
fn every_short_reply_of_parts_is_taken_apart_without_loss() {
    let count = PARTS.len();
    for length in 0..=3u32 {
        for number in 0..count.pow(length) {
            let parts = (0..length).map(|place| PARTS[number / count.pow(place) % count]);
            let (text, words) = written(parts);
            check(&text, &words, number % 2 == 0);
        }
    }
}

/// All replies that begin like a call, two parts deeper.
#[test]
fn every_way_to_go_on_with_a_call_is_taken_apart_without_loss() {
    let count = PARTS.len();
    for begin in [
        vec!["<Dtool_calls>", "\n", "<Dinvoke name=\"f\">", "\n"],
        vec![
            "<Dtool_calls>",
            "<Dinvoke name=\"f\">",
            "<Dparameter name=\"arguments\" string=\"false\">",
            "word",
        ],
    ] {
        for number in 0..count.pow(3) {
            let parts = (0..3).map(|place| PARTS[number / count.pow(place) % count]);
            let (text, words) = written(begin.iter().copied().chain(parts));
            check(&text, &words, false);
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no others", |value| value.is_finite()).prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(text(), inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Text that a model can write into a reply and mean.
fn text() -> impl Strategy<Value = String> {
    "(?s)[a-c<>/\"\\\\\\n |｜🦀é]{0,12}".prop_filter("the format's own tags", |text: &String| {
        !text.contains("｜DSML｜") && !text.contains("think>")
    })
}

fn more_cases() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(1000), ..default }
}

proptest! {
    #![proptest_config(more_cases())]

    /// The whole language of parts and characters, cut anywhere.
    #[test]
    fn any_text_cut_anywhere_gives_the_same_events(
        parts in prop::collection::vec(prop_oneof![
            4 => prop::sample::select(PARTS.as_slice()).prop_map(dsml),
            1 => "(?s).{0,3}",
            1 => "[<>/\"D \\n]{0,4}".prop_map(|text| dsml(&text)),
        ], 0..20),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        in_reasoning: bool,
        was_cut: bool,
    ) {
        let text = parts.concat();
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| places[cut.index(places.len())]).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|ends| &text[ends[0]..ends[1]]);
        prop_assert_eq!(
            parse_pieces(in_reasoning, pieces, was_cut),
            parse_pieces(in_reasoning, [text.as_str()], was_cut)
        );
    }

    #[test]
    fn words_in_any_mix_of_parts_are_told_once(
        parts in prop::collection::vec(prop::sample::select(PARTS.as_slice()), 0..40),
        in_reasoning: bool,
    ) {
        let (text, words) = written(parts);
        check(&text, &words, in_reasoning);
    }

    /// What the encoder writes of a reply is read back as that reply.
    #[test]
    fn what_was_encoded_is_read_back(
        thinking: bool,
        reasoning in text(),
        content in text(),
        calls in prop::collection::vec(
            ("[a-z]{1,4}", prop::collection::btree_map("[a-zé ]{1,5}", value(), 0..4)),
            0..4
        ),
    ) {
        let tool_calls: Vec<ToolCall> = calls
            .iter()
            .map(|(name, arguments)| {
                let arguments = serde_json::to_string(arguments).unwrap();
                ToolCall { id: String::new(), function: FunctionCall { name: name.clone(), arguments } }
            })
            .collect();
        let question = Message { role: "user".into(), content: "q".into(), ..Message::default() };
        let answer = Message {
            role: "assistant".into(),
            content: content.clone(),
            reasoning: reasoning.clone(),
            tool_calls,
            wo_eos: true,
            ..Message::default()
        };
        let ask = |messages| render(&Conversation { messages, thinking, ..Conversation::default() }).unwrap();
        let prompt = ask(vec![question.clone()]);
        let text = ask(vec![question, answer]);
        let reply = parse_pieces(ends_in_reasoning(&prompt), characters(&text[prompt.len()..]), false);
        prop_assert_eq!(&reply.reasoning, if thinking { reasoning.as_str() } else { "" });
        prop_assert_eq!(&reply.content, &content);
        let read: Vec<(String, Value)> = reply
            .calls
            .iter()
            .map(|(name, arguments, _)| (name.clone(), serde_json::from_str(arguments).unwrap()))
            .collect();
        let meant: Vec<(String, Value)> =
            calls.into_iter().map(|(name, arguments)| (name, Value::Object(arguments.into_iter().collect()))).collect();
        prop_assert_eq!(read, meant);
    }
}

//! Tokenizer and chat format against the 220 evaluation prompts of the nano model.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use std::path::PathBuf;
use std::sync::Arc;

use belay_engine::chat::{self, Conversation, Message, ReplyEvent, ReplyParser};
use belay_engine::{Detokenizer, FinishReason, Output, Stop, Tokenizer};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Item {
    id: String,
    thinking: bool,
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Value>,
    response_format: Option<Value>,
    prompt: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
}

fn nano() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/nano")
}

fn items() -> Vec<Item> {
    let text = std::fs::read_to_string(nano().join("eval.jsonl")).unwrap();
    let items: Vec<Item> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(items.len(), 220);
    items
}

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::load(&nano().join("bf16")).unwrap())
}

#[test]
fn every_prompt_gets_the_reference_ids() {
    let tokenizer = tokenizer();
    for item in items() {
        assert_eq!(tokenizer.encode(&item.prompt).unwrap(), item.prompt_ids, "{}", item.id);
    }
}

#[test]
fn every_answer_gets_the_reference_text_at_once_and_as_a_stream() {
    let tokenizer = tokenizer();
    for item in items() {
        assert_eq!(tokenizer.decode(&item.greedy_ids), item.greedy_text, "{}", item.id);
        let mut output = Output::new(tokenizer.clone(), &Stop::default(), 4096);
        let mut text = String::new();
        let ends: Vec<_> = item.greedy_ids.iter().map(|&id| output.push(id, &mut text)).collect();
        assert_eq!(text, item.greedy_text, "{}", item.id);
        assert_eq!(ends.iter().position(Option::is_some), Some(ends.len() - 1), "{}", item.id);
        assert_eq!(ends.last(), Some(&Some(FinishReason::EndOfSequence)), "{}", item.id);
    }
}

#[test]
fn every_prompt_is_rebuilt_from_its_messages_to_the_byte() {
    for item in items() {
        let conversation = Conversation {
            messages: item.messages,
            tools: item.tools,
            response_format: item.response_format,
            thinking: item.thinking,
            ..Conversation::default()
        };
        assert_eq!(chat::encode(&conversation).unwrap(), item.prompt, "{}", item.id);
    }
}

#[test]
fn replies_are_parted_at_the_end_of_thinking() {
    let tokenizer = tokenizer();
    let mut thinking = 0;
    for item in items() {
        let mut output = Output::new(tokenizer.clone(), &Stop::default(), 4096);
        let mut reply = ReplyParser::new(chat::ends_in_reasoning(&item.prompt), &[], "");
        let (mut reasoning, mut content, mut events) = (String::new(), String::new(), Vec::new());
        for &id in &item.greedy_ids {
            let mut text = String::new();
            output.push(id, &mut text);
            events.extend(reply.push(&text));
        }
        events.extend(reply.finish(false));
        for event in &events {
            match event {
                ReplyEvent::Reasoning(text) => reasoning.push_str(text),
                ReplyEvent::Content(text) => content.push_str(text),
                call => panic!("{}: {call:?}", item.id),
            }
        }
        let expected = match item.greedy_text.split_once("</think>") {
            Some(parts) if item.thinking => parts,
            _ => ("", item.greedy_text.as_str()),
        };
        assert_eq!((reasoning.as_str(), content.as_str()), expected, "{}", item.id);
        thinking += usize::from(item.thinking && !reasoning.is_empty());
    }
    assert_eq!(thinking, items().iter().filter(|item| item.thinking).count());
}

/// Ids whose bytes are single ones, so that a stream can hold anything.
fn byte_tokens(tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids = vec![None; 256];
    for id in 0..tokenizer.vocab_size() as u32 {
        if let &[byte] = tokenizer.bytes(id) {
            ids[usize::from(byte)] = Some(id);
        }
    }
    ids.into_iter().map(|id| id.expect("a byte-level vocabulary has every byte")).collect()
}

#[test]
fn text_survives_encoding_and_decoding() {
    let tokenizer = tokenizer();
    let text = "naïve 東京 カタカナ 🦀 \u{0}\t\r\n  <b>&amp;</b> 12345 e\u{301} \u{FFFD}";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text);
    assert!(tokenizer.encode("").unwrap().is_empty());
}

proptest! {
    #[test]
    fn a_stream_of_any_bytes_loses_none(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xF0), Just(0x9F), Just(0xA6), Just(0x80)], 0..40)
    ) {
        let tokenizer = tokenizer_once();
        let table = byte_tokens(&tokenizer);
        let mut detokenizer = Detokenizer::new(tokenizer);
        let mut text = String::new();
        for &byte in &bytes {
            detokenizer.push(table[usize::from(byte)], &mut text);
        }
        detokenizer.flush(&mut text);
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_stream_of_any_ids_is_what_the_library_decodes(ids in prop::collection::vec(0u32..2048, 0..40)) {
        let tokenizer = tokenizer_once();
        let reference = library_once();
        let mut detokenizer = Detokenizer::new(tokenizer.clone());
        let mut text = String::new();
        for &id in &ids {
            detokenizer.push(id, &mut text);
        }
        detokenizer.flush(&mut text);
        prop_assert_eq!(&text, &tokenizer.decode(&ids));
        prop_assert_eq!(text, reference.decode(&ids, true).unwrap());
    }

    #[test]
    fn any_text_survives(text in any::<String>()) {
        let tokenizer = tokenizer_once();
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
    }
}

fn library_once() -> &'static tokenizers::Tokenizer {
    static ONCE: std::sync::OnceLock<tokenizers::Tokenizer> = std::sync::OnceLock::new();
    ONCE.get_or_init(|| tokenizers::Tokenizer::from_file(nano().join("bf16/tokenizer.json")).unwrap())
}

fn tokenizer_once() -> Arc<Tokenizer> {
    static ONCE: std::sync::OnceLock<Arc<Tokenizer>> = std::sync::OnceLock::new();
    ONCE.get_or_init(tokenizer).clone()
}

#[test]
fn a_character_comes_out_with_its_last_byte() {
    let tokenizer = tokenizer();
    let table = byte_tokens(&tokenizer);
    let mut detokenizer = Detokenizer::new(tokenizer);
    let mut text = String::new();
    for &byte in &"🦀".as_bytes()[..3] {
        detokenizer.push(table[usize::from(byte)], &mut text);
        assert_eq!(text, "");
    }
    detokenizer.push(table[usize::from("🦀".as_bytes()[3])], &mut text);
    assert_eq!(text, "🦀");
}

#[test]
fn loading_names_the_file_that_is_wrong() {
    let message = |dir: &std::path::Path| Tokenizer::load(dir).err().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    assert!(message(dir.path()).contains("tokenizer.json: No such file"), "{}", message(dir.path()));

    std::fs::write(dir.path().join("tokenizer.json"), "{\"model\": 3").unwrap();
    assert!(message(dir.path()).contains("tokenizer.json: "), "{}", message(dir.path()));

    std::fs::copy(nano().join("bf16/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().eos(), [1], "by name when nothing is configured");

    std::fs::write(dir.path().join("config.json"), r#"{"eos_token_id": "one"}"#).unwrap();
    assert!(
        message(dir.path())
            .ends_with("config.json: eos_token_id: expected a token id or a list of them, found \"one\"")
    );

    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [1, 3]}"#).unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().eos(), [1, 3], "generation_config.json comes first");

    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": 2048}"#).unwrap();
    assert!(message(dir.path()).contains("eos_token_id 2048 is not a token"), "{}", message(dir.path()));
}

//! Where the text of a request ends, and that nothing of it is lost: half characters, half stop strings, `</think>`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use std::path::PathBuf;
use std::sync::Arc;

use belay_engine::chat::{ReplyEvent, ReplyParser};
use belay_engine::{FinishReason, Output, Stop, Tokenizer};

/// The first two of the four bytes of a crab.
const HALF: &[u8] = &[0xF0, 0x9F];

fn nano() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/nano/bf16")
}

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::load(&nano()).unwrap())
}

/// The same vocabulary, but `</think>` is marked as special.
fn tokenizer_with_a_special_marker() -> Arc<Tokenizer> {
    let text = std::fs::read_to_string(nano().join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    let marker = added.iter_mut().find(|token| token["content"] == "</think>").unwrap();
    marker["special"] = true.into();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    Arc::new(Tokenizer::load(dir.path()).unwrap())
}

/// One token a byte.
fn ids(tokenizer: &Tokenizer, bytes: &[u8]) -> Vec<u32> {
    let id_of =
        |byte: u8| (0..tokenizer.vocab_size() as u32).find(|&id| tokenizer.bytes(id) == [byte]).unwrap();
    bytes.iter().map(|&byte| id_of(byte)).collect()
}

fn stop_at(strings: &[&str]) -> Stop {
    Stop { strings: strings.iter().map(|&string| string.into()).collect(), ..Stop::default() }
}

/// Text of each token, and why the last one ended the output, if it did.
fn follow(tokenizer: &Arc<Tokenizer>, stop: &Stop, ids: &[u32]) -> (Vec<String>, Option<FinishReason>) {
    let mut output = Output::new(tokenizer.clone(), stop, 4096);
    let mut texts = Vec::new();
    for (index, &id) in ids.iter().enumerate() {
        let mut text = String::new();
        let ended = output.push(id, &mut text);
        texts.push(text);
        if ended.is_some() {
            assert_eq!(index + 1, ids.len(), "ended early");
            return (texts, ended);
        }
    }
    (texts, None)
}

#[test]
fn a_character_cut_in_half_is_told_at_every_kind_of_end() {
    let tokenizer = tokenizer();
    let half = ids(&tokenizer, &[b"ab", HALF].concat());
    let eos = tokenizer.eos()[0];
    let stop_id = ids(&tokenizer, b"z")[0];
    let cases = [
        ("end of sequence", Stop::default(), Some(eos), FinishReason::EndOfSequence),
        (
            "stop id",
            Stop { ids: vec![stop_id], ..Stop::default() },
            Some(stop_id),
            FinishReason::StopId(stop_id),
        ),
        ("max_tokens", Stop { max_tokens: Some(4), ..Stop::default() }, None, FinishReason::Length),
    ];
    for (what, stop, last, reason) in cases {
        let ids: Vec<u32> = half.iter().copied().chain(last).collect();
        let (texts, ended) = follow(&tokenizer, &stop, &ids);
        assert_eq!((texts.concat().as_str(), ended), ("ab\u{FFFD}", Some(reason)), "{what}");
    }
}

#[test]
fn half_a_stop_string_is_told_at_every_kind_of_end() {
    let tokenizer = tokenizer();
    let eos = tokenizer.eos()[0];
    let half = ids(&tokenizer, b"an EN");
    let (texts, ended) = follow(&tokenizer, &stop_at(&["END"]), &[half.as_slice(), &[eos]].concat());
    assert_eq!((texts.concat().as_str(), ended), ("an EN", Some(FinishReason::EndOfSequence)));
    let stop = Stop { max_tokens: Some(5), ..stop_at(&["END"]) };
    let (texts, ended) = follow(&tokenizer, &stop, &half);
    assert_eq!((texts.concat().as_str(), ended), ("an EN", Some(FinishReason::Length)));
}

#[test]
fn a_half_character_can_complete_a_stop_string_at_the_end() {
    let tokenizer = tokenizer();
    let stop = Stop { max_tokens: Some(4), ..stop_at(&["b\u{FFFD}"]) };
    let (texts, ended) = follow(&tokenizer, &stop, &ids(&tokenizer, &[b"ab", HALF].concat()));
    assert_eq!((texts.concat().as_str(), ended), ("a", Some(FinishReason::StopString("b\u{FFFD}".into()))));
}

#[test]
fn all_of_the_reasoning_is_out_when_it_ends() {
    let tokenizer = tokenizer();
    let marker = tokenizer.think_end().unwrap();
    // The end of the marker could be the beginning of the stop string, and what follows would complete it.
    let tokens = [ids(&tokenizer, b"hm"), vec![marker], ids(&tokenizer, b">!")].concat();
    let (texts, ended) = follow(&tokenizer, &stop_at(&[">>", "k>>!"]), &tokens);
    assert_eq!(texts, ["h", "m", "</think>", "", ">!"]);
    assert_eq!(ended, None, "a stop string does not reach across the end of the reasoning");

    let mut reply = ReplyParser::new(true, &[], "");
    let events: Vec<ReplyEvent> = texts.iter().flat_map(|text| reply.push(text)).collect();
    let [reasoning @ .., content] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(reasoning, [ReplyEvent::Reasoning("h".into()), ReplyEvent::Reasoning("m".into())]);
    assert_eq!(content, &ReplyEvent::Content(">!".into()));
}

#[test]
fn half_a_character_of_the_reasoning_ends_with_it() {
    for tokenizer in [tokenizer(), tokenizer_with_a_special_marker()] {
        let marker = tokenizer.think_end().unwrap();
        let written = String::from_utf8(tokenizer.bytes(marker).to_vec()).unwrap();
        // The other half follows, but it belongs to another text.
        let tokens = [ids(&tokenizer, HALF), vec![marker], ids(&tokenizer, &[0xA6, 0x80, b'.'])].concat();
        let (texts, _) = follow(&tokenizer, &Stop::default(), &tokens);
        assert_eq!(texts[..3].concat(), format!("\u{FFFD}{written}"));
        assert_eq!(texts[3..].concat(), "\u{FFFD}\u{FFFD}.");
    }
}

#[test]
fn the_tags_of_a_reply_are_text_even_if_they_are_marked_as_special() {
    let tokenizer = tokenizer_with_a_special_marker();
    assert_eq!(tokenizer.bytes(tokenizer.think_end().unwrap()), b"</think>");
}

#[test]
fn nothing_but_the_length_ends_the_output_before_min_tokens() {
    let tokenizer = tokenizer();
    let eos = tokenizer.eos()[0];
    let text = ids(&tokenizer, b"ENDEND");
    let stop = Stop { min_tokens: 4, ids: vec![text[0]], ..Stop::default() };
    // The first `E` is a stop id that comes too early; the second one is not.
    let (texts, ended) = follow(&tokenizer, &stop, &[&text[..3], &[eos], &text[..1]].concat());
    assert_eq!((texts.concat().as_str(), ended), ("END", Some(FinishReason::StopId(text[0]))));
    // A stop string counts if its last token does.
    let stop = Stop { min_tokens: 4, ..stop_at(&["END"]) };
    let (texts, ended) = follow(&tokenizer, &stop, &text);
    assert_eq!((texts.concat().as_str(), ended), ("END", Some(FinishReason::StopString("END".into()))));
    let stop = Stop { min_tokens: 2, ..stop_at(&["END"]) };
    let (texts, ended) = follow(&tokenizer, &stop, &text[..3]);
    assert_eq!((texts.concat().as_str(), ended), ("", Some(FinishReason::StopString("END".into()))));
    let stop = Stop { min_tokens: 9, max_tokens: Some(9), ..stop_at(&["END"]) };
    let (texts, ended) = follow(&tokenizer, &stop, &[text.as_slice(), &text[..3]].concat());
    assert_eq!((texts.concat().as_str(), ended), ("ENDENDEND", Some(FinishReason::Length)));
}

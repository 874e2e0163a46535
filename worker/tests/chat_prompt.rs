//! `belay-worker chat-prompt` as a user runs it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn chat_prompt(request: &Value, args: &[&str]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_belay-worker"))
        .args(["chat-prompt", "--request", "-"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(request: &Value, args: &[&str]) -> String {
    let output = chat_prompt(request, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn hello() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "Hello"}]})
}

#[test]
fn the_text_is_printed_and_nothing_after_it() {
    assert_eq!(text(&hello(), &[]), "<｜begin▁of▁sentence｜><｜User｜>Hello<｜Assistant｜><think>");
    assert_eq!(
        text(&hello(), &["--thinking", "off", "--encoding", "0731"]),
        "<｜begin▁of▁sentence｜><｜User｜>Hello<｜Assistant｜></think>"
    );
    let july = text(&hello(), &["--encoding", "0731"]);
    assert!(july.starts_with("<｜begin▁of▁sentence｜>Reasoning Effort: Absolute maximum"), "{july}");
}

#[test]
fn a_file_is_read_as_well() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), hello().to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_belay-worker"))
        .args(["chat-prompt", "--encoding", "april", "--request", file.path().to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.stdout.ends_with("<｜User｜>Hello<｜Assistant｜><think>".as_bytes()));
}

#[test]
fn a_conversation_that_is_answered_is_printed_with_a_warning() {
    let mut request = hello();
    request["messages"].as_array_mut().unwrap().push(json!({"role": "assistant", "content": "Hi"}));
    let output = chat_prompt(&request, &["--thinking", "off"]);
    assert!(output.stdout.ends_with("</think>Hi<｜end▁of▁sentence｜>".as_bytes()));
    let warning = String::from_utf8_lossy(&output.stderr);
    assert!(warning.contains("messages[1].role: the last message is the assistant's"), "{warning}");
}

#[test]
fn what_is_wrong_is_named() {
    for (request, args, named) in [
        (json!({"messages": [{"role": "usr"}]}), vec![], "messages[0].role: \"usr\" is unknown"),
        (json!({"messages": 1}), vec![], "messages: invalid type"),
        (hello(), vec!["--encoding", "may"], "expected april or 0731"),
    ] {
        let output = chat_prompt(&request, &args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(error.contains(named), "{error}");
    }
}

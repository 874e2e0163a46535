//! `belay-worker generate` as a user runs it, against the reference's tokens for the nano model.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn nano(layout: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/nano").join(layout)
}

fn items() -> Vec<Value> {
    let text = std::fs::read_to_string(nano("eval.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn generate(model: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_belay-worker"))
        .args(["generate", "--model", model.to_str().unwrap()])
        .args(args)
        .output()
        .unwrap()
}

/// Standard output of a run that must go well.
fn printed(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a run that must not.
fn refused(output: Output) -> String {
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[test]
fn json_holds_the_reference_completion_for_any_layout_and_number_of_ranks() {
    let files = Files::new();
    // One in eleven, of every kind; the engine's own tests run all 220.
    for (index, item) in items().iter().step_by(11).enumerate() {
        let prompt = files.write("prompt.txt", item["prompt"].as_str().unwrap());
        let layout = ["bf16", "fp4"][index % 2];
        let ranks = ["1", "2", "3", "16"][index % 4];
        let output = generate(
            &nano(layout),
            &[
                "--prompt-file",
                &prompt,
                "--max-tokens",
                "128",
                "--temperature",
                "0",
                "--exact",
                "--json",
                "--ranks",
                ranks,
            ],
        );
        let found: Value = serde_json::from_str(&printed(output)).unwrap();
        let expected = json!({
            "prompt_ids": item["prompt_ids"],
            "ids": item["greedy_ids"],
            "text": item["greedy_text"],
            "finish_reason": item["finish"],
        });
        assert_eq!(found, expected, "{} {layout} {ranks}", item["id"]);
    }
}

#[test]
fn text_is_printed_without_json_and_ids_replace_the_prompt_text() {
    let files = Files::new();
    let item = &items()[0];
    let list = files.write("list.json", item["prompt_ids"].to_string());
    let object = files.write("object.json", item.to_string());
    for ids in [list, object] {
        let output = generate(&nano("bf16"), &["--prompt-ids", &ids]);
        assert_eq!(printed(output), format!("{}\n", item["greedy_text"].as_str().unwrap()));
    }
}

#[test]
fn a_limit_and_a_stop_string_end_the_completion() {
    let files = Files::new();
    let item = &items()[0];
    let prompt = files.write("prompt.txt", item["prompt"].as_str().unwrap());
    let run = |args: &[&str]| -> Value {
        let args = [&["--prompt-file", &prompt, "--json"], args].concat();
        serde_json::from_str(&printed(generate(&nano("bf16"), &args))).unwrap()
    };
    let limited = run(&["--max-tokens", "5"]);
    assert_eq!(limited["finish_reason"], "length");
    assert_eq!(limited["ids"].as_array().unwrap().as_slice(), &item["greedy_ids"].as_array().unwrap()[..5]);
    let stopped = run(&["--stop", "separate"]);
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"], "A namespace divides one cluster into ");
}

#[test]
fn sampling_with_a_seed_repeats() {
    let files = Files::new();
    let prompt = files.write("prompt.txt", "<｜begin▁of▁sentence｜><｜User｜>Hello<｜Assistant｜></think>");
    let run = |seed: &str| {
        let args =
            ["--prompt-file", &prompt, "--temperature", "3", "--max-tokens", "20", "--seed", seed, "--json"];
        printed(generate(&nano("bf16"), &args))
    };
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

#[test]
fn refusals_say_what_is_wrong() {
    let files = Files::new();
    let good = files.write("good.txt", "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>");
    let nano = nano("bf16");
    let bad = files.write("bad.txt", b"good until here: \xFF");
    let message = refused(generate(&nano, &["--prompt-file", &bad]));
    assert!(message.contains("bad.txt: not UTF-8 at byte 17"), "{message}");

    let empty = files.write("empty.txt", "");
    let message = refused(generate(&nano, &["--prompt-file", &empty]));
    assert!(message.contains("prompt: must not be empty"), "{message}");

    let long = files.write("long.json", json!(vec![5; 4096]).to_string());
    let message = refused(generate(&nano, &["--prompt-ids", &long]));
    assert!(message.contains("prompt: 4096 tokens do not fit: the context holds 4096"), "{message}");

    let unknown = files.write("unknown.json", "[5, 2048]");
    let message = refused(generate(&nano, &["--prompt-ids", &unknown]));
    assert!(message.contains("prompt: token 1 is 2048, but the vocabulary ends at 2047"), "{message}");

    let text = files.write("text.json", "{\"prompt_ids\": [1, \"two\"]}");
    let message = refused(generate(&nano, &["--prompt-ids", &text]));
    assert!(message.contains("expected a list of token ids") && message.contains("text.json"), "{message}");

    let message = refused(generate(&nano, &["--prompt-file", &good, "--ranks", "17"]));
    assert!(message.contains("--ranks 17: must be from 1 to 16"), "{message}");

    let message = refused(generate(&nano, &["--prompt-file", &good, "--max-tokens", "0"]));
    assert!(message.contains("max_tokens: must be at least 1"), "{message}");

    let message = refused(generate(&nano, &["--prompt-file", &format!("{good}x")]));
    assert!(message.contains("good.txtx") && message.contains("No such file"), "{message}");

    let message = refused(generate(files.0.path(), &["--prompt-file", &good]));
    assert!(message.contains("config.json"), "{message}");

    let message = refused(generate(&nano.join("nowhere"), &["--prompt-file", &good]));
    assert!(message.contains("nowhere"), "{message}");

    let message = refused(generate(&nano, &[]));
    assert!(message.contains("--prompt-file"), "{message}");
}

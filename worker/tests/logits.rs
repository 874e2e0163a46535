//! `belay-worker logits`, run as a user runs it, against the reference's numbers.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/public_hybrid")
}

/// The golden file's sequences in the command's input form.
fn input() -> Value {
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(case().join("golden.json")).unwrap()).unwrap();
    let sequence = |sequence: &Value| {
        let ids = ["prompt", "greedy"].map(|part| sequence[part].as_array().unwrap().clone()).concat();
        json!({"name": sequence["name"], "ids": ids})
    };
    json!({"sequences": golden["sequences"].as_array().unwrap().iter().map(sequence).collect::<Vec<_>>()})
}

fn run(dir: &TempDir, model: &Path, input: &Value, more: &[&str]) -> Output {
    let ids = dir.path().join("ids.json");
    std::fs::write(&ids, input.to_string()).unwrap();
    Command::new(env!("CARGO_BIN_EXE_belay-worker"))
        .arg("logits")
        .args([Path::new("--model"), model, Path::new("--ids"), &ids])
        .args([Path::new("--out"), &dir.path().join("out.safetensors")])
        .args(more)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32);
    tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn ranks_and_chunks_write_the_same_file_and_it_equals_the_reference() {
    let dir = TempDir::new().unwrap();
    let mut files = Vec::new();
    for options in [&[][..], &["--ranks", "3"], &["--ranks", "4", "--chunk", "7"]] {
        let output = run(&dir, &case(), &input(), options);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        files.push(std::fs::read(dir.path().join("out.safetensors")).unwrap());
    }
    assert!(files.iter().all(|file| *file == files[0]));

    let golden = std::fs::read(case().join("golden.safetensors")).unwrap();
    let (found, expected) =
        (SafeTensors::deserialize(&files[0]).unwrap(), SafeTensors::deserialize(&golden).unwrap());
    for sequence in input()["sequences"].as_array().unwrap() {
        let name = sequence["name"].as_str().unwrap();
        let logits = format!("{name}.logits");
        assert_eq!(found.tensor(&logits).unwrap().shape(), expected.tensor(&logits).unwrap().shape());
        let pairs = floats(&found, &logits).into_iter().zip(floats(&expected, &logits));
        let largest = pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(largest <= 1e-3, "{logits}: {largest}");
        for layer in 0..6 {
            let ours = found.tensor(&format!("{name}.router.{layer}")).unwrap();
            let theirs = expected.tensor(&format!("{name}.router_experts.{layer}")).unwrap();
            assert_eq!((ours.dtype(), ours.shape()), (Dtype::I32, theirs.shape()));
            assert_eq!(ours.data(), theirs.data(), "{name} layer {layer}");
        }
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let dir = TempDir::new().unwrap();
    let refusal = |model: &Path, input: Value, more: &[&str]| {
        let output = run(&dir, model, &input, more);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let one = |ids: Value| json!({"sequences": [{"name": "s0", "ids": ids}]});
    assert!(refusal(Path::new("/no/model"), one(json!([1])), &[]).contains("/no/model: no such directory"));
    assert!(refusal(&case(), one(json!([1])), &["--ranks", "11"]).contains("11 ranks for 10 experts"));
    assert!(refusal(&case(), one(json!([])), &[]).contains("sequence \"s0\": ids is empty"));
    assert!(
        refusal(&case(), one(json!([1, 999])), &[]).contains("token 999 is outside the vocabulary of 256")
    );
    assert!(refusal(&case(), json!({"sequence": []}), &[]).contains("unknown field `sequence`"));
    assert!(
        refusal(&case(), one(json!(vec![1; 129])), &["--chunk", "200"]).contains("max_position_embeddings")
    );
}

//! Broken checkpoints: each is refused with the file, the tensor and what was expected.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use belay_cpu::CpuBackend;
use belay_model::{CacheOptions, Checkpoint, CheckpointError, ExpertBank, Model, Numerics};
use common::edit::*;
use common::*;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// The message of the refusal.
fn refusal(dir: &TempDir) -> String {
    match Checkpoint::open(dir.path()) {
        Ok(_) => panic!("the checkpoint was accepted"),
        Err(error) => error.to_string(),
    }
}

const SINGLE: &str = "model.safetensors";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

#[test]
fn a_directory_without_a_model_is_told_from_a_broken_one() {
    let missing = Checkpoint::open(Path::new("/no/such/checkpoint")).err().unwrap();
    assert_eq!(missing.to_string(), "/no/such/checkpoint: no such directory");
    assert!(missing.is_not_found());

    let dir = TempDir::new().unwrap();
    let error = Checkpoint::open(dir.path()).err().unwrap();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), format!("{}: config.json is missing", dir.path().display()));

    fs::copy(golden_dir("public_hybrid").join("config.json"), dir.path().join("config.json")).unwrap();
    let error = Checkpoint::open(dir.path()).err().unwrap();
    assert!(!error.is_not_found());
    assert_eq!(error.to_string(), format!("{}: {SINGLE} is missing", dir.path().display()));
}

#[test]
fn a_configuration_error_names_the_field() {
    let dir = copy_of(&golden_dir("public_hybrid"));
    let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
    fs::write(dir.path().join("config.json"), text.replace("\"hc_mult\": 4", "\"hc_mult\": \"4\"")).unwrap();
    assert_eq!(refusal(&dir), "config.json: hc_mult: expected a positive integer, found \"4\"");
}

#[test]
fn a_missing_shard_is_named() {
    let dir = copy_of(&golden_dir("public_fp"));
    fs::remove_file(dir.path().join(SECOND)).unwrap();
    assert_eq!(refusal(&dir), format!("{}: {SECOND} is missing", dir.path().display()));
}

#[test]
fn a_truncated_file_names_the_first_tensor_that_is_cut() {
    let dir = copy_of(&golden_dir("public_fp"));
    let bytes = fs::read(dir.path().join(SECOND)).unwrap();
    fs::write(dir.path().join(SECOND), &bytes[..bytes.len() - 1]).unwrap();
    let message = refusal(&dir);
    assert!(message.starts_with(&format!("{SECOND}: truncated: tensor ")), "{message}");
    assert!(message.contains(" needs ") && message.contains("the file holds"), "{message}");

    fs::write(dir.path().join(SECOND), &bytes[..100]).unwrap();
    assert!(refusal(&dir).starts_with(&format!("{SECOND}: truncated: a header of ")));
    fs::write(dir.path().join(SECOND), &bytes[..3]).unwrap();
    assert_eq!(refusal(&dir), format!("{SECOND}: truncated: 3 bytes are no safetensors file"));
    fs::write(dir.path().join(SECOND), [b"{}".as_slice(), &[7; 40]].concat()).unwrap();
    assert!(refusal(&dir).starts_with(&format!("{SECOND}: not a safetensors file: a header of ")));
}

#[test]
fn a_header_or_index_that_is_no_json_names_the_file() {
    let dir = copy_of(&golden_dir("public_fp"));
    let mut bytes = fs::read(dir.path().join(FIRST)).unwrap();
    bytes[8] = b'!';
    fs::write(dir.path().join(FIRST), &bytes).unwrap();
    assert!(refusal(&dir).starts_with(&format!("{FIRST}: bad safetensors header: ")));
    fs::write(dir.path().join("model.safetensors.index.json"), "[]").unwrap();
    assert!(refusal(&dir).starts_with("model.safetensors.index.json: bad index: "));
    fs::write(dir.path().join("model.safetensors.index.json"), r#"{"weight_map": {"a": "../x"}}"#).unwrap();
    assert_eq!(refusal(&dir), "model.safetensors.index.json: \"../x\" is not a file name");
}

#[test]
fn a_missing_tensor_is_named_with_its_file() {
    let dir = copy_of(&golden_dir("public_hybrid"));
    rewrite(&dir, SINGLE, |tensors| drop(tensors.remove("layers.4.attn.indexer.wq_b.weight")));
    assert_eq!(refusal(&dir), format!("{SINGLE}: tensor layers.4.attn.indexer.wq_b.weight is missing"));

    // in the index, but not in the shard
    let dir = copy_of(&golden_dir("public_fp"));
    rewrite(&dir, SECOND, |tensors| drop(tensors.remove("layers.3.ffn.experts.11.w2.weight")));
    assert_eq!(refusal(&dir), format!("{SECOND}: tensor layers.3.ffn.experts.11.w2.weight is missing"));
}

#[test]
fn a_missing_scale_is_named() {
    let dir = copy_of(&golden_dir("public_fp"));
    let name = "layers.1.attn.wq_b.scale";
    rewrite(&dir, FIRST, |tensors| drop(tensors.remove(name)));
    let index = dir.path().join("model.safetensors.index.json");
    let mut value: serde_json::Value = serde_json::from_str(&fs::read_to_string(&index).unwrap()).unwrap();
    value["weight_map"].as_object_mut().unwrap().remove(name);
    fs::write(&index, value.to_string()).unwrap();
    assert_eq!(refusal(&dir), format!("model.safetensors.index.json: tensor {name} is missing"));
}

#[test]
fn a_wrong_shape_shows_both_shapes() {
    let dir = copy_of(&golden_dir("public_hybrid"));
    rewrite(&dir, SINGLE, |tensors| {
        let tensor = tensors.get_mut("layers.2.ffn.experts.7.w1.weight").unwrap();
        tensor.1 = vec![64, 32];
    });
    let expected = "tensor layers.2.ffn.experts.7.w1.weight: expected shape [32, 64], found [64, 32]";
    assert_eq!(refusal(&dir), format!("{SINGLE}: {expected}"));

    let dir = copy_of(&golden_dir("public_fp"));
    rewrite(&dir, FIRST, |tensors| {
        let tensor = tensors.get_mut("layers.0.attn.wo_a.scale").unwrap();
        tensor.1 = vec![2, 1];
    });
    let expected = "tensor layers.0.attn.wo_a.scale: expected shape [1, 2], found [2, 1]";
    assert_eq!(refusal(&dir), format!("{FIRST}: {expected}"));
}

#[test]
fn a_wrong_dtype_shows_what_would_do() {
    let dir = copy_of(&golden_dir("public_hybrid"));
    rewrite(&dir, SINGLE, |tensors| {
        tensors.get_mut("layers.0.attn.wkv.weight").unwrap().0 = Dtype::F16;
    });
    let expected = "tensor layers.0.attn.wkv.weight: expected dtype BF16, F32, F8_E4M3 or I8, found F16";
    assert_eq!(refusal(&dir), format!("{SINGLE}: {expected}"));

    let dir = copy_of(&golden_dir("public_hybrid"));
    rewrite(&dir, SINGLE, |tensors| {
        tensors.get_mut("layers.0.attn.attn_sink").unwrap().0 = Dtype::I32;
    });
    let expected = "tensor layers.0.attn.attn_sink: expected dtype F32 or BF16, found I32";
    assert_eq!(refusal(&dir), format!("{SINGLE}: {expected}"));
}

fn load_error(dir: &TempDir) -> CheckpointError {
    let checkpoint = std::sync::Arc::new(Checkpoint::open(dir.path()).unwrap());
    let backend = std::sync::Arc::new(CpuBackend::detect());
    let cache = CacheOptions::default();
    let loaded =
        Model::load(std::sync::Arc::clone(&backend), &checkpoint, Numerics::EXACT, cache, &mut |_, _| {});
    if let Err(error) = loaded {
        return error;
    }
    let bank = ExpertBank::new(backend, std::sync::Arc::clone(&checkpoint), Numerics::EXACT);
    bank.load(all_experts(&checkpoint), &mut |_, _| {}).unwrap_err()
}

#[test]
fn values_that_are_no_numbers_are_found_when_the_weight_is_loaded() {
    let dir = copy_of(&golden_dir("public_fp"));
    rewrite(&dir, FIRST, |tensors| tensors.get_mut("layers.1.attn.wkv.weight").unwrap().2[130] = 0xff);
    assert_eq!(
        load_error(&dir).to_string(),
        format!("{FIRST}: tensor layers.1.attn.wkv.weight: data holds a NaN code at byte 130")
    );
    let dir = copy_of(&golden_dir("public_fp"));
    rewrite(&dir, FIRST, |tensors| tensors.get_mut("layers.0.ffn.experts.3.w3.scale").unwrap().2[5] = 255);
    assert_eq!(
        load_error(&dir).to_string(),
        format!("{FIRST}: tensor layers.0.ffn.experts.3.w3.weight: scale holds a NaN code at byte 5")
    );
}

#[test]
fn a_hash_table_that_names_an_unknown_expert_is_refused() {
    let dir = copy_of(&golden_dir("public_fp"));
    rewrite(&dir, FIRST, |tensors| {
        tensors.get_mut("layers.0.ffn.gate.tid2eid").unwrap().2[8 * 6..8 * 7]
            .copy_from_slice(&12i64.to_le_bytes());
    });
    assert_eq!(
        load_error(&dir).to_string(),
        format!("{FIRST}: tensor layers.0.ffn.gate.tid2eid: [1, 2] is 12, expected 0..12")
    );
}

#[test]
fn tensors_that_are_not_known_do_no_harm() {
    let dir = copy_of(&golden_dir("public_hybrid"));
    rewrite(&dir, SINGLE, |tensors| {
        tensors.insert("layers.0.extra.weight".to_owned(), (Dtype::F32, vec![1], vec![0; 4]));
        tensors.retain(|name, _| !name.starts_with("mtp."));
    });
    let found = Checkpoint::open(dir.path()).unwrap();
    let original = Checkpoint::open(&golden_dir("public_hybrid")).unwrap();
    assert_eq!(found.card().dense_bytes, original.card().dense_bytes);
    assert_ne!(found.card().digest, original.card().digest);
}

#[test]
fn the_card_counts_the_bytes_of_the_files() {
    for (dir, layout) in
        [(nano_dir("bf16"), "bf16"), (nano_dir("fp4"), "fp4"), (golden_dir("public_fp"), "fp")]
    {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let card = checkpoint.card();
        let config = checkpoint.config();
        assert_eq!((card.layers as usize, card.experts as usize), (config.depth(), config.experts));
        let mut trunk = 0;
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let is_model = path.file_name().unwrap().to_string_lossy().starts_with("model");
            if is_model && path.extension().is_some_and(|extension| extension == "safetensors") {
                let bytes = fs::read(&path).unwrap();
                let file = SafeTensors::deserialize(&bytes).unwrap();
                let of_trunk = file.iter().filter(|(name, _)| !name.starts_with("mtp."));
                trunk += of_trunk.map(|(_, view)| view.data().len() as u64).sum::<u64>();
            }
        }
        let experts = u64::from(card.layers * card.experts) * card.expert_bytes;
        assert_eq!(card.dense_bytes + experts, trunk, "{layout}");
        assert_eq!(card.digest.len(), 64);
    }
}

#[test]
fn only_the_experts_that_were_asked_for_are_resident() {
    let checkpoint = std::sync::Arc::new(Checkpoint::open(&nano_dir("fp4")).unwrap());
    let backend = std::sync::Arc::new(CpuBackend::detect());
    let bank = ExpertBank::new(backend, std::sync::Arc::clone(&checkpoint), Numerics::EXACT);
    let share: Vec<(u32, u32)> = all_experts(&checkpoint).into_iter().filter(|&(_, e)| e % 4 == 1).collect();
    let mut steps = Vec::new();
    bank.load(share.iter().copied(), &mut |done, total| steps.push((done, total))).unwrap();
    assert_eq!(bank.resident(), share);
    assert_eq!(bank.bytes(), share.len() as u64 * checkpoint.card().expert_bytes);
    assert_eq!(steps.last(), Some(&(bank.bytes(), bank.bytes())));
    assert!(steps.windows(2).all(|pair| pair[0].0 < pair[1].0), "progress goes on");
    bank.unload(share);
    assert_eq!((bank.resident().len(), bank.bytes()), (0, 0));
}

//! Which checkpoints can draft, and what the stage adds to them.

#![allow(clippy::unwrap_used)]

mod common;

use belay_backend::ExpertCompute;
use belay_cpu::CpuBackend;
use belay_model::{CacheOptions, Checkpoint, CheckpointError, Drafting, ExpertBank, Model, Numerics};
use common::edit::*;
use common::*;
use safetensors::Dtype;
use tempfile::TempDir;

const SINGLE: &str = "model.safetensors";

fn open(dir: &TempDir, drafting: &str) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open_with(dir.path(), drafting.parse().unwrap())
}

fn refusal(dir: &TempDir, drafting: &str) -> String {
    open(dir, drafting).err().unwrap().to_string()
}

/// The names by which a DSpark drafter is known, in the place of the classic stage; of no use but for their names.
fn dspark() -> TempDir {
    let dir = copy_of(&nano_dir("bf16"));
    rewrite(&dir, SINGLE, |tensors| {
        tensors.retain(|name, _| !name.starts_with("mtp."));
        let names = [
            "mtp.0.main_norm.weight",
            "mtp.0.main_proj.scale",
            "mtp.0.main_proj.weight",
            "mtp.1.attn_norm.weight",
            "mtp.2.confidence_head.proj.weight",
            "mtp.2.markov_head.markov_w1.weight",
            "mtp.2.norm.weight",
        ];
        tensors.extend(names.map(|name| (name.to_owned(), (Dtype::BF16, vec![2], vec![0; 4]))));
    });
    dir
}

fn without_stage() -> TempDir {
    let dir = copy_of(&nano_dir("bf16"));
    rewrite(&dir, SINGLE, |tensors| tensors.retain(|name, _| !name.starts_with("mtp.")));
    dir
}

#[test]
fn the_setting_is_a_number_or_auto() {
    assert_eq!("0".parse(), Ok(Drafting::OFF));
    assert_eq!("auto".parse(), Ok(Drafting::AUTO));
    assert_eq!("3".parse(), Drafting::tokens(3));
    for text in ["4", "-1", "", "on", "18446744073709551617"] {
        assert_eq!(text.parse::<Drafting>().unwrap_err().to_string(), "expected 0 to 3 or auto", "{text}");
    }
}

#[test]
fn a_classic_stage_is_one_more_layer_on_the_card() {
    for dir in [nano_dir("bf16"), nano_dir("fp4"), golden_dir("public_fp")] {
        let off = Checkpoint::open(&dir).unwrap();
        for (setting, draft_tokens) in [("auto", 1), ("1", 1), ("3", 3)] {
            let on = Checkpoint::open_with(&dir, setting.parse().unwrap()).unwrap();
            assert_eq!(on.config().draft_tokens, draft_tokens);
            assert_eq!(on.config().depth(), off.config().depth());
            let (on, off) = (on.card(), off.card());
            assert_eq!(on.layers, off.layers + 1);
            assert_eq!(
                (on.experts, on.expert_bytes, on.max_context_tokens),
                (off.experts, off.expert_bytes, off.max_context_tokens)
            );
            assert!(on.dense_bytes > off.dense_bytes);
            assert_ne!(on.digest, off.digest, "a group agrees on whether it drafts");
        }
        assert_eq!(Checkpoint::open_with(&dir, Drafting::OFF).unwrap().card(), off.card());
    }
}

/// Off, the card is what it would be if the stage were not in the files, but for the digest of their names.
#[test]
fn without_drafting_the_stage_does_not_count() {
    let (with, without) =
        (Checkpoint::open(&nano_dir("bf16")).unwrap(), open(&without_stage(), "0").unwrap());
    let digest = with.card().digest.clone();
    assert_eq!(with.card(), &belay_model::ModelCard { digest, ..without.card().clone() });
}

#[test]
fn the_stages_experts_are_those_of_the_layer_behind_the_trunks_last() {
    let checkpoint = std::sync::Arc::new(Checkpoint::open_with(&nano_dir("fp4"), Drafting::AUTO).unwrap());
    let bank = ExpertBank::new(
        std::sync::Arc::new(CpuBackend::detect()),
        std::sync::Arc::clone(&checkpoint),
        Numerics::EXACT,
    );
    let stage = checkpoint.config().depth() as u32;
    bank.load([(stage, 3)], &mut |_, _| {}).unwrap();
    assert_eq!(bank.resident(), [(5, 3)]);
    assert_eq!(bank.bytes(), checkpoint.card().expert_bytes);
    let refused = bank.compute(stage, &[], &[], &mut []);
    assert!(refused.is_ok(), "nothing to compute");
}

#[test]
fn a_dspark_drafter_is_skipped_or_refused() {
    let dir = dspark();
    let trunk = Checkpoint::open(&nano_dir("bf16")).unwrap();
    for setting in ["0", "auto"] {
        let checkpoint = open(&dir, setting).unwrap();
        assert_eq!((checkpoint.card().layers, checkpoint.config().draft_tokens), (5, 0), "{setting}");
        assert_eq!(checkpoint.card().dense_bytes, trunk.card().dense_bytes, "{setting}");
    }
    let problem = "belongs to a DSpark drafter, which is not supported";
    assert_eq!(
        refusal(&dir, "2"),
        format!(
            "{SINGLE}: tensor mtp.0.main_proj.weight {problem}: draft-tokens must be 0 or auto for this checkpoint, not 2"
        )
    );
}

/// Its trunk gives the same tokens as the one beside a classic stage.
#[test]
fn the_trunk_of_a_dspark_checkpoint_serves() {
    let (dir, classic) = (dspark(), load(&nano_dir("bf16")));
    let loaded = load(dir.path());
    let prompt = [0, 3, 1187, 520, 1067, 452, 1205, 276, 1829, 280, 45, 4, 6];
    assert_eq!(greedy(&loaded, &prompt, 16, None), greedy(&classic, &prompt, 16, None));
}

#[test]
fn drafting_without_a_stage_is_refused() {
    let dir = without_stage();
    assert_eq!(open(&dir, "auto").unwrap().config().draft_tokens, 0);
    assert_eq!(
        refusal(&dir, "1"),
        format!(
            "{SINGLE}: tensor mtp.0.e_proj.weight is missing: draft-tokens must be 0 or auto for this checkpoint, not 1"
        )
    );
}

#[test]
fn a_broken_stage_is_refused_only_if_it_is_used() {
    let dir = copy_of(&nano_dir("bf16"));
    rewrite(&dir, SINGLE, |tensors| drop(tensors.remove("mtp.0.ffn.experts.4.w2.weight")));
    assert!(open(&dir, "0").is_ok());
    for setting in ["1", "auto"] {
        assert_eq!(
            refusal(&dir, setting),
            format!("{SINGLE}: tensor mtp.0.ffn.experts.4.w2.weight is missing"),
            "{setting}"
        );
    }
    let dir = copy_of(&nano_dir("bf16"));
    rewrite(&dir, SINGLE, |tensors| tensors.get_mut("mtp.0.h_proj.weight").unwrap().1 = vec![64, 256]);
    assert!(open(&dir, "0").is_ok());
    assert_eq!(
        refusal(&dir, "1"),
        format!("{SINGLE}: tensor mtp.0.h_proj.weight: expected shape [128, 128], found [64, 256]")
    );
}

/// Progress counts the stage's bytes, and ends at the card's.
#[test]
fn loading_counts_the_stage() {
    let checkpoint = Checkpoint::open_with(&nano_dir("bf16"), Drafting::AUTO).unwrap();
    let mut last = (0, 0);
    let backend = std::sync::Arc::new(CpuBackend::detect());
    let cache = CacheOptions::default();
    Model::load(backend, &checkpoint, Numerics::EXACT, cache, &mut |done, total| last = (done, total))
        .unwrap();
    assert_eq!(last, (checkpoint.card().dense_bytes, checkpoint.card().dense_bytes));
}

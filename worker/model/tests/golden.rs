//! Against the reference's numbers: logits, routes, selected blocks, streams, greedy tokens.

mod common;

use belay_cpu::{CpuBackend, Level};
use belay_model::Numerics;
use common::*;

/// Largest difference of a logit that float noise explains.
const LOGIT_GATE: f32 = 1e-3;
/// The same for residual streams, which are larger.
const STREAM_GATE: f32 = 1e-3;

#[test]
fn logits_of_every_position_equal_the_reference() {
    for case in CASES {
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let backend = CpuBackend::with(level, 2).unwrap();
            let loaded = load_with(&golden_dir(case), backend, Numerics::EXACT);
            let (golden, tensors) = golden(case);
            for sequence in &golden.sequences {
                let found =
                    logits(&loaded, &*loaded.fabric, &sequence.ids(), usize::MAX, &mut Recorder::default());
                let expected = tensors.f32(&format!("{}.logits", sequence.name));
                let difference = largest_difference(&found, &expected);
                println!("{case} {} {level}: max |Δlogit| {difference:.2e}", sequence.name);
                assert!(difference <= LOGIT_GATE, "{case} {} {level}: {difference}", sequence.name);
            }
        }
    }
}

#[test]
fn greedy_tokens_by_cached_decode_equal_the_reference() {
    for case in CASES {
        let loaded = load(&golden_dir(case));
        for sequence in golden(case).0.sequences {
            let found = greedy(&loaded, &sequence.prompt, sequence.greedy.len(), None);
            assert_eq!(found, sequence.greedy, "{case} {}", sequence.name);
        }
    }
}

#[test]
fn routed_experts_and_selected_blocks_equal_the_reference() {
    for case in CASES {
        let loaded = load(&golden_dir(case));
        let (golden, tensors) = golden(case);
        let (mut sets, mut blocks) = (0, 0);
        for sequence in &golden.sequences {
            let name = &sequence.name;
            let mut trace = Recorder::default();
            logits(&loaded, &*loaded.fabric, &sequence.ids(), usize::MAX, &mut trace);
            for layer in 0..loaded.model.config().depth() {
                let expected = tensors.i32(&format!("{name}.router_experts.{layer}")).unwrap();
                assert_eq!(trace.experts[&layer], expected, "{case} {name} layer {layer}");
                sets += expected.len();
                let weights = tensors.f32(&format!("{name}.router_weights.{layer}"));
                let difference = largest_difference(&trace.weights[&layer], &weights);
                assert!(difference < 1e-4, "{case} {name} layer {layer}: weights differ by {difference}");
                blocks += check_blocks(&trace, &tensors, name, layer);
            }
        }
        let indexed = loaded.model.config().layers.iter().any(|kind| kind.has_indexer());
        assert!(sets > 0 && (blocks > 0) == indexed, "{case}: nothing was compared");
        println!("{case}: {sets} routes and {blocks} block choices equal");
    }
}

/// Compares one layer's selection; our rows are index_topk wide, the reference's only as wide as there are blocks.
fn check_blocks(trace: &Recorder, tensors: &Tensors, name: &str, layer: usize) -> usize {
    let tensor = format!("{name}.index_blocks.{layer}");
    let Some(expected) = tensors.i32(&tensor) else { return 0 };
    let shape = tensors.shape(&tensor);
    let (rows, width) = (shape[0], shape[1]);
    let found = &trace.blocks[&layer];
    let k = found.len() / rows;
    for row in 0..rows {
        let (found, expected) = (&found[row * k..][..k], &expected[row * width..][..width]);
        let chosen = |blocks: &[i32]| blocks.iter().copied().filter(|&block| block >= 0).collect::<Vec<_>>();
        assert_eq!(chosen(found), chosen(expected), "{tensor} row {row}");
    }
    expected.iter().filter(|&&block| block >= 0).count()
}

#[test]
fn streams_after_every_block_are_close_to_the_reference() {
    for case in CASES {
        let loaded = load(&golden_dir(case));
        let (golden, tensors) = golden(case);
        let sequence = &golden.sequences[1];
        let mut trace = Recorder::default();
        logits(&loaded, &*loaded.fabric, &sequence.ids(), usize::MAX, &mut trace);
        let found: Vec<f32> = trace.streams.into_values().flatten().collect();
        let difference = largest_difference(&found, &tensors.f32("s1.streams"));
        println!("{case}: max |Δstream| {difference:.2e}");
        assert!(difference <= STREAM_GATE, "{case}: {difference}");
    }
}

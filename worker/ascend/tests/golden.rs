//! The model on simulated NPUs of each generation, against the reference's numbers and the exact engine.
//!
//! Every generation runs in a process of its own: what kind of chip is simulated is settled once for a process.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;
#[path = "../../model/tests/common/mod.rs"]
mod model;

use std::process::Command;
use belay_ascend::{AscendBackend, AscendOptions, Device, DeviceLimits, Products, Runtime};
use belay_model::{CacheOptions, NoTrace, Numerics};
use model::*;

/// One chip of each generation.
const SOCS: [&str; 4] = ["Ascend910B3", "Ascend910_9391", "Ascend950PR_9589", "Ascend950DT_9591"];

/// Says which chip the child is to simulate; absent in the parent.
const SOC: &str = "BELAY_TEST_SOC";

/// Error of a token's logits, root mean square, as a part of theirs: of half the tokens, and of all but a tenth. In bf16 the
/// inputs and results of linears are rounded to 8 bits; where that changes which experts or entries are chosen, as it
/// does in these models of random weights, a token's logits become others.
const TOLERANCES: [(Products, [f64; 2]); 2] =
    [(Products::F32, [1e-5, 1e-5]), (Products::Bf16, [0.02, 0.15])];

fn backend(products: Products) -> AscendBackend {
    let runtime = Runtime::start(common::library()).unwrap();
    let device = Device::open(&runtime, 0, DeviceLimits::default()).unwrap();
    assert_eq!(device.soc(), std::env::var(SOC).unwrap());
    AscendBackend::new(&device, AscendOptions { products, ..AscendOptions::default() }).unwrap()
}

fn load_ascend(dir: &std::path::Path, products: Products) -> Loaded<AscendBackend> {
    load_cached(dir, backend(products), Numerics::EXACT, 0, CacheOptions { memory: 64 << 20, ..CacheOptions::default() })
}

/// Runs a test of this program by name on each chip.
fn on_every_chip(test: &str) {
    let program = std::env::current_exe().unwrap();
    for soc in SOCS {
        let mut child = Command::new(&program);
        child.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        child.env(SOC, soc).env("BELAY_ASCEND_SIM", format!(r#"{{"soc":"{soc}"}}"#));
        let output = child.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{soc}:\n{said}\n{complained}");
        said.lines().filter(|line| line.contains('|')).for_each(|line| println!("{soc}: {line}"));
    }
}

#[test]
fn golden_cases() {
    on_every_chip("golden_cases_on_this_chip");
}

#[test]
#[ignore = "run by golden_cases on each chip"]
fn golden_cases_on_this_chip() {
    for (products, tolerance) in TOLERANCES {
        for case in CASES {
            let loaded = load_ascend(&golden_dir(case), products);
            let (golden, tensors) = golden(case);
            for sequence in &golden.sequences {
                let found = logits(&loaded, &*loaded.fabric, &sequence.ids(), usize::MAX, &mut NoTrace);
                let expected = tensors.f32(&format!("{}.logits", sequence.name));
                let vocabulary = expected.len() / sequence.ids().len();
                let mut errors: Vec<f64> = found
                    .chunks_exact(vocabulary)
                    .zip(expected.chunks_exact(vocabulary))
                    .map(|(found, expected)| relative_error(found, expected))
                    .collect();
                errors.sort_by(f64::total_cmp);
                let [half, most] = [errors.len() / 2, errors.len() * 9 / 10].map(|at| errors[at]);
                println!("| {products:?} | {case} {} | {half:.1e} | {most:.1e} |", sequence.name);
                assert!([half, most].iter().zip(tolerance).all(|(error, most)| *error <= most), "{case}: {errors:?}");
            }
        }
    }
}

fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|value| f64::from(value).powi(2)).sum()
    };
    let error = squares(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
    (error / squares(&mut expected.iter().copied())).sqrt()
}

//! Fused operators are used where they do what the composed path does, and nowhere else.
#![allow(clippy::unwrap_used, reason = "test code")]

mod chips;
mod common;
#[path = "../../model/tests/common/mod.rs"]
mod model;

use belay_ascend::{AscendBackend, AscendOptions, ComputePath, Device, FusedOperators, Generation};
use belay_backend::Backend;
use common::{Sim, some_values};

const OPERATORS: [&str; 2] = ["aclnnSoftplus", "aclnnClippedSwiglu"];

fn backend(device: &Device, fused: FusedOperators) -> AscendBackend {
    AscendBackend::new(device, AscendOptions { fused, ..AscendOptions::default() }).unwrap()
}

/// Both operations on rows of several widths.
fn results(backend: &AscendBackend) -> Vec<f32> {
    let mut found = Vec::new();
    for (seed, len) in [(1, 1), (2, 3 * 96), (3, 2 * 2048), (4, 5 * 1536)] {
        let scaled = |seed| some_values(len, seed).iter().map(|value| 14.0 * value).collect::<Vec<_>>();
        let (mut gate, mut up) = (backend.alloc(len + 7).unwrap(), backend.alloc(len + 7).unwrap());
        backend.write(&mut gate, 0, &scaled(seed)).unwrap();
        backend.write(&mut up, 0, &scaled(seed + 10)).unwrap();
        backend.swiglu(&mut gate, &up, len, 10.0).unwrap();
        backend.sqrt_softplus(&mut up, len).unwrap();
        for buffer in [&gate, &up] {
            let mut values = vec![0.0; len + 7];
            backend.read(buffer, 0, &mut values).unwrap();
            assert!(values[len..].iter().all(|value| *value == 0.0), "what is not asked for stays");
            found.extend_from_slice(&values[..len]);
        }
    }
    found
}

fn paths(backend: &AscendBackend) -> Vec<ComputePath> {
    let choices = backend.choices();
    assert_eq!(choices.iter().map(|choice| choice.operator).collect::<Vec<_>>(), OPERATORS);
    choices.iter().map(|choice| choice.path).collect()
}

#[test]
fn fused_operators_are_chosen_by_what_they_do() {
    chips::on_every_chip("fused_operators_are_chosen_by_what_they_do_on_this_chip");
}

#[test]
#[ignore = "run by fused_operators_are_chosen_by_what_they_do on each chip"]
fn fused_operators_are_chosen_by_what_they_do_on_this_chip() {
    use ComputePath::{Composed, Fused};
    let sim = Sim::take();
    let device = chips::device();
    let plain = backend(&device, FusedOperators::Never);
    assert_eq!(paths(&plain), [Composed; 2]);
    let calls = || OPERATORS.map(|symbol| sim.calls(symbol));
    let expected = results(&plain);
    assert_eq!(calls(), [0; 2], "none is tried");

    let checked = backend(&device, FusedOperators::Checked);
    checked
        .choices()
        .iter()
        .for_each(|choice| println!("| {} | {} | {} |", choice.operator, choice.path, choice.why));
    let has_softplus = matches!(device.chip().generation, Generation::A2 | Generation::A3);
    assert_eq!(paths(&checked), [if has_softplus { Fused } else { Composed }, Fused]);
    if !has_softplus {
        let why = &checked.choices()[0].why;
        assert!(why.contains("561003"), "{why}");
    }
    let tried = calls();
    for (found, expected) in results(&checked).iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} for {expected}");
    }
    let used = calls();
    assert_eq!([used[0] > tried[0], used[1] > tried[1]], [has_softplus, true]);

    // refused when planned, when queued, and in a way that stops the stream
    for (symbol, code) in [
        ("aclnnClippedSwigluGetWorkspaceSize", 561_003),
        ("aclnnClippedSwigluGetWorkspaceSize", 161_002),
        ("aclnnClippedSwiglu", 361_001),
        ("aclnnClippedSwiglu", 507_034),
        ("aclnnClippedSwiglu", 507_015),
    ] {
        sim.fail(symbol, 1, code);
        let careful = backend(&device, FusedOperators::Checked);
        sim.clear();
        let choice = &careful.choices()[1];
        assert_eq!(choice.path, Composed, "{symbol} {code}");
        assert!(choice.why.contains(symbol) && choice.why.contains(&code.to_string()), "{}", choice.why);
        assert_eq!(careful.choices()[0], checked.choices()[0]);
        assert_eq!(careful.lost(), None);
        let found = results(&careful);
        let softplus_is_fused = choice_of_softplus(&careful) == Fused;
        // with softplus composed as well there is nothing fused, so the bits are the same
        if !softplus_is_fused {
            assert_eq!(found, expected);
        }
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} for {expected}");
        }
    }

    // the path to compare with fails: neither is known to be right, and the one that works everywhere is taken
    sim.fail("aclnnSiluGetWorkspaceSize", 1, 561_001);
    let careful = backend(&device, FusedOperators::Checked);
    sim.clear();
    let why = &careful.choices()[1].why;
    assert!(why.starts_with("the path to compare it with failed: aclnnSilu"), "{why}");
    assert_eq!(careful.choices()[1].path, Composed);
}

fn choice_of_softplus(backend: &AscendBackend) -> ComputePath {
    backend.choices()[0].path
}

//! What sampling promises: which tokens can be drawn, how often, and what the draw depends on.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use belay_engine::{SampleError, Sampler, Sampling};
use proptest::prelude::*;

fn greedy() -> Sampling {
    Sampling::greedy()
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    // Few distinct values, so that ties are common.
    prop::collection::vec((-12i8..12).prop_map(|x| f32::from(x) / 3.0), 1..60)
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let min_p = prop_oneof![Just(0.0f32), 0.0f32..=1.0];
    (0.05f32..3.0, 0.01f32..=1.0, 0u32..70, min_p, any::<u64>()).prop_map(
        |(temperature, top_p, top_k, min_p, seed)| Sampling {
            temperature,
            top_p,
            top_k,
            min_p,
            seed,
            ..Sampling::default()
        },
    )
}

/// The definition: probabilities of the tokens that may be drawn, by full sorts in f64.
fn distribution(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let weight = |id: usize| (f64::from(logits[id]) / f64::from(sampling.temperature)).exp();
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let likeliest = weight(ids[0]);
    ids.retain(|&id| weight(id) >= f64::from(sampling.min_p) * likeliest * (1.0 - 1e-12));
    if sampling.top_k > 0 {
        ids.truncate(sampling.top_k as usize);
    }
    let total: f64 = ids.iter().map(|&id| weight(id)).sum();
    let mut mass = 0.0;
    let mut kept = 0;
    for &id in &ids {
        kept += 1;
        mass += weight(id);
        if mass >= f64::from(sampling.top_p) * total * (1.0 - 1e-12) {
            break;
        }
    }
    ids.truncate(kept);
    let total: f64 = ids.iter().map(|&id| weight(id)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for id in ids {
        probabilities[id] = weight(id) / total;
    }
    probabilities
}

proptest! {
    #[test]
    fn greedy_takes_the_highest_logit_and_the_lowest_id_of_equals(logits in logits()) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let expected = logits.iter().position(|&x| x == max).unwrap() as u32;
        prop_assert_eq!(Sampler::default().sample(&logits, &greedy(), 7), Ok(expected));
        let top_1 = Sampling { temperature: 1.5, top_k: 1, ..greedy() };
        prop_assert_eq!(Sampler::default().sample(&logits, &top_1, 7), Ok(expected));
    }

    #[test]
    fn only_tokens_of_the_min_p_top_k_and_top_p_sets_are_drawn(logits in logits(), sampling in sampling()) {
        let allowed = distribution(&logits, &sampling);
        let mut sampler = Sampler::default();
        for index in 0..20 {
            let id = sampler.sample(&logits, &sampling, index).unwrap();
            // A set whose mass meets top_p within rounding may end one token earlier or later.
            let looser = Sampling { top_p: (sampling.top_p + 1e-6).min(1.0), ..sampling.clone() };
            prop_assert!(allowed[id as usize] > 0.0 || distribution(&logits, &looser)[id as usize] > 0.0);
        }
    }

    #[test]
    fn a_draw_depends_on_seed_and_index_only(
        logits in logits(), others in prop::collection::vec(logits(), 0..4), sampling in sampling(), index in 0u32..5000,
    ) {
        let alone = Sampler::default().sample(&logits, &sampling, index);
        let mut busy = Sampler::default();
        for (i, other) in (0u32..).zip(&others) {
            busy.sample(other, &sampling, i).unwrap();
        }
        prop_assert_eq!(busy.sample(&logits, &sampling, index), alone);
    }

    #[test]
    fn a_masked_token_is_never_chosen(logits in logits(), sampling in sampling(), masked in any::<prop::sample::Index>()) {
        let mut logits = logits;
        logits.push(0.0);
        let masked = masked.index(logits.len());
        logits[masked] = f32::NEG_INFINITY;
        for sampling in [sampling, greedy()] {
            prop_assert_ne!(Sampler::default().sample(&logits, &sampling, 0), Ok(masked as u32));
        }
    }
}

/// Pearson's statistic of `draws` over the tokens with a positive probability, and its degrees of freedom.
fn chi_square(draws: &[u32], probabilities: &[f64]) -> (f64, usize) {
    let mut counts = vec![0.0; probabilities.len()];
    for &draw in draws {
        counts[draw as usize] += 1.0;
    }
    let n = draws.len() as f64;
    let cells: Vec<_> = counts.iter().zip(probabilities).filter(|(_, p)| **p > 0.0).collect();
    assert_eq!(cells.iter().map(|(count, _)| **count).sum::<f64>(), n, "a forbidden token was drawn");
    let statistic = cells.iter().map(|(count, p)| (*count - n * *p).powi(2) / (n * *p)).sum();
    (statistic, cells.len() - 1)
}

/// The 99.99 % point of the chi-square distribution, by Wilson and Hilferty's cube.
fn critical(degrees: usize) -> f64 {
    let k = degrees as f64;
    k * (1.0 - 2.0 / (9.0 * k) + 3.719 * (2.0 / (9.0 * k)).sqrt()).powi(3)
}

#[test]
fn draws_have_the_softmax_distribution_along_a_request_and_across_seeds() {
    let logits = [0.0, 1.0, -1.0, 2.0, 0.5, -2.0, 1.5, 1.0, 0.0, -0.5];
    let cases = [
        (1.0, 1.0, 0, 0.0),
        (0.7, 1.0, 0, 0.0),
        (1.0, 0.8, 0, 0.0),
        (1.3, 1.0, 5, 0.0),
        (2.0, 0.9, 6, 0.0),
        (1.0, 1.0, 0, 0.2),
        (1.5, 0.9, 8, 0.1),
    ];
    for (temperature, top_p, top_k, min_p) in cases {
        let sampling = |seed| Sampling { temperature, top_p, top_k, min_p, seed, ..Sampling::default() };
        let probabilities = distribution(&logits, &sampling(0));
        let mut sampler = Sampler::default();
        let along: Vec<u32> =
            (0..20_000).map(|index| sampler.sample(&logits, &sampling(42), index).unwrap()).collect();
        let across: Vec<u32> =
            (0..20_000).map(|seed| sampler.sample(&logits, &sampling(seed), 3).unwrap()).collect();
        for draws in [along, across] {
            let (statistic, degrees) = chi_square(&draws, &probabilities);
            assert!(
                statistic < critical(degrees),
                "chi-square {statistic} with {degrees} degrees at {temperature} {top_p} {top_k} {min_p}"
            );
        }
    }
}

#[test]
fn neighbouring_draws_are_independent() {
    let logits = [0.0; 4];
    let sampling = |seed| Sampling { seed, ..Sampling::default() };
    let mut sampler = Sampler::default();
    let mut draw = |seed, index| sampler.sample(&logits, &sampling(seed), index).unwrap();
    let by_index: Vec<u32> = (0..20_000).map(|i| draw(1, i) * 4 + draw(1, i + 1)).collect();
    let by_seed: Vec<u32> = (0..20_000).map(|s| draw(s, 0) * 4 + draw(s + 1, 0)).collect();
    for pairs in [by_index, by_seed] {
        // Overlapping pairs: the statistic is not exactly chi-square, but a dependence would make it huge.
        let (statistic, degrees) = chi_square(&pairs, &[1.0 / 16.0; 16]);
        assert!(statistic < 2.0 * critical(degrees), "{statistic}");
    }
}

#[test]
fn a_tiny_temperature_is_greedy_and_never_overflows() {
    let logits = [-3.0e38, 3.0e38, 3.0e38, 0.0];
    let sampling = Sampling { temperature: 1e-30, top_p: 0.5, ..greedy() };
    assert_eq!(Sampler::default().sample(&logits, &sampling, 0), Ok(1));
}

#[test]
fn broken_logits_are_an_error_and_not_a_token() {
    let mut sampler = Sampler::default();
    assert_eq!(sampler.sample(&[0.0, f32::NAN], &greedy(), 0), Err(SampleError::NotFinite { id: 1 }));
    assert_eq!(sampler.sample(&[f32::INFINITY, 0.0], &greedy(), 0), Err(SampleError::NotFinite { id: 0 }));
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3], &greedy(), 0), Err(SampleError::NoCandidate));
    assert_eq!(sampler.sample(&[], &greedy(), 0), Err(SampleError::NoCandidate));
}

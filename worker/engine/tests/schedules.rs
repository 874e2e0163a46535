//! Random schedules: whatever else runs, in pieces, preempted, found in the cache, guessed ahead, held to a grammar,
//! cancelled beside it or resumed, a request gets exactly what it gets alone; and all memory comes back.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

mod toy;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use belay_engine::{Constraint, EngineConfig, Grammar, Request, Sampling, Stop};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use toy::{BLOCK, CONTEXT, Toy, config, engine_of, eventually, is_empty, reference, rest_of, submit};

#[derive(Clone, Debug)]
struct Plan {
    pages: usize,
    max_drafts: usize,
    right: u64,
    config: EngineConfig,
    /// Requests that come together; the next wave comes when the first of this one has ended.
    waves: Vec<Vec<Ask>>,
}

#[derive(Clone, Debug)]
struct Ask {
    request: Request,
    /// Goes on behind this part of the output.
    resume: Option<prop::sample::Index>,
    /// Cancelled after so many events.
    patience: Option<usize>,
}

/// Three texts that prompts begin with, so that they are found in the cache.
fn prompts() -> impl Strategy<Value = Vec<u32>> {
    let own = prop::collection::vec(0u32..2048, 0..30);
    (0u32..3, 0usize..70, own).prop_map(|(text, shared, own)| {
        let begin = (0..shared as u32).map(|place| (text * 701 + place * 13) % 2048);
        let mut prompt: Vec<u32> = begin.chain(own).collect();
        prompt.push(text);
        prompt
    })
}

fn samplings() -> impl Strategy<Value = Sampling> {
    let greedy = Just(Sampling::greedy());
    let drawn = (0.2f32..2.0, 0.5f32..=1.0, 0u32..5, any::<u64>(), prop_oneof![Just(0.0f32), -1.0f32..1.0]);
    let drawn = drawn.prop_map(|(temperature, top_p, top_k, seed, presence_penalty)| Sampling {
        temperature,
        top_p,
        top_k,
        seed,
        presence_penalty,
        ..Sampling::default()
    });
    prop_oneof![greedy, drawn]
}

fn asks() -> impl Strategy<Value = Ask> {
    let stop = (prop::option::of(1u32..60), prop::collection::vec("[a-e]{1,2}", 0..2), any::<bool>());
    let stop = stop.prop_map(|(max_tokens, strings, ignore_eos)| Stop {
        max_tokens,
        strings,
        ignore_eos,
        ..Stop::default()
    });
    let rare = |chance: f64| prop::option::weighted(chance, 0u32..3);
    let constraint = prop::option::weighted(0.15, 1usize..40);
    let constraint = constraint.prop_map(|least| {
        least
            .map(|least| Constraint { grammar: Grammar::Regex(format!("[a-z ]{{{least},40}}")), after: None })
    });
    let all = (prompts(), samplings(), stop, -1i32..2, rare(0.2), rare(0.1), any::<bool>(), constraint);
    let request =
        all.prop_map(|(prompt, sampling, stop, priority, logprobs, prompt_logprobs, salted, constraint)| {
            Request {
                constraint,
                prompt,
                sampling,
                stop,
                priority,
                logprobs,
                prompt_logprobs,
                cache_salt: if salted { "s".into() } else { String::new() },
                ..Request::default()
            }
        });
    let resume = prop::option::weighted(0.2, any::<prop::sample::Index>());
    (request, resume, prop::option::weighted(0.2, 0usize..6)).prop_map(|(request, resume, patience)| Ask {
        request,
        resume,
        patience,
    })
}

fn plans() -> impl Strategy<Value = Plan> {
    let config = (2usize..8, 1usize..40, 0usize..4, any::<bool>()).prop_map(
        |(max_sessions, step_tokens, draft_tokens, prefix_cache)| EngineConfig {
            max_sessions,
            step_tokens,
            draft_tokens,
            prefix_cache,
            ..config()
        },
    );
    let waves = prop::collection::vec(prop::collection::vec(asks(), 1..6), 1..4);
    (CONTEXT / BLOCK..5 * CONTEXT / BLOCK / 2, 0usize..4, 0u64..9, config, waves).prop_map(
        |(pages, max_drafts, right, config, waves)| Plan { pages, max_drafts, right, config, waves },
    )
}

/// How much of what the test is about did happen.
#[derive(Debug, Default)]
struct Seen {
    preemptions: u64,
    hits: u64,
    accepted: u64,
    refused: u64,
    resumed: usize,
    constrained: usize,
    cancelled: usize,
}

fn carry_out(plan: &Plan, seen: &mut Seen) {
    let model =
        Toy { controls: Arc::default(), pages: plan.pages, max_drafts: plan.max_drafts, right: plan.right };
    let (engine, controls) = engine_of(model, plan.config.clone());
    let mut heard = Vec::new();
    for wave in &plan.waves {
        let mut first = true;
        for Ask { request, resume, patience } in wave {
            if let Some(patience) = *patience {
                seen.cancelled += 1;
                let mut left = patience;
                let sink = move |_| {
                    left = left.saturating_sub(1);
                    left > 0
                };
                let key = engine.submit(request.clone(), Box::new(sink)).unwrap();
                if patience == 0 {
                    engine.cancel(key);
                }
                continue;
            }
            let whole = reference(request);
            let cut = resume.as_ref().map_or(0, |cut| cut.index(whole.ids.len() + 1));
            seen.resumed += usize::from(cut > 0);
            seen.constrained += usize::from(request.constraint.is_some());
            let listener =
                submit(&engine, Request { resume: whole.ids[..cut].to_vec(), ..request.clone() }).unwrap();
            if std::mem::take(&mut first) && wave.len() > 2 {
                assert_eq!(listener.hear(), rest_of(&whole, cut), "{request:?}");
            } else {
                heard.push((listener, rest_of(&whole, cut), request));
            }
        }
    }
    for (listener, expected, request) in heard {
        assert_eq!(listener.hear(), expected, "{request:?}");
    }
    eventually("all places and states are given back", || is_empty(&engine, &controls));
    let stats = engine.stats();
    seen.preemptions += stats.preemptions;
    seen.hits += stats.prefix_hit_tokens;
    seen.accepted += stats.accepted.iter().sum::<u64>();
    seen.refused += stats.drafted.iter().sum::<u64>() - stats.accepted.iter().sum::<u64>();
    assert_eq!(stats.failed_steps, 0);
    engine.clear_prefix_cache();
    eventually("the cache's memory is given back", || controls.pages.load(Ordering::SeqCst) == 0);
    assert!(plan.config.prefix_cache || stats.prefix_query_tokens == 0);
}

#[test]
fn every_request_gets_what_it_gets_alone_and_all_memory_comes_back() {
    let seed = match std::env::var("BELAY_SEED") {
        Ok(seed) => seed.parse().expect("BELAY_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
    };
    println!("BELAY_SEED={seed}");
    let config = ProptestConfig {
        cases: 96,
        max_shrink_iters: 200,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    };
    let seen = std::cell::RefCell::new(Seen::default());
    let result = TestRunner::new(config).run(&plans(), |plan| {
        carry_out(&plan, &mut seen.borrow_mut());
        Ok(())
    });
    let seen = seen.into_inner();
    println!("{seen:?}");
    if let Err(failure) = result {
        panic!("BELAY_SEED={seed}: {failure}");
    }
    let Seen { preemptions, hits, accepted, refused, resumed, constrained, cancelled } = seen;
    assert!(
        preemptions > 10
            && hits > 200
            && accepted > 50
            && refused > 50
            && resumed > 10
            && cancelled > 10
            && constrained > 10,
        "the schedules are too tame"
    );
}

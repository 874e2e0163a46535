//! What the engine promises, with a model of pure maths.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

mod toy;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use belay_engine::{EngineConfig, Event, FailureKind, FinishReason, Request, Sampling, Stop, SubmitError};
use proptest::prelude::*;
use toy::{
    BLOCK, CONTEXT, Fault, Toy, config, engine, engine_of, eventually, is_empty, reference, request, run,
    submit, toy,
};

fn requests() -> impl Strategy<Value = Request> {
    let sampling = (prop_oneof![Just(0.0f32), 0.2f32..2.0], 0.5f32..=1.0, 0u32..5, any::<u64>()).prop_map(
        |(temperature, top_p, top_k, seed)| Sampling {
            temperature,
            top_p,
            top_k,
            seed,
            ..Sampling::default()
        },
    );
    let stop = (
        prop::option::of(1u32..60),
        prop::collection::vec("[a-e]{1,2}", 0..3),
        prop::collection::vec(0u32..2048, 0..20),
        any::<bool>(),
    )
        .prop_map(|(max_tokens, strings, ids, ignore_eos)| Stop {
            max_tokens,
            strings,
            ids,
            ignore_eos,
            ..Stop::default()
        });
    (prop::collection::vec(0u32..2048, 1..CONTEXT), sampling, stop).prop_map(|(prompt, sampling, stop)| {
        Request { id: "r".into(), prompt, sampling, stop, ..Request::default() }
    })
}

fn configs() -> impl Strategy<Value = EngineConfig> {
    (1usize..9, 1usize..40).prop_map(|(max_sessions, step_tokens)| EngineConfig {
        max_sessions,
        step_tokens,
        ..config()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_request_gets_the_same_tokens_whatever_else_runs(
        requests in prop::collection::vec(requests(), 1..12), config in configs(), sequences in 1usize..6,
    ) {
        let pages = sequences * CONTEXT / BLOCK;
        let (engine, controls) = engine_of(Toy { pages, ..toy() }, config.clone());
        let listeners: Vec<_> = requests.iter().map(|r| submit(&engine, r.clone()).unwrap()).collect();
        for (listener, request) in listeners.into_iter().zip(&requests) {
            prop_assert_eq!(listener.hear(), reference(request));
        }
        let (rows, sequences) = *controls.largest.lock().unwrap();
        prop_assert!(sequences <= config.max_sessions);
        prop_assert!(rows <= config.step_tokens.max(config.max_sessions + config.step_tokens / 4 + 1));
        eventually("all places and states are given back", || is_empty(&engine, &controls));
    }

    #[test]
    fn a_request_that_moves_to_another_worker_goes_on_as_if_it_had_not(
        request in requests(), cut in any::<prop::sample::Index>(),
    ) {
        let whole = reference(&request);
        let cut = cut.index(whole.ids.len() + 1);
        let (engine, _) = engine(config());
        let rest = run(&engine, Request { resume: whole.ids[..cut].to_vec(), ..request });
        prop_assert_eq!(&rest.ids, &whole.ids[cut..]);
        prop_assert_eq!(&rest.texts, &whole.texts[cut..]);
        prop_assert_eq!(rest.end, whole.end);
    }

    #[test]
    fn cancelling_some_changes_nothing_for_the_others(
        requests in prop::collection::vec((requests(), prop::option::of(0usize..5)), 1..10),
    ) {
        let (engine, controls) = engine(config());
        let mut kept = Vec::new();
        for (request, patience) in &requests {
            match patience {
                None => kept.push((submit(&engine, request.clone()).unwrap(), request)),
                Some(patience) => {
                    let mut left = *patience;
                    let sink = move |_| {
                        left = left.saturating_sub(1);
                        left > 0
                    };
                    let key = engine.submit(request.clone(), Box::new(sink)).unwrap();
                    if *patience == 0 {
                        engine.cancel(key);
                    }
                }
            }
        }
        for (listener, request) in kept {
            prop_assert_eq!(listener.hear(), reference(request));
        }
        eventually("cancelled requests are gone", || is_empty(&engine, &controls));
    }
}

#[test]
fn a_request_ends_at_the_end_of_the_context() {
    let (engine, _) = engine(config());
    let stop = Stop { max_tokens: None, ignore_eos: true, ..Stop::default() };
    let heard = run(&engine, Request { stop, ..request(&[5; CONTEXT - 3], 1) });
    assert_eq!(heard.ids.len(), 3);
    assert_eq!(heard.reason(), Some(FinishReason::Length));
}

#[test]
fn a_prompt_of_one_token_and_one_that_fills_the_context_both_run() {
    let (engine, _) = engine(config());
    for prompt in [vec![7], vec![7; CONTEXT - 1]] {
        let request = request(&prompt, 1);
        assert_eq!(run(&engine, request.clone()), reference(&request));
    }
}

#[test]
fn refusals_name_the_field_and_the_numbers() {
    let (engine, _) = engine(config());
    let refusal = |change: fn(&mut Request)| {
        let mut request = request(&[1, 2, 3], 5);
        change(&mut request);
        submit(&engine, request).err().expect("a refusal").to_string()
    };
    assert_eq!(refusal(|r| r.prompt.clear()), "prompt: must not be empty");
    assert_eq!(
        refusal(|r| r.prompt = vec![1; 120]),
        "prompt: 120 tokens do not fit: the context holds 120, at least one of them for the output"
    );
    assert_eq!(refusal(|r| r.prompt[2] = 2048), "prompt: token 2 is 2048, but the vocabulary ends at 2047");
    assert_eq!(
        refusal(|r| r.resume = vec![1; 118]),
        "resume_ids: 118 tokens after a prompt of 3 do not fit into a context of 120"
    );
    assert_eq!(
        refusal(|r| r.resume = vec![5, u32::MAX]),
        "resume_ids: token 1 is 4294967295, but the vocabulary ends at 2047"
    );
    assert_eq!(refusal(|r| r.resume = vec![5, 1, 5]), "resume_ids: token 1 ends the output, but more follow");
    assert_eq!(refusal(|r| r.stop.strings = vec!["a".into(), String::new()]), "stop: string 1 is empty");
    assert_eq!(
        refusal(|r| r.stop.ids = vec![9999]),
        "stop_ids: token 0 is 9999, but the vocabulary ends at 2047"
    );
    assert_eq!(
        refusal(|r| r.sampling.temperature = -0.5),
        "temperature: must be a number from 0 on, found -0.5"
    );
    assert_eq!(
        refusal(|r| r.sampling.temperature = f32::NAN),
        "temperature: must be a number from 0 on, found NaN"
    );
    assert_eq!(refusal(|r| r.sampling.top_p = 0.0), "top_p: must be greater than 0 and at most 1, found 0");
    assert_eq!(refusal(|r| r.sampling.top_p = 1.5), "top_p: must be greater than 0 and at most 1, found 1.5");
    assert_eq!(engine.stats().queued, 0);
}

#[test]
fn memory_bounds_the_context_and_a_big_request_waits_for_room() {
    let (engine, controls) = engine_of(Toy { pages: 6, ..toy() }, config());
    assert_eq!(engine.max_context(), 48);
    assert_eq!(
        submit(&engine, request(&[1; 48], 1)).err().expect("a refusal").to_string(),
        "prompt: 48 tokens do not fit: the context holds 48, at least one of them for the output"
    );
    assert_eq!(run(&engine, request(&[1; 38], 99)).ids.len(), 10);
    let gate = controls.gate.lock().unwrap();
    let first = submit(&engine, request(&[1; 20], 10)).unwrap();
    let second = submit(&engine, request(&[2; 20], 10)).unwrap();
    eventually("one runs and one waits", || {
        let stats = engine.stats();
        (stats.running, stats.queued) == (1, 1)
    });
    drop(gate);
    first.hear();
    second.hear();
    assert_eq!(controls.largest.lock().unwrap().1, 1, "never both at once");
}

#[test]
fn a_full_queue_refuses_and_loses_nobody() {
    let (engine, controls) = engine(EngineConfig { max_sessions: 1, max_queued: 2, ..config() });
    let gate = controls.gate.lock().unwrap();
    let running = submit(&engine, request(&[1], 3)).unwrap();
    eventually("the first runs", || engine.stats().running == 1);
    let queued: Vec<_> = (2..4).map(|id| submit(&engine, request(&[id], 3)).unwrap()).collect();
    assert_eq!(
        submit(&engine, request(&[9], 3)).err(),
        Some(SubmitError::Overloaded { queued: 2, retry_after: Duration::from_secs(1) })
    );
    drop(gate);
    assert_eq!(running.hear(), reference(&request(&[1], 3)));
    for (listener, id) in queued.into_iter().zip(2..) {
        assert_eq!(listener.hear(), reference(&request(&[id], 3)));
    }
    assert_eq!(run(&engine, request(&[9], 3)), reference(&request(&[9], 3)));
}

#[test]
fn draining_refuses_new_requests_and_finishes_old_ones() {
    let (engine, controls) = engine(config());
    let gate = controls.gate.lock().unwrap();
    let old = submit(&engine, request(&[1], 9)).unwrap();
    engine.drain(true);
    assert_eq!(submit(&engine, request(&[2], 1)).err(), Some(SubmitError::Unavailable("draining".into())));
    let stats = engine.stats();
    assert_eq!((stats.running + stats.queued, stats.draining), (1, true));
    drop(gate);
    assert_eq!(old.hear(), reference(&request(&[1], 9)));
    engine.drain(false);
    assert_eq!(run(&engine, request(&[2], 1)), reference(&request(&[2], 1)));
}

#[test]
fn shutdown_ends_every_request_with_a_retryable_failure() {
    let (engine, controls) = engine(EngineConfig { max_sessions: 2, ..config() });
    let engine = Arc::new(engine);
    let gate = controls.gate.lock().unwrap();
    // The first token of the first request shuts the engine down: the command is there before the next step.
    let from_sink = Arc::clone(&engine);
    let sink = move |_| {
        from_sink.shutdown();
        true
    };
    engine.submit(request(&[9], 90), Box::new(sink)).unwrap();
    let listeners: Vec<_> = (1..6).map(|id| submit(&engine, request(&[id; 20], 90)).unwrap()).collect();
    drop(gate);
    for listener in listeners {
        assert_eq!(listener.hear().failure(), ("the engine has stopped", true));
    }
    engine.shutdown();
    assert_eq!(controls.states.load(Ordering::SeqCst), 0);
    assert!(matches!(submit(&engine, request(&[1], 1)).err(), Some(SubmitError::Unavailable(_))));
    assert_eq!(engine.stats().stopped.as_deref(), Some("shut down"));
    engine.shutdown();
}

#[test]
fn a_failed_step_ends_its_requests_and_the_engine_goes_on() {
    let cases = [
        (Fault::Error { retryable: true }, "worker 3 is not reachable", true),
        (Fault::Error { retryable: false }, "worker 3 is not reachable", false),
        (Fault::Panic, "the step panicked: index out of bounds", true),
        (Fault::WrongSize, "the step gave 4097 logits, expected 4096", true),
        (Fault::NaN, "token 0: the logit of token 0 is not a number or infinite", false),
    ];
    for (fault, message, retryable) in cases {
        let (engine, controls) = engine(config());
        let gate = controls.gate.lock().unwrap();
        // The first is alone in its step, held at the gate; the next two share the step that fails.
        let first = submit(&engine, request(&[1], 1)).unwrap();
        eventually("the first runs", || engine.stats().running == 1);
        *controls.faults.lock().unwrap() = [None, Some(fault)].into();
        let lost: Vec<_> = (2..4).map(|id| submit(&engine, request(&[id], 20)).unwrap()).collect();
        drop(gate);
        assert_eq!(first.hear(), reference(&request(&[1], 1)));
        for listener in lost {
            let heard = listener.hear();
            let (found, found_retryable) = heard.failure();
            assert_eq!(found_retryable, retryable, "{fault:?}");
            assert!(found == message || fault == Fault::NaN && found.contains("not a number"), "{found}");
        }
        assert_eq!(run(&engine, request(&[5], 9)), reference(&request(&[5], 9)), "{fault:?}");
        assert_eq!(engine.stats().failed_steps, u64::from(fault != Fault::NaN));
        eventually("lost states are dropped", || controls.states.load(Ordering::SeqCst) == 0);
    }
}

#[test]
fn a_request_without_memory_for_its_state_fails_alone() {
    let (engine, controls) = engine(config());
    controls.out_of_memory.store(true, Ordering::SeqCst);
    assert_eq!(run(&engine, request(&[1], 9)).failure(), ("no memory for a state", true));
    assert_eq!(run(&engine, request(&[1], 9)), reference(&request(&[1], 9)));
}

#[test]
fn a_sink_that_panics_takes_nobody_along() {
    let (engine, _) = engine(config());
    engine.submit(request(&[1], 9), Box::new(|_| panic!("a bug of the caller's"))).unwrap();
    assert_eq!(run(&engine, request(&[2], 9)), reference(&request(&[2], 9)));
    eventually("its place is given back", || engine.stats().running == 0);
}

#[test]
fn a_panic_outside_a_step_ends_every_request_and_the_engine_says_why() {
    let (engine, controls) = engine(config());
    let gate = controls.gate.lock().unwrap();
    let running = submit(&engine, request(&[1], 90)).unwrap();
    eventually("the first runs", || engine.stats().running == 1);
    controls.broken.store(true, Ordering::SeqCst);
    let queued = submit(&engine, request(&[2], 9)).unwrap();
    drop(gate);
    for listener in [running, queued] {
        assert_eq!(listener.hear().failure(), ("the engine has stopped", true));
    }
    let why = "the step loop panicked: a bug of the engine's";
    assert_eq!(engine.stats().stopped.as_deref(), Some(why));
    let refusal = submit(&engine, request(&[3], 9)).err();
    assert_eq!(refusal, Some(SubmitError::Unavailable(format!("the engine has stopped: {why}"))));
    eventually("places and states are given back", || {
        let stats = engine.stats();
        stats.running + stats.queued + controls.states.load(Ordering::SeqCst) == 0
    });
}

#[test]
fn whoever_ends_or_is_cancelled_gives_back_place_and_memory() {
    let (engine, controls) = engine(EngineConfig { max_sessions: 1, max_queued: 1, ..config() });
    for _ in 0..3 {
        let gate = controls.gate.lock().unwrap();
        let keep = |_| true;
        let running = engine.submit(request(&[1], 90), Box::new(keep)).unwrap();
        eventually("the first runs", || engine.stats().running == 1);
        let queued = engine.submit(request(&[2], 90), Box::new(keep)).unwrap();
        assert_eq!(engine.stats().queued, 1);
        engine.cancel(running);
        engine.cancel(queued);
        drop(gate);
        eventually("cancelled ones leave nothing behind", || is_empty(&engine, &controls));
        assert_eq!(run(&engine, request(&[3], 9)), reference(&request(&[3], 9)));
        eventually("those that end leave nothing behind", || is_empty(&engine, &controls));
    }
}

#[test]
fn a_cancelled_request_hears_so_once() {
    let (engine, controls) = engine(EngineConfig { max_sessions: 1, ..config() });
    let gate = controls.gate.lock().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let sink = |sender: std::sync::mpsc::Sender<Event>| Box::new(move |event| sender.send(event).is_ok());
    let running = engine.submit(request(&[1], 9), sink(sender.clone())).unwrap();
    eventually("the first runs", || engine.stats().running == 1);
    let queued = engine.submit(request(&[2], 9), sink(sender)).unwrap();
    engine.cancel(queued);
    engine.cancel(running);
    engine.cancel(queued);
    drop(gate);
    let events: Vec<Event> = receiver.iter().collect();
    let failures = events.iter().filter(|event| {
        **event == Event::Failed { message: "cancelled".into(), kind: FailureKind::Cancelled }
    });
    assert_eq!(failures.count(), 2, "{events:?}");
}

#[test]
fn tokens_are_counted() {
    for (prefix_cache, fed_again) in [(false, 33), (true, 1)] {
        let (engine, _) = engine(EngineConfig { prefix_cache, ..config() });
        let whole = request(&[1; 30], 7);
        run(&engine, whole.clone());
        let resume = reference(&whole).ids[..3].to_vec();
        run(&engine, Request { resume, ..whole });
        let stats = engine.stats();
        assert_eq!(stats.prefilled_tokens, 30 + fed_again);
        assert_eq!(stats.generated_tokens, 7 + 4);
    }
}

//! Who runs when: priorities, fairness, deadlines, memory; what the prefix cache and guesses save; what observers hear.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

mod toy;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use belay_engine::{
    End, Engine, EngineConfig, Event, FailureKind, FinishReason, Observer, Request, RequestReport,
    StepReport, Stop,
};
use toy::{
    BLOCK, CONTEXT, Controls, Fault, PAGE_BYTES, Toy, config, engine, engine_of, eventually, is_empty,
    reference, request, run, submit, tokenizer, toy,
};

/// A prompt of `len` tokens that begins with `name`, and of which nothing is in another one.
fn prompt(name: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|place| (name * 97 + place) % 2048).collect()
}

/// So many tokens, whatever they are.
fn exactly(prompt: &[u32], tokens: u32) -> Request {
    let stop = Stop { max_tokens: Some(tokens), ignore_eos: true, ..Stop::default() };
    Request { stop, ..request(prompt, 1) }
}

/// Notes everything.
#[derive(Default)]
struct Notes {
    steps: Mutex<Vec<StepReport>>,
    requests: Mutex<Vec<RequestReport>>,
    gaps: Mutex<Vec<Duration>>,
}

impl Observer for Notes {
    fn step(&self, report: &StepReport) {
        self.steps.lock().unwrap().push(*report);
    }

    fn token(&self, gap: Duration) {
        self.gaps.lock().unwrap().push(gap);
    }

    fn finished(&self, report: &RequestReport) {
        self.requests.lock().unwrap().push(report.clone());
    }
}

fn observed(toy: Toy, config: EngineConfig) -> (Engine, Arc<Controls>, Arc<Notes>) {
    let (controls, notes) = (toy.controls.clone(), Arc::<Notes>::default());
    let engine = Engine::start_observed(toy, tokenizer(), config, notes.clone()).unwrap();
    (engine, controls, notes)
}

/// Submits all while nothing moves, in order; returns their names in the order in which they ended.
fn order_of_ends(
    engine: &Engine,
    controls: &Controls,
    requests: &[(&'static str, Request)],
) -> Vec<&'static str> {
    let ended = Arc::new(Mutex::new(Vec::new()));
    let gate = controls.gate.lock().unwrap();
    let blocker = submit(engine, Request { priority: i32::MIN, ..exactly(&[2047], 1) }).unwrap();
    eventually("the first runs", || engine.stats().running == 1);
    for (name, request) in requests {
        let (ended, name) = (ended.clone(), *name);
        let sink = move |event| {
            if matches!(event, Event::Finished { .. }) {
                ended.lock().unwrap().push(name);
            }
            true
        };
        engine.submit(request.clone(), Box::new(sink)).unwrap();
    }
    drop(gate);
    blocker.hear();
    eventually("all have ended", || ended.lock().unwrap().len() == requests.len());
    Arc::into_inner(ended).map_or_else(Vec::new, |ended| ended.into_inner().unwrap())
}

#[test]
fn priority_comes_first_then_arrival() {
    let (engine, controls) = engine(EngineConfig { max_sessions: 1, ..config() });
    let with = |priority| Request { priority, ..exactly(&[(priority + 9) as u32], 3) };
    let requests = [("late", with(2)), ("first", with(0)), ("second", with(0)), ("urgent", with(-1))];
    let order = order_of_ends(&engine, &controls, &requests);
    assert_eq!(order, ["urgent", "first", "second", "late"]);
}

#[test]
fn an_urgent_request_takes_the_place_of_another_which_then_goes_on_as_if_nothing_had_been() {
    let (engine, controls) = engine(EngineConfig { max_sessions: 1, ..config() });
    let slow = Request { priority: 1, ..exactly(&prompt(1, 20), 50) };
    let gate = controls.gate.lock().unwrap();
    let listener = submit(&engine, slow.clone()).unwrap();
    eventually("it runs", || engine.stats().running == 1);
    let equal = submit(&engine, Request { priority: 1, ..exactly(&[5], 3) }).unwrap();
    let urgent = submit(&engine, exactly(&[6], 3)).unwrap();
    drop(gate);
    assert_eq!(urgent.hear(), reference(&exactly(&[6], 3)));
    assert_eq!(listener.hear(), reference(&slow));
    equal.hear();
    assert_eq!(engine.stats().preemptions, 1, "one of the same priority waits");
}

#[test]
fn a_long_prompt_delays_no_stream_by_more_than_one_bounded_step_and_a_short_one_overtakes_it() {
    let (engine, controls) = engine(config());
    let gate = controls.gate.lock().unwrap();
    let stream = submit(&engine, exactly(&[1], 60)).unwrap();
    eventually("it runs", || engine.stats().running == 1);
    let ended = Arc::new(Mutex::new(Vec::new()));
    for (name, len) in [(2, 100), (3, 90), (4, 4)] {
        let ended = ended.clone();
        let sink = move |event| {
            if matches!(event, Event::Tokens { .. }) {
                ended.lock().unwrap().push(name);
            }
            true
        };
        engine.submit(exactly(&prompt(name, len), 1), Box::new(sink)).unwrap();
    }
    drop(gate);
    stream.hear();
    eventually("all have ended", || ended.lock().unwrap().len() == 3);
    assert_eq!(*ended.lock().unwrap(), [4, 2, 3]);
    let steps = controls.steps.lock().unwrap();
    for step in &steps[..60] {
        assert!(step.contains(&(1, 1)), "the stream is in every step: {step:?}");
        assert!(step.iter().map(|(_, rows)| rows).sum::<usize>() <= config().step_tokens);
    }
    assert_eq!(controls.largest.lock().unwrap().0, config().step_tokens, "no place in a step is wasted");
}

#[test]
fn a_deadline_ends_a_request_wherever_it_is() {
    let (engine, controls) = engine(EngineConfig { max_sessions: 1, ..config() });
    let gate = controls.gate.lock().unwrap();
    let soon = Some(Instant::now() + Duration::from_millis(100));
    let [running, waiting] = [1, 2].map(|id| {
        let listener = submit(&engine, Request { deadline: soon, ..exactly(&[id], 90) }).unwrap();
        eventually("the first runs", || engine.stats().running == 1);
        listener
    });
    let patient = Request { deadline: Some(Instant::now() + Duration::from_secs(600)), ..exactly(&[3], 9) };
    let late = submit(&engine, patient.clone()).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    drop(gate);
    for listener in [running, waiting] {
        let end =
            Event::Failed { message: "the deadline has passed".into(), kind: FailureKind::DeadlineExceeded };
        assert_eq!(listener.hear().end, Some(end));
    }
    assert_eq!(late.hear(), reference(&patient));
    eventually("nothing is left", || is_empty(&engine, &controls));
}

#[test]
fn under_pressure_the_lowest_rank_gives_way_and_all_get_their_tokens() {
    let pages = 3 * CONTEXT / BLOCK / 2;
    for priorities in [[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 1, 0]] {
        let (engine, controls, notes) = observed(Toy { pages, ..toy() }, config());
        let requests: Vec<Request> = (0..3)
            .map(|id| Request {
                id: id.to_string(),
                priority: priorities[id as usize],
                ..exactly(&prompt(id, 30), 80)
            })
            .collect();
        let gate = controls.gate.lock().unwrap();
        let blocker = submit(&engine, exactly(&[2047], 1)).unwrap();
        let listeners: Vec<_> = requests.iter().map(|r| submit(&engine, r.clone()).unwrap()).collect();
        drop(gate);
        blocker.hear();
        for (listener, request) in listeners.into_iter().zip(&requests) {
            assert_eq!(listener.hear(), reference(request));
        }
        let mut ranks = [0, 1, 2];
        ranks.sort_by_key(|&id: &usize| (priorities[id], id));
        let reports = notes.requests.lock().unwrap();
        let preempted = |id: usize| {
            reports.iter().find(|report| report.id == id.to_string()).expect("a report").preemptions
        };
        assert_eq!(preempted(ranks[0]), 0, "{priorities:?}");
        assert!(preempted(ranks[2]) > 0, "{priorities:?}");
        assert_eq!(engine.stats().preemptions as u32, (0..3).map(preempted).sum::<u32>());
        drop(reports);
        eventually("nothing is left", || is_empty(&engine, &controls));
    }
}

#[test]
fn the_cache_gives_way_before_any_request_does() {
    let pages = CONTEXT / BLOCK + 5;
    let (engine, controls) = engine_of(Toy { pages, ..toy() }, config());
    for name in 0..4 {
        run(&engine, exactly(&prompt(name, 30), 20));
    }
    eventually("the cache holds the states of several", || {
        engine.stats().prefix_cache_bytes > pages * PAGE_BYTES / 2
    });
    let gate = controls.gate.lock().unwrap();
    let large = submit(&engine, exactly(&prompt(9, 50), 69)).unwrap();
    let small = submit(&engine, exactly(&prompt(8, 8), 20)).unwrap();
    drop(gate);
    assert_eq!(large.hear(), reference(&exactly(&prompt(9, 50), 69)));
    assert_eq!(small.hear(), reference(&exactly(&prompt(8, 8), 20)));
    assert_eq!(engine.stats().preemptions, 0);
    assert_eq!(run(&engine, exactly(&prompt(0, 30), 1)).cached, 0, "it had to go");
    let turn = [prompt(9, 50), reference(&exactly(&prompt(9, 50), 69)).ids].concat();
    assert_eq!(run(&engine, exactly(&turn, 1)).cached, 112, "the newest was kept");
}

#[test]
fn the_same_beginning_is_fed_once() {
    let (engine, controls) = engine(config());
    let first = run(&engine, exactly(&prompt(1, 45), 30));
    assert_eq!(first.cached, 0);
    let cached = |request: Request| {
        let heard = run(&engine, request.clone());
        assert_eq!(heard, reference(&request));
        heard.cached
    };
    assert_eq!(cached(exactly(&prompt(1, 45), 30)), 40, "the last whole block of the prompt");
    assert_eq!(cached(exactly(&prompt(1, 40), 2)), 32, "one token is always fed");
    assert_eq!(cached(exactly(&prompt(1, 41), 2)), 40);
    let mut parts = prompt(1, 20);
    parts.extend(prompt(7, 20));
    assert_eq!(cached(exactly(&parts, 2)), 16, "a cut in the middle of a block");
    let turn = [prompt(1, 45), first.ids, prompt(5, 10)].concat();
    assert_eq!(cached(exactly(&turn, 2)), 72, "the next turn finds the output too");
    assert_eq!(cached(Request { cache_salt: "mine".into(), ..exactly(&prompt(1, 45), 2) }), 0);
    assert_eq!(cached(Request { cache_salt: "mine".into(), ..exactly(&prompt(1, 45), 2) }), 40);
    assert_eq!(
        cached(Request { prompt_logprobs: Some(1), ..exactly(&prompt(1, 45), 2) }),
        0,
        "wants each row"
    );
    let stats = engine.stats();
    assert_eq!(stats.prefix_hit_tokens, 40 + 32 + 40 + 16 + 72 + 40);
    let fed: usize = controls.steps.lock().unwrap().iter().flatten().map(|(_, rows)| rows).sum();
    assert_eq!(fed as u64, stats.prefilled_tokens + stats.generated_tokens - 9, "nothing is fed twice");
    engine.clear_prefix_cache();
    eventually("it is forgotten", || controls.pages.load(Ordering::SeqCst) == 0);
    assert_eq!(cached(exactly(&prompt(1, 45), 2)), 0);

    let (without, controls) = toy::engine(EngineConfig { prefix_cache: false, ..config() });
    for _ in 0..2 {
        assert_eq!(run(&without, exactly(&prompt(1, 45), 30)).cached, 0);
    }
    eventually("nothing is kept", || controls.pages.load(Ordering::SeqCst) == 0);
    assert_eq!(without.stats().prefix_query_tokens, 0);
}

#[test]
fn snapshots_of_a_growing_output_do_not_pile_up() {
    let (engine, controls) = engine(config());
    run(&engine, exactly(&prompt(1, 10), 100));
    // Blocks 1, 2, 4 and 8 are landmarks, and the last one of the output is kept: its pages hold those of all.
    eventually("pages of one sequence are kept", || {
        controls.pages.load(Ordering::SeqCst) == 13 && engine.stats().prefix_cache_bytes == 13 * PAGE_BYTES
    });
}

#[test]
fn right_guesses_save_steps_and_wrong_ones_change_nothing() {
    let ask = exactly(&prompt(1, 30), 60);
    let plain = reference(&ask);
    for (right, steps) in [(8, 17..24), (4, 24..60), (0, 60..80)] {
        let model = Toy { max_drafts: 3, right, ..toy() };
        let (engine, controls, notes) = observed(model, EngineConfig { prefix_cache: false, ..config() });
        assert_eq!(run(&engine, ask.clone()), plain);
        let stats = engine.stats();
        assert!(steps.contains(&stats.steps), "{right}: {stats:?}");
        assert_eq!(stats.generated_tokens, 60);
        assert_eq!(stats.drafted.len(), 3);
        assert!(stats.drafted.iter().zip(&stats.accepted).all(|(drafted, accepted)| accepted <= drafted));
        assert_eq!(stats.accepted.iter().sum::<u64>() == 0, right == 0);
        let report = notes.requests.lock().unwrap()[0].clone();
        assert_eq!(u64::from(report.drafted), stats.drafted.iter().sum::<u64>());
        assert_eq!(u64::from(report.accepted), stats.accepted.iter().sum::<u64>());
        eventually("nothing is left", || is_empty(&engine, &controls));
    }
}

#[test]
fn without_its_draft_stage_the_engine_goes_on() {
    let (engine, controls) = engine_of(Toy { max_drafts: 2, right: 8, ..toy() }, config());
    controls.cannot_draft.store(true, Ordering::SeqCst);
    let ask = exactly(&prompt(1, 30), 40);
    assert_eq!(run(&engine, ask.clone()), reference(&ask));
    assert_eq!(engine.stats().drafted, [0, 0]);
    controls.cannot_draft.store(false, Ordering::SeqCst);
    let gate = controls.gate.lock().unwrap();
    *controls.faults.lock().unwrap() =
        [None, None, None, None, Some(Fault::Error { retryable: true })].into();
    let lost = submit(&engine, exactly(&prompt(2, 8), 40)).unwrap();
    drop(gate);
    let heard = lost.hear();
    assert_eq!(heard.failure(), ("worker 3 is not reachable", true));
    let whole = exactly(&prompt(2, 8), 40);
    let rest = run(&engine, Request { resume: heard.ids.clone(), ..whole.clone() });
    assert_eq!([heard.ids, rest.ids].concat(), reference(&whole).ids, "a step that is lost tells no guess");
    assert!(engine.stats().accepted[0] > 0);
}

#[test]
fn a_prompt_can_be_scored_alone_and_before_an_answer() {
    let (engine, _) = engine(config());
    let scored = Request { prompt_logprobs: Some(2), ..exactly(&prompt(1, 70), 0) };
    let heard = run(&engine, scored.clone());
    assert_eq!(heard, reference(&scored));
    assert_eq!(heard.prompt.as_ref().map(Vec::len), Some(69));
    assert_eq!((heard.ids.len(), heard.reason()), (0, Some(FinishReason::Length)));
    let answered = Request { prompt_logprobs: Some(0), logprobs: Some(3), ..exactly(&prompt(1, 70), 9) };
    let heard = run(&engine, answered.clone());
    assert_eq!(heard, reference(&answered));
    assert_eq!(heard.logprobs.len(), 9);
    let resumed = Request { resume: heard.ids[..4].to_vec(), ..answered };
    assert_eq!(run(&engine, resumed).prompt, None, "it was told before the first token");
}

#[test]
fn observers_hear_of_every_step_and_every_end() {
    let (engine, controls, notes) = observed(Toy { max_drafts: 1, right: 8, ..toy() }, config());
    let engine = Arc::new(engine);
    run(&engine, Request { id: "good".into(), ..exactly(&prompt(1, 30), 12) });
    let gate = controls.gate.lock().unwrap();
    let key =
        engine.submit(Request { id: "cancelled".into(), ..exactly(&[5], 50) }, Box::new(|_| true)).unwrap();
    engine.submit(Request { id: "unheard".into(), ..exactly(&[6], 50) }, Box::new(|_| false)).unwrap();
    let from_sink = Arc::clone(&engine);
    let sink = move |_| {
        from_sink.shutdown();
        true
    };
    engine.submit(Request { id: "stopped".into(), ..exactly(&[7], 100) }, Box::new(sink)).unwrap();
    engine.cancel(key);
    drop(gate);
    eventually("all have ended", || notes.requests.lock().unwrap().len() == 4);
    engine.shutdown();
    let reports = notes.requests.lock().unwrap();
    let report = |id: &str| reports.iter().find(|report| report.id == id).expect("a report").clone();
    assert_eq!(reports.len(), 4);
    let good = report("good");
    assert_eq!(good.end, End::Finished(FinishReason::Length));
    assert_eq!((good.usage.prompt_tokens, good.usage.completion_tokens, good.produced), (30, 12, 12));
    assert!(good.drafted > 0 && good.accepted > 0);
    assert_eq!(good.first_token, good.prefill.map(|prefill| good.queued + prefill));
    assert_eq!(good.inter_token(), good.decode.map(|decode| decode / 11));
    assert!(good.total >= good.first_token.unwrap() + good.decode.unwrap());
    assert_eq!(report("cancelled").end, End::Failed(FailureKind::Cancelled));
    assert_eq!(report("unheard").end, End::Failed(FailureKind::Cancelled));
    assert_eq!(report("stopped").end, End::Failed(FailureKind::Lost));
    let produced: u32 = reports.iter().map(|report| report.produced).sum();
    let silent = reports.iter().filter(|report| report.produced > 0).count();
    assert_eq!(notes.gaps.lock().unwrap().len(), produced as usize - silent, "no gap before a first token");
    let steps = notes.steps.lock().unwrap();
    assert_eq!(steps.len() as u64, engine.stats().steps);
    let rows: usize = steps.iter().map(|step| step.prefill_rows + step.decode_rows).sum();
    let fed: usize = controls.steps.lock().unwrap().iter().flatten().map(|(_, rows)| rows).sum();
    assert_eq!(rows, fed);
    assert_eq!(steps.iter().map(|step| step.accepted as u64).sum::<u64>(), engine.stats().accepted[0]);
}

#[test]
fn a_panic_beside_one_request_leaves_the_others() {
    /// Panics once.
    struct Faulty(AtomicBool);

    impl Observer for Faulty {
        fn token(&self, _: Duration) {
            assert!(self.0.swap(true, Ordering::SeqCst), "a bug");
        }
    }

    let toy = toy();
    let controls = toy.controls.clone();
    let observer = Arc::new(Faulty(AtomicBool::new(false)));
    let engine = Engine::start_observed(toy, tokenizer(), config(), observer).unwrap();
    let gate = controls.gate.lock().unwrap();
    let [first, second] = [1, 2].map(|id| submit(&engine, exactly(&[id], 9)).unwrap());
    drop(gate);
    assert_eq!(first.hear().failure(), ("choosing a token panicked: a bug", false));
    assert_eq!(second.hear(), reference(&exactly(&[2], 9)));
    eventually("nothing is left", || is_empty(&engine, &controls));
}

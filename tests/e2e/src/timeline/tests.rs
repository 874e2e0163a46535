use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A worker that serves, with two copies of everything.
fn well() -> View {
    View { ready: true, epoch: 1, min_live_copies: 2, ..View::default() }
}

fn sample(at: u32, uid: &str, worker: u32, view: View) -> Sample {
    Sample { at: at * SECOND, uid: uid.into(), worker, seen: Seen::View(view) }
}

fn other(at: u32, uid: &str, worker: u32, seen: Seen) -> Sample {
    Sample { at: at * SECOND, uid: uid.into(), worker, seen }
}

/// Worker 1 (pod b) is killed at 10 s; worker 0 (pod a) notices after 1 s and gives it up after 2 s, without a copy of
/// something until 4 s; pod c is worker 1 from 6 s on, with epoch 2.
fn loss() -> Vec<Sample> {
    let alone = View { min_live_copies: 1, ..well() };
    let suspects = View { suspect: [1].into(), ..alone.clone() };
    let bare = View {
        lost: [1].into(),
        uncovered: 3,
        min_live_copies: 0,
        ready: false,
        uncovered_for: SECOND,
        ..well()
    };
    let adopts = View { adopted: 3, lost: [1].into(), uncovered_for: 2 * SECOND, ..alone };
    let settled = View { epoch: 2, uncovered_for: 2 * SECOND, ..well() };
    vec![
        sample(8, "a", 0, well()),
        sample(8, "b", 1, well()),
        sample(11, "a", 0, suspects),
        other(11, "b", 1, Seen::Silent),
        sample(12, "a", 0, bare.clone()),
        sample(13, "a", 0, View { uncovered_for: 2 * SECOND, ..bare }),
        other(13, "b", 1, Seen::Gone),
        sample(14, "a", 0, adopts),
        sample(15, "c", 1, View { ready: false, ..View::default() }),
        sample(16, "a", 0, settled.clone()),
        sample(17, "c", 1, View { uncovered_for: Duration::ZERO, ..settled }),
    ]
}

#[test]
fn a_loss_is_told_in_the_order_of_its_moments() {
    let timeline = Timeline::new(loss());
    let since = 10 * SECOND;
    assert_eq!(timeline.noticed(since, &[1]), Some(SECOND));
    assert_eq!(timeline.given_up(since, &[1]), Some(2 * SECOND));
    assert_eq!(timeline.served_again(since, &[1]), Some(4 * SECOND));
    assert_eq!(timeline.restored(since, 2, 2), Some(7 * SECOND));
    assert_eq!(timeline.least_copies(since, &[1]), Some(1), "a worker that is not ready does not count");
    let uncovered = timeline.uncovered(&[]);
    assert_eq!((uncovered.samples, uncovered.counted), (2, 2 * SECOND));
    assert!(uncovered.first.unwrap().contains("worker 0 saw 3 experts"));
    assert!(timeline.uncovered(&[0]).none(), "the new worker was never ready and bare");
    assert!(timeline.fallen_epochs().is_empty());
}

#[test]
fn what_is_not_restored_is_not_reported_as_such() {
    let since = 10 * SECOND;
    assert_eq!(Timeline::new(loss()).restored(since, 3, 2), None, "a worker is missing");
    assert_eq!(Timeline::new(loss()).restored(since, 2, 3), None, "a copy is missing");
    let with = |change: fn(&mut View)| {
        let mut samples = loss();
        let Some(Seen::View(view)) = samples.last_mut().map(|sample| &mut sample.seen) else { panic!() };
        change(view);
        Timeline::new(samples).restored(since, 2, 2)
    };
    assert_eq!(with(|_| {}), Some(7 * SECOND));
    assert_eq!(with(|view| view.epoch = 1), None);
    assert_eq!(with(|view| view.adopted = 1), None);
    assert_eq!(with(|view| view.ready = false), None);
    assert_eq!(with(|view| view.uncovered = 1), None);
    assert_eq!(with(|view| view.suspect = [0].into()), None);
    assert_eq!(with(|view| view.lost = [0].into()), None);
    let mut silent = loss();
    silent.push(other(18, "a", 0, Seen::Silent));
    assert_eq!(Timeline::new(silent).restored(since, 2, 2), None);
}

#[test]
fn nothing_happened_takes_no_time() {
    let samples = (0..20).flat_map(|at| [sample(at, "a", 0, well()), sample(at, "b", 1, well())]).collect();
    let timeline = Timeline::new(samples);
    assert_eq!(timeline.restored(5 * SECOND, 2, 2), Some(Duration::ZERO));
    assert_eq!(timeline.served_again(5 * SECOND, &[]), Some(Duration::ZERO));
    assert_eq!(timeline.noticed(Duration::ZERO, &[0, 1]), None);
    assert!(timeline.uncovered(&[]).none());
    let density = timeline.density();
    assert_eq!((density.samples, density.median, density.longest), (40, SECOND, SECOND));
}

#[test]
fn an_answer_after_the_end_does_not_count() {
    let mut samples = loss();
    samples.push(sample(18, "b", 1, View { uncovered: 9, ..well() }));
    let timeline = Timeline::new(samples);
    assert_eq!(timeline.restored(10 * SECOND, 2, 2), Some(7 * SECOND));
    assert!(timeline.uncovered(&[0]).none());
}

#[test]
fn a_survivor_that_stays_bare_does_not_serve_again() {
    let mut samples = loss();
    samples.retain(|sample| sample.at <= 13 * SECOND);
    assert_eq!(Timeline::new(samples).served_again(10 * SECOND, &[1]), None);
}

#[test]
fn a_gap_between_two_samples_is_counted_by_the_worker_itself() {
    let later = View { uncovered_for: Duration::from_millis(7), ..well() };
    let timeline = Timeline::new(vec![sample(0, "a", 0, well()), sample(1, "a", 0, later)]);
    let uncovered = timeline.uncovered(&[]);
    assert_eq!((uncovered.samples, uncovered.counted), (0, Duration::from_millis(7)));
    assert!(!uncovered.none());
}

#[test]
fn a_copy_whose_holder_is_only_silent_is_held() {
    let counted = |uncovered, silent| View {
        uncovered_for: Duration::from_millis(uncovered),
        silent_for: Duration::from_millis(silent),
        ..well()
    };
    let seen = |views: &[(u32, View)]| {
        let samples = views.iter().zip(0..);
        let samples =
            samples.map(|((worker, view), at)| sample(at, &format!("u{worker}"), *worker, view.clone()));
        let uncovered = Timeline::new(samples.collect()).uncovered(&[]);
        (uncovered.counted.as_millis(), uncovered.bare.as_millis(), uncovered.held(), uncovered.none())
    };
    assert_eq!(seen(&[(0, counted(5, 2)), (0, counted(33, 30))]), (28, 0, true, false));
    assert_eq!(seen(&[(0, counted(5, 2)), (0, counted(33, 29))]), (28, 1, false, false));
    let during = View { uncovered: 3, ..counted(20, 20) };
    assert_eq!(seen(&[(0, well()), (0, during), (0, counted(28, 28))]), (28, 0, true, false));
    // one worker's silence is no excuse for another's gap
    let two = [(0, well()), (1, well()), (0, counted(90, 90)), (1, counted(40, 0))];
    assert_eq!(seen(&two), (90, 40, false, false));
}

#[test]
fn a_process_that_begins_anew_begins_its_count_anew() {
    let counted = |process: &str, milliseconds| View {
        process: process.into(),
        uncovered_for: Duration::from_millis(milliseconds),
        silent_for: Duration::from_millis(milliseconds / 10),
        ..well()
    };
    let samples = [(0, "p", 100), (1, "p", 130), (2, "q", 0), (3, "q", 5), (4, "r", 7)];
    let samples = samples.map(|(at, process, ms)| sample(at, "a", 0, counted(process, ms))).to_vec();
    let uncovered = Timeline::new(samples).uncovered(&[]);
    assert_eq!((uncovered.counted.as_millis(), uncovered.bare.as_millis()), (42, 39));
}

#[test]
fn another_process_of_the_pod_was_never_ready() {
    let bare = |process: &str| View { process: process.into(), uncovered: 3, ready: false, ..well() };
    let seen = |process: &str| {
        Timeline::new(vec![
            sample(0, "a", 0, View { process: "p".into(), ..well() }),
            sample(1, "a", 0, bare(process)),
        ])
    };
    assert_eq!(seen("q").uncovered(&[]).samples, 0);
    assert_eq!(seen("p").uncovered(&[]).samples, 1);
}

#[test]
fn an_epoch_falls_only_with_the_process() {
    let at_epoch = |epoch, process: &str| View { epoch, process: process.into(), ..well() };
    let fell = |process| {
        let samples = vec![sample(0, "a", 0, at_epoch(3, "p")), sample(1, "a", 0, at_epoch(2, process))];
        Timeline::new(samples).fallen_epochs()
    };
    assert_eq!(fell("q"), Vec::<String>::new());
    assert_eq!(fell("p"), ["worker 0 fell from epoch 3 to 2"]);
}

//! How far rollouts go: canaries, previews, what takes them back, and specs that change in the middle.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
use belay_crds::{Reason, TrafficRole};
use belay_operator::rollout::{
    Age, Budget, Evidence, Gate, Group, Happening, Health, New, Phase, Reach, Rules, Sight, Stage, State,
    Step, Strategy, advance, step,
};
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn canary(steps: &[(u32, i64)]) -> Rules {
    Rules {
        strategy: Strategy::Canary { steps: steps.to_vec() },
        paused: false,
        deadline_seconds: Some(600),
        rolls_back: true,
        promote: None,
    }
}

fn blue_green(manual: bool) -> Rules {
    let strategy = Strategy::BlueGreen { manual, preview_seconds: 30, keep_seconds: 60 };
    Rules { strategy, ..canary(&[]) }
}

/// A rollout as the operator sees it: one look after the other.
struct Scene {
    rules: Rules,
    budget: Budget,
    state: State,
    new: New,
    others: u32,
    has_stable: bool,
    evidence: Evidence,
}

impl Scene {
    fn new(rules: Rules, desired: u32) -> Self {
        Self {
            rules,
            budget: Budget { desired, surge: 1, unavailable: 0 },
            state: State::new(2, at(0)),
            new: New::default(),
            others: desired,
            has_stable: true,
            evidence: Evidence::default(),
        }
    }

    fn look(&mut self, second: i64) -> Stage {
        let sight = Sight {
            budget: self.budget,
            revision: "new",
            has_stable: self.has_stable,
            new: self.new.clone(),
            others: self.others,
            evidence: &self.evidence,
        };
        let stage = advance(&self.rules, self.state.clone(), &sight, at(second));
        self.state = stage.state.clone();
        stage
    }

    fn ready(&mut self, groups: u32, second: i64) {
        self.new = New { live: groups, ready: groups, last_ready: Some(at(second)), failed: None };
    }
}

fn percent(stage: &Stage) -> Option<u32> {
    let sum: u32 = stage.shares.iter().map(|share| share.percent).sum();
    assert!(stage.shares.is_empty() || sum == 100, "{:?}", stage.shares);
    stage.shares.iter().find(|share| share.role != TrafficRole::Stable).map(|share| share.percent)
}

#[test]
fn canary_goes_step_by_step_to_the_end() {
    let mut scene = Scene::new(canary(&[(10, 60), (50, 60)]), 4);
    let stage = scene.look(0);
    assert_eq!((stage.reach, percent(&stage)), (Reach::Split { new: 1, before: 4 }, Some(0)));
    assert_eq!(stage.phase, Phase::Starting);
    scene.ready(1, 5);
    let stage = scene.look(6);
    assert_eq!((percent(&stage), &stage.happened), (Some(10), &Some(Happening::Shifted(10))));
    assert_eq!(scene.look(65).phase, Phase::Holding);
    assert_eq!(scene.state.step, 0);
    let stage = scene.look(66);
    assert_eq!((stage.reach, percent(&stage)), (Reach::Split { new: 2, before: 2 }, Some(10)), "not yet 50");
    scene.ready(2, 70);
    assert_eq!(percent(&scene.look(71)), Some(50));
    let stage = scene.look(131);
    assert_eq!(stage.happened, Some(Happening::Promoted));
    assert_eq!((stage.reach, percent(&stage)), (Reach::Split { new: 4, before: 0 }, None));
    assert_eq!(stage.phase, Phase::Replacing);
    (scene.others, scene.new.live, scene.new.ready) = (0, 4, 4);
    assert_eq!(scene.look(140).phase, Phase::Complete);
    let written = scene.state.clone();
    assert_eq!(scene.look(9999).state, written, "nothing more is written");
}

#[test]
fn canary_of_one_group_keeps_the_old_one() {
    let mut scene = Scene::new(canary(&[(50, 10)]), 1);
    assert_eq!(scene.look(0).reach, Reach::Split { new: 1, before: 1 });
    scene.ready(1, 1);
    scene.look(1);
    assert_eq!(scene.look(11).reach, Reach::Split { new: 1, before: 0 });
}

#[test]
fn bad_evidence_takes_the_canary_back_for_good() {
    for bad_at in ["before", "in step"] {
        let mut scene = Scene::new(canary(&[(10, 60)]), 4);
        scene.ready(1, 5);
        let bad = Gate::Bad(Reason::AnswersDiffer, "3 of 64".into());
        if bad_at == "before" {
            scene.evidence.before_share = bad;
        } else {
            scene.look(6);
            scene.evidence.in_step = bad;
        }
        let stage = scene.look(7);
        let expected = Happening::RolledBack(Reason::AnswersDiffer, "3 of 64".into());
        assert_eq!(stage.happened, Some(expected), "{bad_at}");
        assert_eq!((stage.reach, percent(&stage)), (Reach::Split { new: 0, before: 4 }, Some(0)));
        scene.evidence = Evidence::default();
        let stage = scene.look(1000);
        assert_eq!(
            (stage.phase, stage.happened),
            (Phase::RolledBack, None),
            "it does not try again by itself"
        );
    }
}

#[test]
fn what_cannot_start_is_taken_back_only_if_that_is_wished() {
    let failed = Some((Reason::CheckpointInvalid, "pod x: tensor y".into()));
    let mut scene = Scene::new(canary(&[(10, 60)]), 2);
    scene.look(0);
    scene.new = New { live: 1, failed: failed.clone(), ..New::default() };
    let stage = scene.look(1);
    assert_eq!(
        stage.happened,
        Some(Happening::RolledBack(Reason::CheckpointInvalid, "pod x: tensor y".into()))
    );

    let mut scene = Scene::new(Rules { rolls_back: false, ..canary(&[(10, 60)]) }, 2);
    scene.new = New { live: 1, failed, ..New::default() };
    assert_eq!(scene.look(1).phase, Phase::Starting);
    assert_eq!(scene.look(599).phase, Phase::Starting);
    assert_eq!(scene.look(600).phase, Phase::Stuck);

    let mut scene = Scene::new(canary(&[(10, 60)]), 2);
    scene.new.live = 1;
    scene.look(0);
    let stage = scene.look(600);
    let Some(Happening::RolledBack(reason, message)) = stage.happened else { panic!("{stage:?}") };
    assert_eq!(reason, Reason::ProgressDeadlineExceeded);
    assert!(message.contains("0 of 1 groups"), "{message}");
}

#[test]
fn evidence_that_is_not_there_yet_is_waited_for() {
    let mut scene = Scene::new(canary(&[(10, 60)]), 2);
    scene.ready(1, 1);
    scene.evidence.before_share = Gate::Wait("both are asked".into());
    let stage = scene.look(2);
    assert_eq!((percent(&stage), stage.message.as_str()), (Some(0), "both are asked"));
    scene.evidence.before_share = Gate::Open;
    assert_eq!(percent(&scene.look(3)), Some(10));
    scene.evidence.in_step = Gate::Wait("12 of 30".into());
    assert_eq!(scene.look(500).message, "12 of 30");
    scene.evidence.in_step = Gate::Open;
    assert_eq!(scene.look(501).happened, Some(Happening::Promoted));
}

#[test]
fn a_person_may_promote_what_waits_but_not_with_an_old_word() {
    let mut scene = Scene::new(canary(&[(10, 60)]), 2);
    scene.evidence.in_step = Gate::Bad(Reason::TokensSlower, "slow".into());
    scene.rules.promote = Some("other".into());
    assert!(matches!(scene.look(1).happened, Some(Happening::RolledBack(..))));
    let mut scene = Scene::new(canary(&[(10, 60)]), 2);
    scene.rules.promote = Some("new".into());
    assert_eq!(scene.look(1).happened, Some(Happening::Promoted));
    let mut scene = Scene::new(canary(&[(10, 60)]), 2);
    scene.rules.promote = Some("new".into());
    scene.state.promotion_seen = Some("new".into());
    assert_eq!(scene.look(1).happened, None);
    scene.rules.promote = Some("new/again".into());
    assert_eq!(scene.look(2).happened, Some(Happening::Promoted));
    // also what was taken back, by a word that came after
    let mut scene = Scene::new(canary(&[(10, 60)]), 2);
    scene.evidence.in_step = Gate::Bad(Reason::TokensSlower, "slow".into());
    scene.look(1);
    scene.evidence = Evidence::default();
    scene.rules.promote = Some("new".into());
    let stage = scene.look(2);
    assert_eq!((stage.happened, stage.state.rejected), (Some(Happening::Promoted), None));
}

#[test]
fn a_pause_keeps_the_share_and_still_takes_back_what_is_bad() {
    let mut scene = Scene::new(canary(&[(10, 5), (50, 5)]), 4);
    scene.rules.paused = true;
    assert_eq!(scene.look(0).reach, Reach::Split { new: 0, before: 4 }, "not begun: it does not begin");
    scene.rules.paused = false;
    scene.ready(1, 1);
    scene.look(1);
    scene.rules.paused = true;
    let stage = scene.look(500);
    assert_eq!((percent(&stage), stage.phase), (Some(10), Phase::Paused));
    assert_eq!(stage.reach, Reach::Split { new: 1, before: 4 });
    scene.evidence.in_step = Gate::Bad(Reason::ErrorsIncreased, "9 of 10".into());
    assert_eq!(scene.look(501).phase, Phase::RolledBack);
}

#[test]
fn blue_green_starts_all_then_goes_over_then_lets_the_old_go() {
    let mut scene = Scene::new(blue_green(false), 3);
    let stage = scene.look(0);
    assert_eq!((stage.reach, stage.surge), (Reach::Split { new: 3, before: 3 }, 3));
    assert_eq!(percent(&stage), Some(0));
    scene.ready(3, 5);
    let stage = scene.look(6);
    assert_eq!((percent(&stage), stage.phase), (Some(0), Phase::Holding), "the preview");
    let stage = scene.look(36);
    assert_eq!((percent(&stage), stage.happened), (Some(100), Some(Happening::Shifted(100))));
    assert_eq!(scene.look(95).reach, Reach::Split { new: 3, before: 3 });
    let stage = scene.look(96);
    assert_eq!(
        (stage.happened, stage.reach),
        (Some(Happening::Promoted), Reach::Split { new: 3, before: 0 })
    );
}

#[test]
fn blue_green_may_wait_for_a_person_and_goes_back_while_the_old_is_there() {
    let mut scene = Scene::new(blue_green(true), 2);
    scene.ready(2, 5);
    scene.look(6);
    assert_eq!(scene.look(600).phase, Phase::WaitingForPromotion);
    scene.rules.promote = Some("new".into());
    assert_eq!(percent(&scene.look(601)), Some(100));
    scene.evidence.in_step = Gate::Bad(Reason::ErrorsIncreased, "9 of 10".into());
    let stage = scene.look(610);
    assert_eq!((percent(&stage), stage.phase), (Some(0), Phase::RolledBack));
    assert_eq!(stage.reach, Reach::Split { new: 0, before: 2 });
}

#[test]
fn without_anything_to_compare_with_there_is_no_canary() {
    for rules in [canary(&[(10, 60)]), blue_green(true)] {
        let mut scene = Scene::new(rules.clone(), 2);
        scene.has_stable = false;
        let stage = scene.look(0);
        assert_eq!((stage.reach, percent(&stage)), (Reach::Split { new: 2, before: 0 }, None));
        let mut scene = Scene::new(rules, 0);
        scene.others = 2;
        let stage = scene.look(0);
        assert_eq!(percent(&stage), None, "at zero there is nobody to try it on");
        assert_eq!(stage.happened, None, "somebody is still there");
        scene.others = 0;
        assert_eq!(scene.look(1).happened, Some(Happening::Promoted));
    }
}

#[test]
fn steps_that_become_fewer_in_the_middle_end_it() {
    let mut scene = Scene::new(canary(&[(10, 5), (20, 5), (50, 5)]), 10);
    scene.ready(5, 1);
    scene.look(1);
    scene.look(6);
    scene.look(11);
    assert_eq!(scene.state.step, 2);
    scene.rules = canary(&[(10, 5)]);
    assert_eq!(scene.look(16).happened, Some(Happening::Promoted));
}

fn count(groups: &[Group], test: impl Fn(&Group) -> bool) -> u32 {
    u32::try_from(groups.iter().filter(|group| test(group)).count()).unwrap()
}

fn group(age: Age, ordinal: u32, health: Health) -> Group {
    Group { name: format!("{age:?}-{ordinal}"), ordinal, age, health, draining: false }
}

fn gates() -> impl Strategy2<Value = Gate> {
    prop_oneof![
        8 => Just(Gate::Open),
        4 => Just(Gate::Wait("for more".to_owned())),
        1 => Just(Gate::Bad(Reason::ErrorsIncreased, "many".to_owned())),
    ]
}

use proptest::strategy::Strategy as Strategy2;

proptest! {
    /// A rollout and the world take turns: groups get ready, fail and end their drains in any order, evidence comes and goes,
    /// somebody pauses. At every moment as many groups serve as are promised (if they did before), never more exist than
    /// the surge allows; shares add up; a share is given only where groups were ready for it; and in the end there is one
    /// revision: the new one if it was promoted, the old one if it was taken back.
    #[test]
    fn rollouts_keep_their_promises(
        desired in 1u32..5, surge in 1u32..3, unavailable in 0u32..2, is_canary in any::<bool>(), manual in any::<bool>(),
        first in 1u32..50, second in 50u32..=100, events in proptest::collection::vec((any::<u8>(), gates(), any::<bool>()), 40..120),
    ) {
        let steps = [(first, 3), (second, 3)];
        let mut scene = Scene::new(if is_canary { canary(&steps) } else { blue_green(manual) }, desired);
        scene.budget = Budget { desired, surge, unavailable };
        let mut groups: Vec<Group> = (0..desired).map(|n| group(Age::Before, n, Health::Ready)).collect();
        let mut second = 0;
        let settle = events.len();
        let calm = std::iter::repeat_n((0u8, Gate::Open, false), 300);
        for (turn, (choice, gate, paused)) in events.into_iter().chain(calm).enumerate() {
            second += i64::from(choice % 7) + i64::from(turn >= settle) * 10;
            scene.evidence.in_step = gate;
            scene.rules.paused = paused;
            if turn >= settle && manual {
                scene.rules.promote = Some("new".to_owned());
            }
            let of = |age: Age| count(&groups, |group| group.age == age && !group.draining);
            scene.new = New {
                live: of(Age::New),
                ready: count(&groups, |group| group.age == Age::New && !group.draining && group.health == Health::Ready),
                last_ready: None,
                failed: None,
            };
            scene.others = count(&groups, |group| group.age != Age::New);
            let had_share = scene.state.since.is_some();
            let stage = scene.look(second);
            if let Some(given) = percent(&stage) {
                let shifted = !had_share && stage.state.since.is_some() && given > 0;
                prop_assert!(!shifted || scene.new.ready > 0, "a share for nobody");
            }
            let serving = |groups: &[Group]| count(groups, |group| !group.draining && group.health == Health::Ready);
            let before = serving(&groups);
            let budget = Budget { surge: stage.surge, ..scene.budget };
            let exist = groups.len() as u32;
            let Step { create, create_before, drain } = step(budget, stage.reach, true, &groups);
            for group in &mut groups {
                group.draining |= drain.contains(&group.name);
            }
            groups.extend(create.iter().map(|&n| group(Age::New, n, Health::Starting)));
            groups.extend(create_before.iter().map(|&n| group(Age::Before, n, Health::Starting)));
            prop_assert!(serving(&groups) >= before.min(desired - unavailable.min(desired)), "fewer serve than promised");
            prop_assert!(groups.len() as u32 <= exist.max(desired + stage.surge), "more than the surge");
            // the world: one thing happens
            let index = usize::from(choice) % groups.len().max(1);
            if groups[index].draining {
                groups.remove(index);
            } else if groups[index].health == Health::Ready && choice % 5 == 0 && turn < settle {
                groups[index].health = Health::Starting;
            } else {
                groups[index].health = Health::Ready;
            }
            if turn >= settle {
                groups.retain(|group| !group.draining);
                groups.iter_mut().for_each(|group| group.health = Health::Ready);
            }
        }
        let (new, old) = (count(&groups, |group| group.age == Age::New), count(&groups, |group| group.age != Age::New));
        match (&scene.state.promoted, &scene.state.rejected) {
            (Some(_), None) => prop_assert_eq!((new, old), (desired, 0)),
            (None, Some(_)) => prop_assert_eq!((new, old), (0, desired)),
            other => prop_assert!(false, "neither good nor bad in the end: {:?} {:?}", other, scene.state),
        }
    }
}

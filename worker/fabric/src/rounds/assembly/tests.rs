use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

fn view(me: u32, live: &[u32], all: bool) -> View {
    View { me, live: live.to_vec(), known: live.to_vec(), all, ranks: 2, busy: false }
}

fn sends(acts: &[Act]) -> Vec<(u32, &Word)> {
    let sent = acts.iter().filter_map(|act| match act {
        Act::Send { to, word } => Some((*to, word)),
        _ => None,
    });
    sent.collect()
}

#[test]
fn the_first_live_worker_gathers_the_others_and_all_join() {
    let now = Instant::now();
    let (mut leader, mut other) = (Assembly::new(now), Assembly::new(now));
    assert!(other.tick(now, &view(1, &[0, 1], true), || 8).is_empty(), "worker 0 leads");
    assert_eq!(leader.tick(now, &view(0, &[0, 1], true), || 7), [Act::Root]);
    let acts = leader.rooted(now, 0, Some(vec![1, 2, 3]));
    let [(1, offer)] = sends(&acts)[..] else { panic!("{acts:?}") };
    assert!(other.heard(now, 1, 0, offer.clone()).is_empty());
    let busy = View { busy: true, ..view(1, &[0, 1], true) };
    assert!(other.tick(now, &busy, || 9).is_empty(), "an earlier circle is left first");
    let acts = other.tick(now, &view(1, &[0, 1], true), || 9);
    assert_eq!(sends(&acts), [(0, &Word::Agree { circle: 7 })]);
    let join =
        |acts: &[Act]| acts.contains(&Act::Join { circle: 7, members: vec![0, 1], root: vec![1, 2, 3] });
    let acts = leader.heard(now, 0, 1, Word::Agree { circle: 7 });
    assert_eq!(sends(&acts), [(1, &Word::Join { circle: 7 })]);
    assert!(join(&acts));
    assert!(join(&other.heard(now, 1, 0, Word::Join { circle: 7 })));
    assert_eq!((leader.seated(), other.seated()), (Some(7), Some(7)));
}

#[test]
fn a_worker_with_several_ranks_sits_alone_and_one_with_a_single_rank_does_not() {
    let now = Instant::now();
    let mut assembly = Assembly::new(now);
    let single = View { ranks: 1, ..view(0, &[0], true) };
    assert!(assembly.tick(now, &single, || 1).is_empty());
    assert_eq!(assembly.tick(now, &view(0, &[0], true), || 1), [Act::Root]);
    let acts = assembly.rooted(now, 0, Some(vec![9]));
    assert_eq!(acts, [Act::Join { circle: 1, members: vec![0], root: vec![9] }]);
}

#[test]
fn those_that_are_missing_are_waited_for_and_then_left_out() {
    let now = Instant::now();
    let mut assembly = Assembly::new(now);
    let some = view(0, &[0, 2], false);
    assert!(assembly.tick(now, &some, || 1).is_empty());
    assert!(assembly.tick(now + PATIENCE / 2, &some, || 1).is_empty());
    assert_eq!(assembly.tick(now + PATIENCE, &some, || 1), [Act::Root]);
}

fn seated(now: Instant) -> Assembly {
    let mut assembly = Assembly::new(now);
    assembly.tick(now, &view(0, &[0, 1], true), || 5);
    assembly.rooted(now, 0, Some(vec![]));
    assembly.heard(now, 0, 1, Word::Agree { circle: 5 });
    assembly.joined(now, 5);
    assembly
}

#[test]
fn a_lost_worker_ends_a_circle_and_pauses_double() {
    let now = Instant::now();
    let mut assembly = seated(now);
    let acts = assembly.tick(now, &view(0, &[0], false), || 6);
    assert!(matches!(&acts[0], Act::Leave { circle: 5, reason } if reason == "worker 1 is lost"));
    assert_eq!(sends(&acts).len(), 1, "who is lost to us may not know");
    let alone = view(0, &[0], true);
    assert!(assembly.tick(now, &alone, || 6).is_empty(), "a pause");
    assert_eq!(assembly.tick(now + PAUSE_LEAST, &alone, || 6), [Act::Root]);
    assembly.rooted(now + PAUSE_LEAST, 0, None);
    assert!(assembly.tick(now + 2 * PAUSE_LEAST, &alone, || 7).is_empty(), "a longer pause");
    assert_eq!(assembly.tick(now + 3 * PAUSE_LEAST, &alone, || 7), [Act::Root]);
}

#[test]
fn a_suspect_worker_keeps_its_seat_and_a_newcomer_gets_one() {
    let now = Instant::now();
    let mut assembly = seated(now);
    let suspect = View { live: vec![0], all: false, ..view(0, &[0, 1], true) };
    assert!(assembly.tick(now + PATIENCE * 2, &suspect, || 6).is_empty());
    let acts = assembly.tick(now, &view(0, &[0, 1, 2], true), || 6);
    assert!(matches!(&acts[0], Act::Leave { circle: 5, .. }), "{acts:?}");
    assert_eq!(assembly.tick(now, &view(0, &[0, 1, 2], true), || 6), [Act::Root], "no pause for that");
}

#[test]
fn offers_of_two_leaders_end_with_the_first() {
    let now = Instant::now();
    let mut second = Assembly::new(now);
    second.tick(now, &view(1, &[1, 2], true), || 3);
    second.rooted(now, 1, Some(vec![]));
    let offer = |members: Vec<u32>| Word::Offer { circle: 4, members, root: vec![] };
    let declined = second.heard(now, 1, 2, offer(vec![2, 1]));
    assert!(matches!(sends(&declined)[..], [(2, Word::Decline { circle: 4, .. })]));
    let acts = second.heard(now, 1, 0, offer(vec![0, 1]));
    assert!(matches!(sends(&acts)[..], [(2, Word::Break { circle: 3, .. })]), "{acts:?}");
    let agreed = second.tick(now, &view(1, &[0, 1, 2], true), || 9);
    assert_eq!(sends(&agreed), [(0, &Word::Agree { circle: 4 })]);
    let strange = second.heard(now, 1, 2, offer(vec![0, 1, 2]));
    assert!(matches!(sends(&strange)[..], [(2, Word::Decline { .. })]), "only the first of them offers");
}

/// A worker's place in a circle.
#[derive(Clone, Debug)]
struct Sits {
    circle: u64,
    members: Vec<u32>,
    /// Lives of the members that it knows.
    lives: Vec<u32>,
    since: Instant,
    joined: bool,
}

/// A few workers and the words between them.
struct Group {
    now: Instant,
    workers: Vec<Assembly>,
    /// Where each sits, as told to join or leave.
    sits: Vec<Option<Sits>>,
    /// Counts the times that each began.
    lives: Vec<u32>,
    words: BTreeMap<(u32, u32), VecDeque<Word>>,
    alive: Vec<bool>,
    fresh: u64,
}

impl Group {
    fn new(count: usize) -> Self {
        let now = Instant::now();
        Self {
            now,
            workers: (0..count).map(|_| Assembly::new(now)).collect(),
            sits: vec![None; count],
            lives: vec![0; count],
            words: BTreeMap::new(),
            alive: vec![true; count],
            fresh: 1,
        }
    }

    fn live(&self) -> Vec<u32> {
        (0..).zip(&self.alive).filter(|(_, alive)| **alive).map(|(worker, _)| worker).collect()
    }

    fn perform(&mut self, me: u32, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Root => {
                    let acts = self.workers[me as usize].rooted(self.now, me, Some(vec![me as u8]));
                    self.perform(me, acts);
                }
                Act::Send { to, word } => self.words.entry((me, to)).or_default().push_back(word),
                Act::Join { circle, members, root } => {
                    assert!(self.sits[me as usize].is_none(), "joined before it left");
                    assert_eq!(root, [members[0] as u8]);
                    let lives = self.lives.clone();
                    self.sits[me as usize] =
                        Some(Sits { circle, members, lives, since: self.now, joined: false });
                }
                Act::Leave { circle, .. } => {
                    assert_eq!(self.sits[me as usize].as_ref().map(|sits| sits.circle), Some(circle));
                    self.sits[me as usize] = None;
                }
            }
        }
    }

    /// One worker looks around, or one word arrives.
    fn step(&mut self, pick: usize) {
        let open: Vec<(u32, u32)> =
            self.words.iter().filter(|(_, words)| !words.is_empty()).map(|(pair, _)| *pair).collect();
        let count = self.workers.len();
        if pick.is_multiple_of(2) || open.is_empty() {
            let me = pick / 2 % count;
            if self.alive[me] {
                let live = self.live();
                let mut view = view(me as u32, &live, live.len() == count);
                if let Some(sits) = &self.sits[me] {
                    view.known.retain(|&member| sits.lives[member as usize] == self.lives[member as usize]);
                }
                self.fresh += 1;
                let fresh = self.fresh;
                let acts = self.workers[me].tick(self.now, &view, || fresh);
                self.perform(me as u32, acts);
            }
            return;
        }
        let pair = open[pick / 2 % open.len()];
        let word = self.words.get_mut(&pair).and_then(VecDeque::pop_front).unwrap();
        if self.alive[pair.1 as usize] {
            let acts = self.workers[pair.1 as usize].heard(self.now, pair.1, pair.0, word);
            self.perform(pair.1, acts);
        }
    }

    /// Ranks are in when those of all members have come, and give up when they don't.
    fn settle(&mut self) {
        for me in 0..self.workers.len() {
            let Some(sits) = self.sits[me].clone().filter(|sits| !sits.joined) else { continue };
            let is_here = |member: &u32| {
                let other = self.sits[*member as usize].as_ref();
                other.is_some_and(|other| other.circle == sits.circle)
            };
            if sits.members.iter().all(is_here) {
                self.workers[me].joined(self.now, sits.circle);
                self.sits[me].as_mut().unwrap().joined = true;
            } else if self.now > sits.since + Duration::from_secs(5) {
                let acts = self.workers[me].ended(self.now, me as u32, sits.circle, "nobody came");
                self.perform(me as u32, acts);
            }
        }
    }
}

proptest! {
    /// Whatever order words arrive in and whoever is lost or comes back meanwhile: once that ends, all live workers sit
    /// in one circle that has all of them.
    #[test]
    fn all_live_workers_end_in_one_circle(
        count in 2usize..5,
        events in prop::collection::vec((0usize..64, 0u8..12, 0usize..5), 0..120),
    ) {
        let mut group = Group::new(count);
        for (pick, event, who) in events {
            let who = who % count;
            match event {
                0 if group.live().len() > 1 => {
                    group.alive[who] = false;
                    group.workers[who] = Assembly::new(group.now);
                    group.sits[who] = None;
                    group.lives[who] += 1;
                    group.words.retain(|(from, to), _| *from != who as u32 && *to != who as u32);
                }
                1 => group.alive[who] = true,
                2 => group.now += Duration::from_millis(400),
                _ => group.step(pick),
            }
            group.settle();
        }
        group.alive.fill(true);
        for round in 0..4000 {
            if round % 40 == 0 {
                group.now += Duration::from_millis(500);
            }
            group.step(round * 7 % 61);
            group.settle();
        }
        let all: Vec<u32> = (0..count as u32).collect();
        let first = group.sits[0].as_ref().unwrap();
        prop_assert_eq!(&first.members, &all);
        let together = |sits: &Option<Sits>| sits.as_ref().is_some_and(|sits| sits.circle == first.circle);
        prop_assert!(group.sits.iter().all(together), "{:?}", group.sits);
    }
}

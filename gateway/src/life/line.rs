//! Who is next of those who wait. Pure.
//!
//! Requests of one key are served in the order of their arrival, keys in turn: a key that asks for much waits for itself.
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// See the module. Requests are numbered by their arrival.
#[derive(Debug, Default)]
pub struct Line {
    waiting: BTreeMap<Arc<str>, BTreeSet<u64>>,
    /// Keys that have somebody waiting; the first one's turn it is.
    turns: VecDeque<Arc<str>>,
}

impl Line {
    /// A request waits; one that has waited before has its place again.
    pub fn join(&mut self, key: &Arc<str>, request: u64) {
        let waiting = self.waiting.entry(key.clone()).or_default();
        if waiting.is_empty() {
            self.turns.push_back(key.clone());
        }
        waiting.insert(request);
    }

    /// A request waits no longer. One that was `served` ends its key's turn.
    pub fn leave(&mut self, key: &Arc<str>, request: u64, served: bool) {
        let Some(waiting) = self.waiting.get_mut(key) else { return };
        if !waiting.remove(&request) {
            return;
        }
        if waiting.is_empty() {
            self.waiting.remove(key);
            self.turns.retain(|turn| turn != key);
        } else if served
            && let Some(place) = self.turns.iter().position(|turn| turn == key)
            && let Some(turn) = self.turns.remove(place)
        {
            self.turns.push_back(turn);
        }
    }

    /// The request whose turn it is.
    pub fn next(&self) -> Option<u64> {
        self.waiting.get(self.turns.front()?)?.first().copied()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn key(name: u8) -> Arc<str> {
        name.to_string().into()
    }

    #[test]
    fn a_key_that_came_first_with_many_does_not_keep_the_others_waiting() {
        let mut line = Line::default();
        let keys: Vec<u8> = (0..6).map(|request| u8::from(request > 3)).collect();
        for (request, name) in keys.iter().enumerate() {
            line.join(&key(*name), request as u64);
        }
        let mut order = Vec::new();
        while let Some(next) = line.next() {
            order.push(next);
            line.leave(&key(keys[usize::try_from(next).unwrap()]), next, true);
        }
        assert_eq!(order, [0, 4, 1, 5, 2, 3]);
        assert!(line.is_empty());
    }

    #[test]
    fn who_comes_back_has_its_place() {
        let mut line = Line::default();
        (0..3).for_each(|request| line.join(&key(0), request));
        line.leave(&key(0), 0, true);
        line.join(&key(0), 0);
        assert_eq!(line.next(), Some(0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join(u8),
        Serve,
        GiveUp(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u8..4).prop_map(Step::Join),
            2 => Just(Step::Serve),
            1 => any::<prop::sample::Index>().prop_map(Step::GiveUp),
        ]
    }

    proptest! {
        /// While a key waits, no other key is served twice more than it is.
        #[test]
        fn keys_take_turns_and_each_is_in_order(steps in prop::collection::vec(step(), 1..200)) {
            let (mut line, mut waiting, mut next_request) = (Line::default(), Vec::<(u8, u64)>::new(), 0);
            // for each key that waits: how often each other was served since it began to wait or was last served
            let mut passed: HashMap<u8, HashMap<u8, u32>> = HashMap::new();
            for step in steps {
                match step {
                    Step::Join(name) => {
                        passed.entry(name).or_default();
                        line.join(&key(name), next_request);
                        waiting.push((name, next_request));
                        next_request += 1;
                    }
                    Step::Serve => {
                        let Some(next) = line.next() else {
                            prop_assert!(waiting.is_empty());
                            continue;
                        };
                        let place = waiting.iter().position(|(_, request)| *request == next).unwrap();
                        let (name, _) = waiting.remove(place);
                        prop_assert!(waiting.iter().all(|(other, request)| *other != name || *request > next));
                        line.leave(&key(name), next, true);
                        passed.remove(&name);
                        for counts in passed.values_mut() {
                            let count = counts.entry(name).or_default();
                            *count += 1;
                            prop_assert!(*count <= 1, "{name} was served twice while another waited");
                        }
                        if waiting.iter().any(|(other, _)| *other == name) {
                            passed.insert(name, HashMap::new());
                        }
                    }
                    Step::GiveUp(index) => {
                        if waiting.is_empty() {
                            continue;
                        }
                        let (name, request) = waiting.remove(index.index(waiting.len()));
                        line.leave(&key(name), request, false);
                        if waiting.iter().all(|(other, _)| *other != name) {
                            passed.remove(&name);
                        }
                    }
                }
                prop_assert_eq!(line.is_empty(), waiting.is_empty());
            }
        }
    }
}

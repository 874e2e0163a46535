//! Stop strings in a stream of text.

use std::collections::{HashMap, VecDeque};

/// Looks for stop strings in text that comes in pieces, and holds back what could still become one.
///
/// The match that is complete first wins, the longest of those that end together: the result does not depend on how
/// the text is cut into pieces. Each byte costs the same whatever the number and length of the strings: they are one
/// automaton (Aho and Corasick 1975).
pub struct StopMatcher {
    /// The root, then every beginning of a stop string.
    nodes: Vec<Node>,
    next: HashMap<(u32, u8), u32>,
    /// The longest beginning of a stop string that the text ends with.
    at: u32,
    held: String,
}

/// A beginning of a stop string.
#[derive(Clone, Copy, Default)]
struct Node {
    /// Its bytes.
    length: usize,
    /// The longest other beginning that it ends with.
    suffix: u32,
    /// Bytes of the longest whole stop string that it ends with; 0 if there is none.
    whole: usize,
    /// Whether a longer stop string begins with it.
    goes_on: bool,
}

impl StopMatcher {
    /// Stop strings must not be empty; empty ones are ignored.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        let mut matcher =
            Self { nodes: vec![Node::default()], next: HashMap::new(), at: 0, held: String::new() };
        for stop in stops {
            matcher.add(stop.as_bytes());
        }
        matcher.link();
        matcher
    }

    fn add(&mut self, stop: &[u8]) {
        let mut at = 0u32;
        for (&byte, length) in stop.iter().zip(1..) {
            self.nodes[at as usize].goes_on = true;
            let new = self.nodes.len() as u32;
            at = *self.next.entry((at, byte)).or_insert(new);
            if at == new {
                self.nodes.push(Node { length, ..Node::default() });
            }
        }
        self.nodes[at as usize].whole = stop.len();
    }

    /// Fills `suffix`, and `whole` of those that only end with a stop string: shorter beginnings first.
    fn link(&mut self) {
        let mut children: Vec<Vec<(u8, u32)>> = vec![Vec::new(); self.nodes.len()];
        for (&(parent, byte), &child) in &self.next {
            children[parent as usize].push((byte, child));
        }
        let mut queue = VecDeque::from([0u32]);
        while let Some(parent) = queue.pop_front() {
            for &(byte, child) in &children[parent as usize] {
                let suffix =
                    if parent == 0 { 0 } else { self.step(self.nodes[parent as usize].suffix, byte) };
                let whole = self.nodes[suffix as usize].whole;
                let node = &mut self.nodes[child as usize];
                node.suffix = suffix;
                node.whole = node.whole.max(whole);
                queue.push_back(child);
            }
        }
    }

    /// The longest beginning of a stop string that a text ends with, if it was `at` before this byte.
    fn step(&self, mut at: u32, byte: u8) -> u32 {
        loop {
            if let Some(&next) = self.next.get(&(at, byte)) {
                return next;
            }
            if at == 0 {
                return 0;
            }
            at = self.nodes[at as usize].suffix;
        }
    }

    /// Takes a piece of text and appends to `text` what is certain not to belong to a stop string. Returns the
    /// stop string that is complete, if one is: `text` then ends before it, and what follows it is gone.
    pub fn push(&mut self, piece: &str, text: &mut String) -> Option<String> {
        let before = self.held.len();
        self.held.push_str(piece);
        for (&byte, end) in piece.as_bytes().iter().zip(before + 1..) {
            self.at = self.step(self.at, byte);
            let whole = self.nodes[self.at as usize].whole;
            if whole > 0 {
                let start = end - whole;
                text.push_str(&self.held[..start]);
                let found = self.held[start..end].to_owned();
                self.held.clear();
                self.at = 0;
                return Some(found);
            }
        }
        self.release(text);
        None
    }

    /// Takes a piece of text in which no stop string counts; one that only begins in it does.
    pub fn pass(&mut self, piece: &str, text: &mut String) {
        self.held.push_str(piece);
        for &byte in piece.as_bytes() {
            self.at = self.step(self.at, byte);
        }
        self.release(text);
    }

    /// Gives up what is held back: no stop string will come of it.
    pub fn flush(&mut self, text: &mut String) {
        text.push_str(&self.held);
        self.held.clear();
        self.at = 0;
    }

    /// Gives out all but the end that a stop string can still begin with. What was pushed are whole characters, and so
    /// are beginnings of stop strings that end with one.
    fn release(&mut self, text: &mut String) {
        while self.at != 0 && !self.nodes[self.at as usize].goes_on {
            self.at = self.nodes[self.at as usize].suffix;
        }
        let certain = self.held.len() - self.nodes[self.at as usize].length;
        text.push_str(&self.held[..certain]);
        self.held.drain(..certain);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, one character at a time.
    fn reference(stops: &[String], text: &str) -> (String, bool) {
        let mut seen = String::new();
        for c in text.chars() {
            seen.push(c);
            if let Some(longest) = stops.iter().filter(|stop| seen.ends_with(*stop)).map(String::len).max() {
                seen.truncate(seen.len() - longest);
                return (seen, true);
            }
        }
        (seen, false)
    }

    fn stream(stops: &[String], pieces: &[String]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops);
        let mut text = String::new();
        for piece in pieces {
            if matcher.push(piece, &mut text).is_some() {
                return (text, true);
            }
        }
        matcher.flush(&mut text);
        (text, false)
    }

    proptest! {
        #[test]
        fn pieces_do_not_change_where_a_text_stops(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
        ) {
            prop_assert_eq!(stream(&stops, &pieces), reference(&stops, &pieces.concat()));
        }

        #[test]
        fn what_is_passed_can_only_begin_a_stop_string(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            passed in prop::collection::vec("[abé]{0,4}", 0..6),
            pushed in prop::collection::vec("[abé]{0,4}", 0..6),
        ) {
            let mut matcher = StopMatcher::new(&stops);
            let mut text = String::new();
            for piece in &passed {
                matcher.pass(piece, &mut text);
            }
            let found = pushed.iter().find_map(|piece| matcher.push(piece, &mut text));
            if found.is_none() {
                matcher.flush(&mut text);
            }
            let mut seen: String = passed.concat();
            let expected = pushed.concat().chars().find_map(|c| {
                seen.push(c);
                stops.iter().filter(|stop| seen.ends_with(*stop)).max_by_key(|stop| stop.len()).cloned()
            });
            seen.truncate(seen.len() - expected.as_ref().map_or(0, String::len));
            prop_assert_eq!((text, found), (seen, expected));
        }

        #[test]
        fn nothing_of_a_stop_string_is_ever_released(
            before in "[xy]{0,6}", stop in "[ab]{1,5}", after in "[a-z]{0,4}",
        ) {
            let text = format!("{before}{stop}{after}");
            let pieces: Vec<String> = text.chars().map(String::from).collect();
            prop_assert_eq!(stream(&[stop], &pieces), (before, true));
        }
    }

    #[test]
    fn many_long_stop_strings_cost_no_more_than_one() {
        let stops: Vec<String> = (0..64).map(|i| format!("{}{i:02}", "ab".repeat(511))).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut text = String::new();
        let started = std::time::Instant::now();
        for _ in 0..1_000_000 {
            assert_eq!(matcher.push("ab", &mut text), None);
        }
        // Far from what it takes, and far from what comparing each string each time would.
        assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
        assert_eq!(matcher.push("63", &mut text), Some(stops[63].clone()));
        assert_eq!(text.len(), 2_000_000 - 1022);
    }

    #[test]
    fn text_is_held_back_only_while_undecided() {
        let mut matcher = StopMatcher::new(&["END".into()]);
        let mut text = String::new();
        assert_eq!(matcher.push("an E", &mut text), None);
        assert_eq!(text, "an ");
        assert_eq!(matcher.push("N", &mut text), None);
        assert_eq!(text, "an ");
        assert_eq!(matcher.push("E", &mut text), None);
        assert_eq!(text, "an EN");
        assert_eq!(matcher.push("ND, and so on", &mut text).as_deref(), Some("END"));
        assert_eq!(text, "an EN");
    }

    #[test]
    fn the_match_that_is_complete_first_wins_however_the_text_is_cut() {
        let cases: [(&[&str], &str, &str); 4] = [
            (&["bcde", "cd"], "abcdef", "ab"),
            (&["cd", "bcde"], "abcdef", "ab"),
            // Those that end together: the longest.
            (&["c", "abc", "bc"], "xabcx", "x"),
            (&["bcx", "d"], "abcd", "abc"),
        ];
        for (stops, text, expected) in cases {
            let stops: Vec<String> = stops.iter().map(|&stop| stop.into()).collect();
            for size in 1..=text.len() {
                let pieces: Vec<String> =
                    text.as_bytes().chunks(size).map(|piece| String::from_utf8_lossy(piece).into()).collect();
                assert_eq!(stream(&stops, &pieces), (expected.into(), true), "{stops:?} in {pieces:?}");
            }
        }
    }
}

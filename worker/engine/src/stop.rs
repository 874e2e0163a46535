//! Stop strings in a stream of text.

/// Looks for stop strings in text that comes in pieces, and holds back what could still become one.
///
/// The match that is complete first wins, the longest of those that end together: the result does not depend on how
/// the text is cut into pieces.
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// Stop strings must not be empty; empty ones are ignored.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new() }
    }

    /// Takes a piece of text and appends to `text` what is certain not to belong to a stop string. Returns the
    /// stop string that is complete, if one is: `text` then ends before it, and what follows it is gone.
    pub fn push(&mut self, piece: &str, text: &mut String) -> Option<String> {
        self.held.push_str(piece);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min();
        if let Some((end, start)) = first {
            text.push_str(&self.held[..start]);
            let found = self.held[start..end].to_owned();
            self.held.clear();
            return Some(found);
        }
        let certain = self.held.len() - self.undecided();
        text.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        None
    }

    /// Gives up what is held back: no stop string will come of it.
    pub fn flush(&mut self, text: &mut String) {
        text.push_str(&self.held);
        self.held.clear();
    }

    /// Length of the longest end of `held` that a stop string begins with.
    fn undecided(&self) -> usize {
        self.stops
            .iter()
            .flat_map(|stop| stop.char_indices().map(move |(end, _)| &stop[..end]))
            .filter(|prefix| self.held.ends_with(prefix))
            .map(str::len)
            .max()
            .unwrap_or(0)
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
        fn nothing_of_a_stop_string_is_ever_released(
            before in "[xy]{0,6}", stop in "[ab]{1,5}", after in "[a-z]{0,4}",
        ) {
            let text = format!("{before}{stop}{after}");
            let pieces: Vec<String> = text.chars().map(String::from).collect();
            prop_assert_eq!(stream(&[stop], &pieces), (before, true));
        }
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

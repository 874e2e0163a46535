//! Lines of logs: pure.
use jiff::Timestamp;

use crate::terminal::line::{Line, Style};

/// Colours of pods, one after the other.
const COLOURS: [u8; 8] = [39, 208, 71, 170, 178, 44, 203, 105];

/// A line that a container wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When; as far as the kubelet says.
    pub at: Option<Timestamp>,
    /// What.
    pub text: String,
}

impl LogLine {
    /// From a line with the kubelet's timestamp in front.
    pub fn read(line: &str) -> Self {
        let line = line.trim_end_matches(['\r', '\n']);
        let stamped = line.split_once(' ').unwrap_or((line, ""));
        match stamped.0.parse::<Timestamp>() {
            Ok(at) => Self { at: Some(at), text: stamped.1.to_owned() },
            Err(_) => Self { at: None, text: line.to_owned() },
        }
    }
}

/// Which of several logs goes on next: the one whose next line is the oldest. A line without a time goes at once: it belongs to
/// the one before it.
pub fn next(heads: &[Option<LogLine>]) -> Option<usize> {
    let present = heads.iter().enumerate().filter_map(|(index, head)| Some((index, head.as_ref()?.at)));
    present.min_by_key(|(index, at)| (*at, *index)).map(|(index, _)| index)
}

/// Writes names in front of lines, in a column, each name in its colour.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    names: Vec<String>,
}

impl Prefixes {
    /// The line as it is shown. What could move the cursor is left out.
    pub fn put(&mut self, pod: &str, text: &str) -> Line {
        let known = self.names.iter().position(|name| name == pod);
        let index = known.unwrap_or_else(|| {
            self.names.push(pod.to_owned());
            self.names.len() - 1
        });
        let width = self.names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let foreground = COLOURS.get(index % COLOURS.len()).copied();
        let text: String = text.chars().filter(|c| !c.is_control() || *c == '\t').collect();
        Line::default()
            .with(format!("{pod:<width$} | "), Style { foreground, ..Style::PLAIN })
            .with(text, Style::PLAIN)
    }

    /// Makes room for these names, so that the first lines are in the same column as later ones.
    pub fn expect(&mut self, pods: impl Iterator<Item = String>) {
        for pod in pods {
            if !self.names.contains(&pod) {
                self.names.push(pod);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_taken_off() {
        let line = LogLine::read("2026-11-27T10:00:00.123456789Z INFO  loading layer 3\n");
        assert_eq!(line.text, "INFO  loading layer 3");
        assert_eq!(line.at.unwrap().to_string(), "2026-11-27T10:00:00.123456789Z");
        assert_eq!(LogLine::read("no time"), LogLine { at: None, text: "no time".into() });
        assert_eq!(LogLine::read("2026-11-27T10:00:00Z").text, "", "an empty line");
    }

    #[test]
    fn the_oldest_goes_first() {
        let at = |second: i64| Some(LogLine { at: Timestamp::from_second(second).ok(), text: String::new() });
        assert_eq!(next(&[at(5), None, at(3)]), Some(2));
        assert_eq!(next(&[at(5), at(5)]), Some(0));
        assert_eq!(next(&[at(5), Some(LogLine { at: None, text: String::new() })]), Some(1));
        assert_eq!(next(&[None, None]), None);
    }

    #[test]
    fn names_stand_in_a_column() {
        let mut prefixes = Prefixes::default();
        prefixes.expect(["a-10".to_owned()].into_iter());
        assert_eq!(prefixes.put("a-1", "x\u{1b}[2Jy").plain(), "a-1  | x[2Jy");
        assert_ne!(prefixes.put("a-10", "").spans[0].style, prefixes.put("a-1", "").spans[0].style);
    }
}

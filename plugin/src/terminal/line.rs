//! Lines of styled words.
use std::fmt::Write as _;

/// How words look. Colours are of the 256 that terminals know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Colour of the letters.
    pub foreground: Option<u8>,
    /// Colour behind them.
    pub background: Option<u8>,
    /// Whether they are bold.
    pub bold: bool,
}

impl Style {
    /// As the terminal writes by itself.
    pub const PLAIN: Self = Self { foreground: None, background: None, bold: false };
    /// What a line is about.
    pub const STRONG: Self = Self { bold: true, ..Self::PLAIN };
    /// What may be overlooked.
    pub const FAINT: Self = Self { foreground: Some(245), ..Self::PLAIN };
    /// All is well.
    pub const GOOD: Self = Self { foreground: Some(71), ..Self::PLAIN };
    /// Something is on its way.
    pub const NOTE: Self = Self { foreground: Some(178), ..Self::PLAIN };
    /// Something is wrong.
    pub const BAD: Self = Self { foreground: Some(203), bold: true, background: None };
    /// Something is lost.
    pub const LOST: Self = Self { foreground: Some(231), background: Some(160), bold: true };
}

/// Words of one style.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The words.
    pub text: String,
    /// How they look.
    pub style: Style,
}

/// One line, without its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// From left to right.
    pub spans: Vec<Span>,
}

impl Line {
    /// Adds words at the right.
    pub fn push(&mut self, text: impl Into<String>, style: Style) {
        let text = text.into();
        match self.spans.last_mut() {
            Some(last) if last.style == style => last.text.push_str(&text),
            _ => self.spans.push(Span { text, style }),
        }
    }

    /// This line, and words at its right.
    #[must_use]
    pub fn with(mut self, text: impl Into<String>, style: Style) -> Self {
        self.push(text, style);
        self
    }

    /// Characters.
    pub fn width(&self) -> usize {
        self.spans.iter().map(|span| span.text.chars().count()).sum()
    }

    /// Leaves out what goes beyond `width` characters.
    #[must_use]
    pub fn clipped(mut self, width: usize) -> Self {
        let mut room = width;
        for span in &mut self.spans {
            let length = span.text.chars().count();
            if length > room {
                span.text = span.text.chars().take(room).collect();
            }
            room = room.saturating_sub(length);
        }
        self.spans.retain(|span| !span.text.is_empty());
        self
    }

    /// The words alone, without blanks at the end.
    pub fn plain(&self) -> String {
        let text: String = self.spans.iter().map(|span| span.text.as_str()).collect();
        text.trim_end().to_owned()
    }

    /// The words, with the escape sequences that colour them.
    pub fn coloured(&self) -> String {
        let mut text = String::new();
        for Span { text: words, style } in &self.spans {
            if *style == Style::PLAIN {
                text.push_str(words);
                continue;
            }
            let mut codes = vec![];
            if style.bold {
                codes.push("1".to_owned());
            }
            codes.extend(style.foreground.map(|colour| format!("38;5;{colour}")));
            codes.extend(style.background.map(|colour| format!("48;5;{colour}")));
            // writing to a String does not fail
            let _ = write!(text, "\x1b[{}m{words}\x1b[0m", codes.join(";"));
        }
        text
    }
}

/// Puts pieces side by side into lines of at most `width` characters, two blanks between them. A piece that is wider
/// than a line is broken between its words, and a word that is wider anywhere.
pub fn flow(pieces: Vec<Line>, width: usize, indent: usize) -> Vec<Line> {
    let width = width.max(1);
    let blanks = " ".repeat(indent.min(width - 1));
    let mut lines: Vec<Line> = vec![];
    // a piece goes on where the one before ended, if all of it fits there
    for piece in pieces {
        match lines.last_mut() {
            Some(line) if line.width() + 2 + piece.width() <= width => line.push("  ", Style::PLAIN),
            Some(_) => lines.push(Line::default().with(&blanks, Style::PLAIN)),
            None => lines.push(Line::default()),
        }
        for Span { text, style } in piece.spans {
            for word in text.split_inclusive(' ') {
                let mut rest: Vec<char> = word.chars().collect();
                while let Some(line) = lines.last_mut() {
                    let room = width.saturating_sub(line.width());
                    // the blank behind a word may be left out at the end of a line
                    let length = rest.len() - usize::from(rest.last() == Some(&' '));
                    if length <= room {
                        rest.truncate(room);
                        line.push(rest.into_iter().collect::<String>(), style);
                        break;
                    }
                    let is_at_begin = line.plain().is_empty();
                    if is_at_begin {
                        line.push(rest.drain(..room).collect::<String>(), style);
                    }
                    lines.push(Line::default().with(&blanks, Style::PLAIN));
                }
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn colours_are_reset_behind_each_span() {
        let line = Line::default().with("a ", Style::PLAIN).with("b", Style::LOST);
        assert_eq!(line.coloured(), "a \u{1b}[1;38;5;231;48;5;160mb\u{1b}[0m");
        assert_eq!((line.plain().as_str(), line.width()), ("a b", 3));
    }

    #[test]
    fn pieces_stay_whole_where_they_fit() {
        let pieces =
            ["one", "two", "three", "a long one"].map(|text| Line::default().with(text, Style::PLAIN));
        let lines: Vec<String> = flow(pieces.to_vec(), 10, 2).iter().map(Line::plain).collect();
        assert_eq!(lines, ["one  two", "  three", "  a long", "  one"]);
    }

    proptest! {
        #[test]
        fn flow_loses_no_letter_and_keeps_the_width(
            pieces in prop::collection::vec("[a-z]{0,30}( [a-z]{1,9}){0,4}", 0..8), width in 1usize..40, indent in 0usize..6,
        ) {
            let lines = flow(pieces.iter().map(|p| Line::default().with(p.clone(), Style::PLAIN)).collect(), width, indent);
            let letters: String = lines.iter().map(|line| line.plain().replace(' ', "")).collect();
            prop_assert_eq!(letters, pieces.concat().replace(' ', ""));
            for line in &lines {
                prop_assert!(line.width() <= width, "{line:?}");
            }
        }
    }
}

//! Writes an answer as it comes.
use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use belay_proto::inference::{FinishReason, GenerateResponse};

use crate::terminal::line::{Line, Style};

/// An answer that is being written.
#[derive(Debug)]
pub struct Answer {
    /// Its text so far.
    pub text: String,
    /// Reasoning so far.
    pub reasoning: String,
    coloured: bool,
    shows_reasoning: bool,
    asked: Instant,
    first: Option<Instant>,
    last: Instant,
    tokens: u64,
    finish: FinishReason,
}

impl Answer {
    /// Asked now. Reasoning is for people only.
    pub fn new(coloured: bool, shows_reasoning: bool) -> Self {
        let now = Instant::now();
        Self {
            text: String::new(),
            reasoning: String::new(),
            coloured,
            shows_reasoning,
            asked: now,
            first: None,
            last: now,
            tokens: 0,
            finish: FinishReason::Unspecified,
        }
    }

    /// Writes a piece.
    ///
    /// # Errors
    /// When nobody reads it.
    pub fn take(&mut self, piece: &GenerateResponse, to: &mut impl Write) -> io::Result<()> {
        if !piece.ids.is_empty() {
            self.last = Instant::now();
            self.first.get_or_insert(self.last);
            self.tokens += u64::try_from(piece.ids.len()).unwrap_or(0);
        }
        if let Some(usage) = &piece.usage {
            self.tokens = u64::from(usage.completion_tokens);
        }
        if piece.finish_reason() != FinishReason::Unspecified {
            self.finish = piece.finish_reason();
        }
        if !piece.reasoning.is_empty() {
            self.reasoning += &piece.reasoning;
            if self.shows_reasoning {
                self.write(&piece.reasoning, Style::FAINT, to)?;
            }
        }
        if !piece.text.is_empty() {
            if self.text.is_empty() && self.shows_reasoning && !self.reasoning.is_empty() {
                to.write_all(if self.reasoning.ends_with('\n') { b"\n" } else { b"\n\n" })?;
            }
            self.text += &piece.text;
            self.write(&piece.text, Style::PLAIN, to)?;
        }
        to.flush()
    }

    /// Ends the last line, if anything was written.
    ///
    /// # Errors
    /// When nobody reads it.
    pub fn end(&self, to: &mut impl Write) -> io::Result<()> {
        let shown = if self.text.is_empty() && self.shows_reasoning { &self.reasoning } else { &self.text };
        if !shown.is_empty() && !shown.ends_with('\n') {
            writeln!(to)?;
        }
        to.flush()
    }

    /// How it went, for people: tokens, how fast, and why it ended if not by itself.
    pub fn summary(&self, stopped: bool) -> Line {
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        let mut text = format!("[{} tokens", self.tokens);
        if let Some(first) = self.first {
            let writing = self.last.saturating_duration_since(first).as_secs_f64();
            // the first token took its time for another reason
            if self.tokens > 1 && writing > 0.0 {
                text += &format!(", {:.1} tokens/s", (self.tokens - 1) as f64 / writing);
            }
            text += &format!(", first after {}", seconds(first.saturating_duration_since(self.asked)));
        }
        if stopped {
            text += ", stopped";
        } else if self.finish == FinishReason::Length {
            text += ", cut off at the most tokens";
        }
        Line::default().with(text + "]", Style::FAINT)
    }

    /// What could move the cursor or speak to the terminal is left out.
    fn write(&self, text: &str, style: Style, to: &mut impl Write) -> io::Result<()> {
        let text: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        match self.coloured {
            true => to.write_all(Line::default().with(text, style).coloured().as_bytes()),
            false => to.write_all(text.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use belay_proto::inference::Usage;

    use super::*;

    fn piece(text: &str, reasoning: &str) -> GenerateResponse {
        GenerateResponse {
            ids: vec![1],
            text: text.into(),
            reasoning: reasoning.into(),
            ..GenerateResponse::default()
        }
    }

    fn shown(coloured: bool, shows_reasoning: bool) -> (String, Answer) {
        let mut answer = Answer::new(coloured, shows_reasoning);
        let mut out = vec![];
        for piece in [piece("", "let me see"), piece("f\u{1b}o", ""), piece("ur", "")] {
            answer.take(&piece, &mut out).unwrap();
        }
        answer.end(&mut out).unwrap();
        (String::from_utf8(out).unwrap(), answer)
    }

    #[test]
    fn reasoning_is_for_people() {
        assert_eq!(shown(false, false).0, "four\n");
        assert_eq!(shown(false, true).0, "let me see\n\nfour\n");
        assert_eq!(shown(true, true).0, "\u{1b}[38;5;245mlet me see\u{1b}[0m\n\nfour\n");
        let (_, answer) = shown(false, false);
        assert_eq!((answer.text.as_str(), answer.reasoning.as_str()), ("f\u{1b}our", "let me see"));
    }

    #[test]
    fn the_summary_counts_what_the_worker_counts() {
        let (_, mut answer) = shown(false, false);
        assert!(answer.summary(true).plain().starts_with("[3 tokens"));
        assert!(answer.summary(true).plain().ends_with("stopped]"));
        let mut last = piece("", "");
        last.usage = Some(Usage { completion_tokens: 9, ..Usage::default() });
        last.set_finish_reason(FinishReason::Length);
        answer.take(&last, &mut vec![]).unwrap();
        let summary = answer.summary(false).plain();
        assert!(
            summary.starts_with("[9 tokens") && summary.ends_with("cut off at the most tokens]"),
            "{summary}"
        );
    }
}

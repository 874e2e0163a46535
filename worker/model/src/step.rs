//! What one call of the forward works on: the segments, and where their rows lie.

use std::ops::Range;

use crate::cache::REWINDABLE;
use crate::config::Config;
use crate::error::ForwardError;
use crate::numerics::Numerics;
use crate::rope::{self, Frequencies};
use crate::state::State;

/// The next tokens of one sequence.
pub struct Segment<'a> {
    /// The sequence so far; advanced by the step.
    pub state: &'a mut State,
    /// Tokens to feed, at least one.
    pub tokens: &'a [u32],
    /// Which rows' logits to compute.
    pub logits: Logits,
    /// Whether [`Model::rewind`](crate::Model::rewind) may take back some of these tokens. There may be up to 8 then,
    /// and until the next step the state holds what it would otherwise give back.
    pub rewindable: bool,
}

/// Rows of a segment whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: a chunk of a prompt.
    None,
    /// The last token's: what decoding needs.
    Last,
    /// All.
    All,
}

/// A segment's rows in the step, and its place in the sequence.
pub(crate) struct Span {
    pub(crate) rows: Range<usize>,
    /// Position of the first row.
    pub(crate) start: usize,
    /// Whether rows that a later step does not need are kept all the same.
    pub(crate) rewindable: bool,
}

impl Span {
    /// Entries of `ratio` tokens that these rows close.
    pub(crate) fn closes(&self, ratio: usize) -> Range<usize> {
        self.start / ratio..(self.start + self.rows.len()) / ratio
    }
}

/// Rotary rows of the entries that close in this step, for one ratio.
pub(crate) struct EntryTable {
    pub(crate) ratio: usize,
    /// First row of each span.
    pub(crate) first: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// Host-side plan of one step.
pub(crate) struct Step {
    pub(crate) ids: Vec<u32>,
    pub(crate) spans: Vec<Span>,
    /// Rows whose logits are wanted.
    pub(crate) wanted: Vec<u32>,
    pub(crate) plain_table: Vec<f32>,
    pub(crate) compressed_table: Vec<f32>,
    pub(crate) entry_tables: Vec<EntryTable>,
    pub(crate) numerics: Numerics,
}

impl Step {
    /// A step of the segments before `cut`, and one of the others, if there are any.
    pub(crate) fn plan_parts(
        segments: &[Segment<'_>],
        cut: usize,
        config: &Config,
        frequencies: &Frequencies,
        numerics: Numerics,
    ) -> Result<Vec<Self>, ForwardError> {
        let (first, second) = segments.split_at(cut);
        let mut steps = vec![Self::plan(first, config, frequencies, numerics)?];
        if !second.is_empty() {
            let step = Self::plan(second, config, frequencies, numerics);
            steps.push(step.map_err(|error| error.behind(cut))?);
        }
        Ok(steps)
    }

    /// Checks the segments and lays out their rows.
    fn plan(
        segments: &[Segment<'_>],
        config: &Config,
        frequencies: &Frequencies,
        numerics: Numerics,
    ) -> Result<Self, ForwardError> {
        let mut step = Self {
            ids: Vec::new(),
            spans: Vec::with_capacity(segments.len()),
            wanted: Vec::new(),
            plain_table: Vec::new(),
            compressed_table: Vec::new(),
            entry_tables: Vec::new(),
            numerics,
        };
        for (index, segment) in segments.iter().enumerate() {
            check(index, segment, config)?;
            let first = step.ids.len();
            step.ids.extend_from_slice(segment.tokens);
            let rows = first..step.ids.len();
            match segment.logits {
                Logits::None => {}
                Logits::Last => step.wanted.push(rows.end as u32 - 1),
                Logits::All => step.wanted.extend(rows.start as u32..rows.end as u32),
            }
            let (start, rewindable) = (segment.state.position(), segment.rewindable);
            step.spans.push(Span { rows, start, rewindable });
        }
        step.add_tables(config, frequencies);
        Ok(step)
    }

    /// Rows of a layer that has a window only: for each segment its ids, and the position of the first.
    pub(crate) fn of_window(
        segments: impl Iterator<Item = (Vec<u32>, usize)>,
        frequencies: &Frequencies,
        numerics: Numerics,
    ) -> Self {
        let mut step = Self {
            ids: Vec::new(),
            spans: Vec::new(),
            wanted: Vec::new(),
            plain_table: Vec::new(),
            compressed_table: Vec::new(),
            entry_tables: Vec::new(),
            numerics,
        };
        for (ids, start) in segments {
            let first = step.ids.len();
            rope::append_table(&frequencies.plain, start..start + ids.len(), &mut step.plain_table);
            step.ids.extend(ids);
            step.spans.push(Span { rows: first..step.ids.len(), start, rewindable: false });
        }
        step
    }

    pub(crate) fn rows(&self) -> usize {
        self.ids.len()
    }

    /// The table for a layer's entries. Every ratio of the configuration has one.
    pub(crate) fn entry_table(&self, ratio: usize) -> Option<usize> {
        self.entry_tables.iter().position(|table| table.ratio == ratio)
    }

    fn add_tables(&mut self, config: &Config, frequencies: &Frequencies) {
        for span in &self.spans {
            let positions = span.start..span.start + span.rows.len();
            rope::append_table(&frequencies.plain, positions.clone(), &mut self.plain_table);
            rope::append_table(&frequencies.compressed, positions, &mut self.compressed_table);
        }
        for ratio in config.ratios() {
            let mut table = EntryTable { ratio, first: Vec::new(), values: Vec::new() };
            for span in &self.spans {
                table.first.push(table.values.len() / config.rope_dim);
                // an entry is rotated to the first position of its own window
                let positions = span.closes(ratio).map(|entry| entry * ratio);
                rope::append_table(&frequencies.compressed, positions, &mut table.values);
            }
            self.entry_tables.push(table);
        }
    }
}

fn check(index: usize, segment: &Segment<'_>, config: &Config) -> Result<(), ForwardError> {
    let invalid = |message: String| Err(ForwardError::Invalid { segment: index, message });
    if segment.state.is_poisoned() {
        return Err(ForwardError::Poisoned { segment: index });
    }
    if segment.tokens.is_empty() {
        return invalid("no tokens".to_owned());
    }
    if segment.rewindable && segment.tokens.len() > REWINDABLE {
        return invalid(format!(
            "{} tokens are more than the {REWINDABLE} that can be taken back",
            segment.tokens.len()
        ));
    }
    let end = segment.state.position() + segment.tokens.len();
    if end > config.max_positions {
        return invalid(format!(
            "{end} tokens are more than max_position_embeddings {}",
            config.max_positions
        ));
    }
    match segment.tokens.iter().find(|&&id| id as usize >= config.vocab_size) {
        Some(id) => invalid(format!("token {id} is outside the vocabulary of {}", config.vocab_size)),
        None => Ok(()),
    }
}

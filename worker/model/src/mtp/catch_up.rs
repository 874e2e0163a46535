//! Keys of the rows whose next token has become known, and the streams that wait for theirs.
//!
//! A state holds the trunk's streams of its last token. The row of token p takes them together with token p + 1, so a
//! step brings the keys of the token before it and of all its own but the last. Whatever was there of a token that was
//! taken back, or of a guess, is written over before anybody reads it.

use std::ops::Range;

use belay_backend::{Backend, Rows};

use super::Mtp;
use crate::config::Config;
use crate::error::ForwardError;
use crate::forward::Model;
use crate::scratch::Temporaries;
use crate::step::{Segment, Step};

/// What a step leaves to do for the draft stage, for each of its segments.
pub(crate) struct CatchUp(Vec<Share>);

struct Share {
    /// Positions whose keys are due.
    due: Range<usize>,
    /// Positions whose streams are kept.
    wait: Range<usize>,
}

impl CatchUp {
    pub(crate) fn plan(segments: &[Segment<'_>], config: &Config) -> Self {
        Self(segments.iter().map(|segment| Share::plan(segment, config.window)).collect())
    }

    /// Rows that the stage takes.
    pub(crate) fn rows(&self) -> usize {
        self.0.iter().map(|share| share.due.len()).sum()
    }
}

impl Share {
    fn plan(segment: &Segment<'_>, window: usize) -> Self {
        let start = segment.state.position();
        let last = start + segment.tokens.len() - 1;
        let due = start.saturating_sub(1)..last;
        if segment.rewindable {
            return Self { due, wait: start..last + 1 };
        }
        // the row of the last token sees no further back than its window
        let visible = (last + 1).saturating_sub(window);
        Self { due: due.start.max(visible).min(last)..last, wait: last..last + 1 }
    }
}

impl<B: Backend> Model<B> {
    /// After the trunk: keeps the step's last streams out of `t`, and gives the stage the keys that are due.
    pub(crate) fn catch_up(
        &self,
        mtp: &Mtp<B>,
        plan: &CatchUp,
        step: &Step,
        t: &mut Temporaries<B>,
        arena: &mut B::Arena,
        segments: &[Segment<'_>],
    ) -> Result<(), ForwardError> {
        let backend = &*self.backend;
        let width = self.config.streams * self.config.hidden_size;
        let mut row = 0;
        let mut places = Vec::with_capacity(segments.len());
        for ((share, segment), span) in plan.0.iter().zip(segments).zip(&step.spans) {
            let Some(part) = &segment.state.layout().streams else { continue };
            let streams = segment.state.rows(part);
            let row_of = |position: usize| span.rows.start + position - span.start;
            let due = &share.due;
            let before = due.start..due.end.min(span.start).max(due.start);
            let kept = Rows { first: row, count: before.len(), width };
            backend.fetch(arena, streams, before.start, &mut t.stage_x, kept)?;
            if before.end < due.end {
                let range = row_of(before.end) * width..row_of(due.end) * width;
                backend.copy(&t.streams, range, &mut t.stage_x, (row + before.len()) * width)?;
            }
            row += due.len();
            let next = &segment.tokens[due.start + 1 - span.start..due.end + 1 - span.start];
            places.push((next.to_vec(), due.start));
            let waiting = Rows { first: row_of(share.wait.start), count: share.wait.len(), width };
            backend.store(&t.streams, waiting, arena, streams, share.wait.start)?;
        }
        let step = Step::of_window(places.into_iter(), &self.frequencies, self.numerics);
        if step.rows() > 0 {
            self.upload_tables(&step, t)?;
            mtp.feed_keys(backend, &self.embed, &step, t, arena, segments)?;
        }
        Ok(())
    }
}

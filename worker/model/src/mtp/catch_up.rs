//! Keys of the rows whose next token has become known, and the streams that wait for theirs.

use std::ops::Range;

use belay_backend::Backend;

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
    /// Positions of the step's tokens that wait.
    wait: Range<usize>,
    /// From here on the rows wait.
    settled: usize,
}

impl CatchUp {
    pub(crate) fn plan<B: Backend>(segments: &[Segment<'_, B>], config: &Config) -> Self {
        Self(segments.iter().map(|segment| Share::plan(segment, config.window)).collect())
    }

    /// Rows that the stage takes.
    pub(crate) fn rows(&self) -> usize {
        self.0.iter().map(|share| share.due.len()).sum()
    }
}

impl Share {
    fn plan<B: Backend>(segment: &Segment<'_, B>, window: usize) -> Self {
        let from = segment.state.draft.as_ref().map_or(0, |draft| draft.settled);
        let start = segment.state.position;
        let end = start + segment.tokens.len();
        let settled = end - 1;
        Self { due: visible(from..settled, window), wait: settled..end, settled }
    }
}

/// The row behind `rows` sees no further back than its window.
fn visible(rows: Range<usize>, window: usize) -> Range<usize> {
    rows.start.max((rows.end + 1).saturating_sub(window)).min(rows.end)..rows.end
}

impl<B: Backend> Model<B> {
    /// After the trunk: takes the step's last streams out of `t`, and gives the stage the keys that are due.
    pub(crate) fn catch_up(
        &self,
        mtp: &Mtp<B>,
        plan: &CatchUp,
        step: &Step,
        t: &mut Temporaries<B>,
        segments: &mut [Segment<'_, B>],
    ) -> Result<(), ForwardError> {
        let backend = &*self.backend;
        let width = self.config.streams * self.config.hidden_size;
        let mut row = 0;
        let mut places = Vec::with_capacity(segments.len());
        for ((share, segment), span) in plan.0.iter().zip(segments.iter_mut()).zip(&step.spans) {
            let Some(draft) = &mut segment.state.draft else { continue };
            let row_of = |position: usize| span.rows.start + position - span.start;
            let before = share.due.start..share.due.end.min(span.start).max(share.due.start);
            for position in before.clone() {
                draft.take(backend, position, &mut t.stage_x, row + position - share.due.start)?;
            }
            if before.end < share.due.end {
                let range = row_of(before.end) * width..row_of(share.due.end) * width;
                backend.copy(&t.streams, range, &mut t.stage_x, (row + before.len()) * width)?;
            }
            row += share.due.len();
            let next = |position: usize| match (position + 1).checked_sub(span.start) {
                Some(at) => segment.tokens[at],
                None => draft.id(position + 1),
            };
            places.push((share.due.clone().map(next).collect(), share.due.start));
            for position in share.wait.clone() {
                let id = segment.tokens[position - span.start];
                draft.keep(backend, position, id, &t.streams, row_of(position))?;
            }
        }
        self.feed_keys(mtp, places, t, segments)?;
        for (share, segment) in plan.0.iter().zip(segments) {
            if let Some(draft) = &mut segment.state.draft {
                draft.settled = share.settled;
            }
        }
        Ok(())
    }

    /// Keys of rows whose streams are in `t.stage_x`; `places`: each segment's next ids, and its first position.
    pub(super) fn feed_keys(
        &self,
        mtp: &Mtp<B>,
        places: Vec<(Vec<u32>, usize)>,
        t: &mut Temporaries<B>,
        segments: &mut [Segment<'_, B>],
    ) -> Result<(), ForwardError> {
        let step = Step::of_window(places.into_iter(), &self.frequencies, self.numerics);
        if step.rows() > 0 {
            self.upload_tables(&step, t)?;
            mtp.feed_keys(&self.backend, &self.embed, &step, t, segments)?;
        }
        Ok(())
    }
}

//! The layers, over all rows of a step at once or over two halves that take turns.
//!
//! ```text
//! half A  attend 0 | exchange 0            | attend 1 (while B's is out) | exchange 1 …
//! half B           | attend 0 (meanwhile)  | exchange 0                  | attend 1 …
//! ```
//!
//! A segment is never cut, so each half is a step of its own that shares nothing with the other but the arena.

use std::ops::Range;

use belay_backend::{Backend, Fabric};

use crate::error::ForwardError;
use crate::forward::Model;
use crate::mtp::CatchUp;
use crate::scratch::{HostTemporaries, Scratch, Temporaries};
use crate::step::{Segment, Step};
use crate::trace::Trace;

/// What is computed together, and where.
pub(crate) struct Part<'a, B: Backend> {
    pub(crate) step: &'a Step,
    /// Those of the call's segments that it has.
    pub(crate) segments: Range<usize>,
    pub(crate) plan: Option<CatchUp>,
    pub(crate) t: &'a mut Temporaries<B>,
    host: &'a mut HostTemporaries,
}

impl<B: Backend> Model<B> {
    /// The segment at which a second half begins; all of them if there is to be none.
    pub(crate) fn cut(&self, segments: &[Segment<'_>]) -> usize {
        let rows =
            |segments: &[Segment<'_>]| -> usize { segments.iter().map(|segment| segment.tokens.len()).sum() };
        let all = rows(segments);
        if segments.len() < 2 || self.halves_from.is_none_or(|from| all < from) {
            return segments.len();
        }
        let uneven = |cut: &usize| rows(&segments[..*cut]).abs_diff(all - rows(&segments[..*cut]));
        (1..segments.len()).min_by_key(uneven).unwrap_or(segments.len())
    }

    pub(crate) fn parts<'a>(
        &self,
        steps: &'a [Step],
        segments: &[Segment<'_>],
        cut: usize,
        scratch: &'a mut Scratch<B>,
    ) -> Result<Vec<Part<'a, B>>, ForwardError> {
        let rooms = scratch.rooms(steps.len());
        let ranges = [0..cut, cut..segments.len()];
        let mut parts = Vec::with_capacity(steps.len());
        for ((step, room), segments_of_it) in steps.iter().zip(rooms).zip(ranges) {
            let mine = &segments[segments_of_it.clone()];
            let plan = self.mtp.as_ref().map(|_| CatchUp::plan(mine, &self.config));
            let rows = plan.as_ref().map_or(0, CatchUp::rows).max(step.rows());
            let (t, host) = room.reserve(&*self.backend, &self.config, rows, step.wanted.len())?;
            parts.push(Part { step, segments: segments_of_it, plan, t, host });
        }
        Ok(parts)
    }

    /// All layers, for all rows; the last streams stay in each part's temporaries.
    pub(crate) fn run(
        &self,
        parts: &mut [Part<'_, B>],
        arena: &mut B::Arena,
        segments: &[Segment<'_>],
        fabric: &dyn Fabric,
        trace: &mut dyn Trace,
    ) -> Result<(), ForwardError> {
        let backend = &*self.backend;
        for part in &mut *parts {
            self.upload_tables(part.step, part.t)?;
            backend.embed(self.embed.matrix(), &part.step.ids, self.config.streams, &mut part.t.streams)?;
        }
        match parts {
            [whole] => {
                for (index, layer) in self.layers.iter().enumerate() {
                    let Part { step, t, host, .. } = &mut *whole;
                    layer.forward(backend, step, t, host, arena, segments, fabric, trace)?;
                    self.show(index, whole, trace)?;
                }
            }
            [a, b] => {
                self.attend(0, a, arena, segments, trace)?;
                for (index, layer) in self.layers.iter().enumerate() {
                    let Part { step, t, host, .. } = &mut *a;
                    layer.mix(backend, step, t, host, fabric, || {
                        self.attend(index, b, arena, segments, trace)
                    })?;
                    self.show(index, a, trace)?;
                    let Part { step, t, host, .. } = &mut *b;
                    layer.mix(backend, step, t, host, fabric, || {
                        self.attend(index + 1, a, arena, segments, trace)
                    })?;
                    self.show(index, b, trace)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A layer's own part; nothing behind the last layer.
    fn attend(
        &self,
        layer: usize,
        part: &mut Part<'_, B>,
        arena: &mut B::Arena,
        segments: &[Segment<'_>],
        trace: &mut dyn Trace,
    ) -> Result<(), ForwardError> {
        let Some(layer) = self.layers.get(layer) else { return Ok(()) };
        let mine = &segments[part.segments.clone()];
        layer.attend(&self.backend, part.step, part.t, part.host, arena, mine, trace)
    }

    fn show(&self, layer: usize, part: &Part<'_, B>, trace: &mut dyn Trace) -> Result<(), ForwardError> {
        if trace.wants_streams() {
            let width = self.config.streams * self.config.hidden_size;
            let mut streams = vec![0.0; part.step.rows() * width];
            self.backend.read(&part.t.streams, 0, &mut streams)?;
            trace.streams(layer, &streams);
        }
        Ok(())
    }
}

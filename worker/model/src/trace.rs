use belay_backend::Route;

/// Sees what a step decides. Rows are those that are computed together, segment after segment: the whole step, or each of
/// its halves.
pub trait Trace {
    /// Routes of a layer, by row, experts ascending.
    fn routes(&mut self, _layer: usize, _routes: &[Route]) {}
    /// Whether [`Trace::blocks`] is to be called.
    fn wants_blocks(&self) -> bool {
        false
    }
    /// Entries that the indexer of a layer selected: `[rows, k]`, ascending, −1 after the last.
    fn blocks(&mut self, _layer: usize, _k: usize, _chosen: &[i32]) {}
    /// Whether [`Trace::streams`] is to be called.
    fn wants_streams(&self) -> bool {
        false
    }
    /// Residual streams after a layer: `[rows, M · D]`.
    fn streams(&mut self, _layer: usize, _streams: &[f32]) {}
    /// Logits of the draft stage's guess `ahead` tokens after the given one: `[sequences that still draft, V]`.
    fn draft_logits(&mut self, _ahead: usize, _logits: &[f32]) {}
}

/// Looks at nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTrace;

impl Trace for NoTrace {}

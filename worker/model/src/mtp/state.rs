//! What a sequence keeps for the draft stage, beside the window of its layer.

use belay_backend::{Backend, Result};

use crate::config::Config;

/// The trunk's last streams of the tokens that the stage has not taken yet.
///
/// The row of token p needs token p + 1, so at least the last token's streams wait. Those of a step that may be
/// taken back wait as well, and the token before it: which token follows is then known only when the step is final.
pub(crate) struct DraftState<B: Backend> {
    /// `[slots, M · D]`: position p in row p mod slots.
    pub(crate) streams: B::Buffer,
    /// Token at position p in place p mod slots.
    ids: Vec<u32>,
    /// M · D
    width: usize,
    /// The stage has the keys of the rows before this one; from here on they wait.
    pub(crate) settled: usize,
}

/// The token before a step that may be taken back, its first token, and its drafts.
fn slots(config: &Config) -> usize {
    config.draft_tokens + 2
}

impl<B: Backend> DraftState<B> {
    pub(crate) fn new(backend: &B, config: &Config) -> Result<Self> {
        Ok(Self {
            streams: backend.alloc(elements(config))?,
            ids: vec![0; slots(config)],
            width: config.streams * config.hidden_size,
            settled: 0,
        })
    }

    pub(crate) fn fork(&self, backend: &B) -> Result<Self> {
        let len = backend.len(&self.streams);
        let mut streams = backend.alloc(len)?;
        backend.copy(&self.streams, 0..len, &mut streams, 0)?;
        Ok(Self { streams, ids: self.ids.clone(), width: self.width, settled: self.settled })
    }

    /// Keeps row `row` of `from`, `[·, M · D]`, as that of `position`.
    pub(crate) fn keep(
        &mut self,
        backend: &B,
        position: usize,
        id: u32,
        from: &B::Buffer,
        row: usize,
    ) -> Result<()> {
        let slot = position % self.ids.len();
        self.ids[slot] = id;
        let range = row * self.width..(row + 1) * self.width;
        backend.copy(from, range, &mut self.streams, slot * self.width)
    }

    /// Copies the streams of `position` to row `row` of `to`.
    pub(crate) fn take(&self, backend: &B, position: usize, to: &mut B::Buffer, row: usize) -> Result<()> {
        let first = position % self.ids.len() * self.width;
        backend.copy(&self.streams, first..first + self.width, to, row * self.width)
    }

    /// The token at a position that waits.
    pub(crate) fn id(&self, position: usize) -> u32 {
        self.ids[position % self.ids.len()]
    }
}

/// Elements on the device, for any state.
pub(crate) fn elements(config: &Config) -> usize {
    if config.draft_tokens == 0 { 0 } else { slots(config) * config.streams * config.hidden_size }
}

//! What a sequence carries from step to step.

use belay_backend::{Backend, Result};

use crate::config::{Config, LayerKind};
use crate::mtp::{self, DraftState};

/// Entries that a compressor's cache first has room for.
const FIRST_ENTRIES: usize = 16;

/// Decode state of one sequence in every layer.
///
/// After n tokens it is the same, bit for bit, however these were cut into steps.
pub struct State<B: Backend> {
    pub(crate) position: usize,
    pub(crate) poisoned: bool,
    pub(crate) layers: Vec<LayerState<B>>,
    /// If the draft stage is used.
    pub(crate) draft: Option<DraftState<B>>,
}

/// Upper bound of the bytes that a state takes after `tokens` tokens.
pub(crate) fn bytes_after(config: &Config, tokens: usize) -> u64 {
    let compressor = |kind: LayerKind, width: usize| {
        let overlap = if kind.overlaps() { 2 } else { 1 };
        let open = 2 * overlap * kind.ratio() * overlap * width;
        // capacity doubles, and grows to what a step needs at least
        let entries = (2 * tokens / kind.ratio()).max(FIRST_ENTRIES) * width;
        open + entries
    };
    let layer = |kind: &LayerKind| {
        let ring = config.window * config.head_dim;
        let main = if kind.ratio() > 0 { compressor(*kind, config.head_dim) } else { 0 };
        let index = match config.indexer {
            Some(indexer) if kind.has_indexer() => compressor(*kind, indexer.head_dim),
            _ => 0,
        };
        ring + main + index
    };
    4 * (config.layers.iter().map(layer).sum::<usize>() + mtp::elements(config)) as u64
}

/// One layer's part.
pub(crate) struct LayerState<B: Backend> {
    /// `[window, d]`: position p in row p mod window.
    pub(crate) ring: B::Buffer,
    /// Compressed keys, in layers with a compressor.
    pub(crate) main: Option<CompressorState<B>>,
    /// Indexer keys, in layers with an indexer.
    pub(crate) index: Option<CompressorState<B>>,
}

/// A compressor's open window and the entries it has closed.
pub(crate) struct CompressorState<B: Backend> {
    /// `[co · ratio, co · width]`.
    pub(crate) values: B::Buffer,
    /// The same shape, bias added.
    pub(crate) gates: B::Buffer,
    /// `[capacity, width]`; position / ratio of them are valid.
    pub(crate) entries: B::Buffer,
    width: usize,
}

impl<B: Backend> State<B> {
    pub(crate) fn new(backend: &B, config: &Config) -> Result<Self> {
        let layers = config.layers.iter().map(|&kind| LayerState::new(backend, config, kind));
        let draft = if config.draft_tokens > 0 { Some(DraftState::new(backend, config)?) } else { None };
        Ok(Self { position: 0, poisoned: false, layers: layers.collect::<Result<_>>()?, draft })
    }

    /// Tokens that went in.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether a step with this state failed: what it holds is then undefined, and it is refused from now on.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    pub(crate) fn fork(&self, backend: &B) -> Result<Self> {
        let layers = self.layers.iter().map(|layer| layer.fork(backend));
        let draft = self.draft.as_ref().map(|draft| draft.fork(backend)).transpose()?;
        let (position, poisoned) = (self.position, self.poisoned);
        Ok(Self { position, poisoned, layers: layers.collect::<Result<_>>()?, draft })
    }

    pub(crate) fn bytes(&self, backend: &B) -> u64 {
        let elements: usize = self.layers.iter().map(|layer| layer.elements(backend)).sum();
        let draft = self.draft.as_ref().map_or(0, |draft| backend.len(&draft.streams));
        4 * (elements + draft) as u64
    }
}

impl<B: Backend> LayerState<B> {
    fn new(backend: &B, config: &Config, kind: LayerKind) -> Result<Self> {
        let compressor = |width| CompressorState::new(backend, kind, width);
        Ok(Self {
            ring: backend.alloc(config.window * config.head_dim)?,
            main: if kind.ratio() > 0 { Some(compressor(config.head_dim)?) } else { None },
            index: match config.indexer {
                Some(indexer) if kind.has_indexer() => Some(compressor(indexer.head_dim)?),
                _ => None,
            },
        })
    }

    fn fork(&self, backend: &B) -> Result<Self> {
        let compressor =
            |state: &Option<CompressorState<B>>| state.as_ref().map(|state| state.fork(backend)).transpose();
        Ok(Self {
            ring: copy_of(backend, &self.ring)?,
            main: compressor(&self.main)?,
            index: compressor(&self.index)?,
        })
    }

    fn elements(&self, backend: &B) -> usize {
        let compressors = self.main.iter().chain(&self.index);
        backend.len(&self.ring) + compressors.map(|state| state.elements(backend)).sum::<usize>()
    }
}

impl<B: Backend> CompressorState<B> {
    fn new(backend: &B, kind: LayerKind, width: usize) -> Result<Self> {
        let overlap = if kind.overlaps() { 2 } else { 1 };
        let len = overlap * kind.ratio() * overlap * width;
        let mut gates = backend.alloc(len)?;
        backend.fill(&mut gates, f32::NEG_INFINITY)?;
        Ok(Self { values: backend.alloc(len)?, gates, entries: backend.alloc(FIRST_ENTRIES * width)?, width })
    }

    /// Makes room for `count` entries in all.
    pub(crate) fn reserve(&mut self, backend: &B, count: usize) -> Result<()> {
        let held = backend.len(&self.entries);
        if count * self.width > held {
            let mut larger = backend.alloc((2 * held).max(count * self.width))?;
            backend.copy(&self.entries, 0..held, &mut larger, 0)?;
            self.entries = larger;
        }
        Ok(())
    }

    fn fork(&self, backend: &B) -> Result<Self> {
        Ok(Self {
            values: copy_of(backend, &self.values)?,
            gates: copy_of(backend, &self.gates)?,
            entries: copy_of(backend, &self.entries)?,
            width: self.width,
        })
    }

    fn elements(&self, backend: &B) -> usize {
        [&self.values, &self.gates, &self.entries].map(|buffer| backend.len(buffer)).iter().sum()
    }
}

fn copy_of<B: Backend>(backend: &B, buffer: &B::Buffer) -> Result<B::Buffer> {
    let len = backend.len(buffer);
    let mut copy = backend.alloc(len)?;
    backend.copy(buffer, 0..len, &mut copy, 0)?;
    Ok(copy)
}

//! Pools every `ratio` tokens into one entry: of the main keys, or of the indexer's.

use belay_backend::{Backend, Compress, KEY_BLOCK, Precision, Result, Rotary, Rows};

use crate::cache::{CacheLayout, CompressorParts};
use crate::checkpoint::CheckpointError;
use crate::config::{Config, LayerKind};
use crate::linear::{Linear, Loader};
use crate::scratch::Temporaries;
use crate::state::State;
use crate::step::Step;

/// Which rounding of the published code an entry gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Keys of the core attention.
    Main,
    /// Keys of the indexer.
    Index,
}

pub(crate) struct Compressor<B: Backend> {
    wkv: Linear<B>,
    wgate: Linear<B>,
    /// `ape`, [ratio, co · width]
    bias: B::Buffer,
    norm: B::Buffer,
    ratio: usize,
    overlap: bool,
    width: usize,
    rope_dim: usize,
    norm_eps: f32,
    role: Role,
}

impl<B: Backend> Compressor<B> {
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        config: &Config,
        name: &str,
        kind: LayerKind,
        width: usize,
        role: Role,
    ) -> Result<Self, CheckpointError> {
        let gate_width = if kind.overlaps() { 2 * width } else { width };
        Ok(Self {
            wkv: loader.linear_in(Precision::Full, &format!("{name}.wkv"), gate_width, config.hidden_size)?,
            wgate: loader.linear_in(
                Precision::Full,
                &format!("{name}.wgate"),
                gate_width,
                config.hidden_size,
            )?,
            bias: loader.values(&format!("{name}.ape"), kind.ratio(), gate_width)?,
            norm: loader.vector(&format!("{name}.norm.weight"), width)?,
            ratio: kind.ratio(),
            overlap: kind.overlaps(),
            width,
            rope_dim: config.rope_dim,
            norm_eps: config.norm_eps,
            role,
        })
    }

    pub(crate) fn ratio(&self) -> usize {
        self.ratio
    }

    /// Values and gates of all rows, into `t.values` and `t.gates`.
    pub(crate) fn project(&self, backend: &B, t: &mut Temporaries<B>, rows: usize) -> Result<()> {
        self.wkv.apply(backend, &t.x, rows, &mut t.values)?;
        self.wgate.apply(backend, &t.x, rows, &mut t.gates)
    }

    /// Feeds one segment's rows and appends the entries they close.
    pub(crate) fn feed(
        &self,
        backend: &B,
        step: &Step,
        span: usize,
        t: &mut Temporaries<B>,
        arena: &mut B::Arena,
        state: &State,
        parts: &CompressorParts,
    ) -> Result<()> {
        let place = &step.spans[span];
        let closed = place.closes(self.ratio);
        let end = place.start + place.rows.len();
        let op = Compress {
            values: &t.values,
            gates: &t.gates,
            bias: &self.bias,
            rows: place.rows.clone(),
            start: place.start,
            ratio: self.ratio,
            overlap: self.overlap,
            width: self.width,
            open: state.rows(&parts.open),
            keep: if place.rewindable {
                place.start
            } else {
                CacheLayout::open_from(self.ratio, self.overlap, end)
            },
        };
        backend.compress(&op, arena, &mut t.pooled)?;
        let Some(table) = step.entry_table(self.ratio).filter(|_| !closed.is_empty()) else {
            return Ok(());
        };
        let entries = Rows { first: 0, count: closed.len(), width: self.width };
        backend.rms_norm(&t.pooled, entries, &self.norm, self.norm_eps, &mut t.closed, 0)?;
        let rotary = Rotary { heads: 1, channels: self.rope_dim, inverse: false };
        let first = step.entry_tables[table].first[span];
        backend.rope(&mut t.closed, entries, rotary, &t.entry_tables[table], first)?;
        match self.role {
            Role::Main if step.numerics.keys => {
                backend.round_e4m3(&mut t.closed, entries, 0..self.width - self.rope_dim, KEY_BLOCK)?;
            }
            Role::Index if step.numerics.indexer => {
                backend.round_hadamard_e2m1(&mut t.closed, entries, self.width)?;
            }
            _ => {}
        }
        backend.store(&t.closed, entries, arena, state.rows(&parts.entries), closed.start)
    }
}

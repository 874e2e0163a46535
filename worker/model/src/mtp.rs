//! The classic MTP stage: one more block behind the trunk, which guesses the token after the next.
//!
//! Row r takes the trunk's last streams X_r, before the collapse, and the id of token r + 1; it predicts token r + 2:
//!
//! ```text
//! X'_m = e_proj · RMS(embed[id]; enorm) + h_proj · RMS(X_m; hnorm)     for each stream m
//! logits = head · RMS(collapse(block(X')))                             the stage's own mixer and norm, the trunk's head
//! ```
//!
//! The block has a window only, so a row leaves nothing but its key behind. A row whose guess nobody asks for is
//! therefore not computed: its key is enough ([`CatchUp`]), without queries and without experts.
//! A further guess takes the stage's own streams in the place of the trunk's.

use belay_backend::{Backend, Result, Rows};

use crate::checkpoint::{CheckpointError, layout};
use crate::config::Config;
use crate::hyper_connection::HyperHead;
use crate::layer::Layer;
use crate::linear::{Linear, Loader};
use crate::scratch::Temporaries;
use crate::step::{Segment, Step};

mod catch_up;
mod draft;

pub(crate) use catch_up::CatchUp;
pub use draft::Draft;

/// The stage's dense weights; its routed experts are reached as those of the layer behind the trunk's last.
pub(crate) struct Mtp<B: Backend> {
    e_proj: Linear<B>,
    e_norm: B::Buffer,
    h_proj: Linear<B>,
    h_norm: B::Buffer,
    block: Layer<B>,
    mixer: HyperHead<B>,
    streams: usize,
    width: usize,
    norm_eps: f32,
}

impl<B: Backend> Mtp<B> {
    pub(crate) fn load(loader: &mut Loader<'_, B>, config: &Config) -> Result<Self, CheckpointError> {
        let width = config.hidden_size;
        let name = layout::STAGE;
        Ok(Self {
            e_proj: loader.linear(&format!("{name}.e_proj"), width, width)?,
            e_norm: loader.vector(&format!("{name}.enorm.weight"), width)?,
            h_proj: loader.linear(&format!("{name}.h_proj"), width, width)?,
            h_norm: loader.vector(&format!("{name}.hnorm.weight"), width)?,
            block: Layer::load(loader, config, config.depth())?,
            mixer: HyperHead::load(loader, config, &format!("{name}."))?,
            streams: config.streams,
            width,
            norm_eps: config.norm_eps,
        })
    }

    /// X' of `step`'s rows, in `t.streams`, from the streams in `t.stage_x` and the ids of the step.
    fn enter(&self, backend: &B, embed: &Linear<B>, step: &Step, t: &mut Temporaries<B>) -> Result<()> {
        let (rows, round) = (step.rows(), step.numerics.activations);
        let norm_eps = self.norm_eps;
        let all = Rows { first: 0, count: rows * self.streams, width: self.width };
        backend.rms_norm(&t.stage_x, all, &self.h_norm, norm_eps, &mut t.stage_normed, 0)?;
        self.h_proj.apply_rounded(
            backend,
            round,
            &t.stage_normed,
            all.count,
            &mut t.streams,
            &mut t.stage_rounded,
        )?;

        let tokens = Rows { first: 0, count: rows, width: self.width };
        backend.embed(embed.matrix(), &step.ids, 1, &mut t.mean)?;
        backend.rms_norm(&t.mean, tokens, &self.e_norm, norm_eps, &mut t.x, 0)?;
        self.e_proj.apply_rounded(backend, round, &t.x, rows, &mut t.y, &mut t.rounded)?;

        let copies: Vec<u32> =
            (0..rows as u32).flat_map(|row| std::iter::repeat_n(row, self.streams)).collect();
        backend.gather(&t.y, self.width, &copies, &mut t.stage_normed)?;
        backend.add(&mut t.streams, &t.stage_normed, rows * self.streams * self.width)
    }

    /// Puts the keys of `step`'s rows into the windows; the streams are in `t.stage_x`.
    fn feed_keys(
        &self,
        backend: &B,
        embed: &Linear<B>,
        step: &Step,
        t: &mut Temporaries<B>,
        arena: &mut B::Arena,
        segments: &[Segment<'_>],
    ) -> Result<()> {
        self.enter(backend, embed, step, t)?;
        self.block.feed_keys(backend, step, t, arena, segments)
    }
}

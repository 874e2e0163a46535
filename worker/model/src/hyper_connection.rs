//! Manifold-constrained hyper-connections: how a block reads and writes the residual streams.

use belay_backend::{Backend, HyperShape, Result, Rows};

use crate::checkpoint::CheckpointError;
use crate::config::Config;
use crate::linear::{Linear, Loader};
use crate::scratch::{LastRows, Temporaries};

/// Sizes and constants of the mixers.
pub(crate) fn shape(config: &Config) -> HyperShape {
    HyperShape {
        streams: config.streams,
        width: config.hidden_size,
        iterations: config.sinkhorn_iterations,
        eps: config.hyper_eps,
        norm_eps: config.norm_eps,
    }
}

/// The mixer around one block.
pub(crate) struct HyperConnection<B: Backend> {
    function: Linear<B>,
    base: B::Buffer,
    scale: B::Buffer,
    shape: HyperShape,
}

impl<B: Backend> HyperConnection<B> {
    /// `name` is `layers.N.hc_attn` or `layers.N.hc_ffn`.
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        config: &Config,
        name: &str,
    ) -> Result<Self, CheckpointError> {
        let mix = (2 + config.streams) * config.streams;
        Ok(Self {
            function: loader.matrix(&format!("{name}_fn"), mix, config.streams * config.hidden_size)?,
            base: loader.vector(&format!("{name}_base"), mix)?,
            scale: loader.vector(&format!("{name}_scale"), 3)?,
            shape: shape(config),
        })
    }

    /// mean = pre · X; keeps post and comb for [`Self::write`].
    pub(crate) fn read(&self, backend: &B, t: &mut Temporaries<B>, rows: usize) -> Result<()> {
        let mix_width = (2 + self.shape.streams) * self.shape.streams;
        self.function.apply(backend, &t.streams, rows, &mut t.mix)?;
        backend.hyper_mix(&t.streams, rows, self.shape, &self.base, &self.scale, &mut t.mix)?;
        backend.hyper_pre(&t.streams, rows, self.shape, &t.mix, mix_width, &mut t.mean)
    }

    /// X = post ⊗ y + combᵀ X.
    pub(crate) fn write(&self, backend: &B, t: &mut Temporaries<B>, rows: usize) -> Result<()> {
        backend.hyper_post(&mut t.streams, rows, self.shape, &t.mix, &t.y)
    }
}

/// The mixer that collapses the streams before the head, and the norm behind it.
pub(crate) struct HyperHead<B: Backend> {
    function: Linear<B>,
    base: B::Buffer,
    scale: B::Buffer,
    norm: B::Buffer,
    shape: HyperShape,
}

impl<B: Backend> HyperHead<B> {
    /// `prefix` is empty, or `mtp.0.` for the draft stage's own.
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        config: &Config,
        prefix: &str,
    ) -> Result<Self, CheckpointError> {
        let (streams, width) = (config.streams, config.hidden_size);
        Ok(Self {
            function: loader.matrix(&format!("{prefix}hc_head_fn"), streams, streams * width)?,
            base: loader.vector(&format!("{prefix}hc_head_base"), streams)?,
            scale: loader.vector(&format!("{prefix}hc_head_scale"), 1)?,
            norm: loader.vector(&format!("{prefix}norm.weight"), width)?,
            shape: shape(config),
        })
    }

    /// x = RMS(pre · X).
    pub(crate) fn read(&self, backend: &B, last: &mut LastRows<B>, rows: usize) -> Result<()> {
        self.function.apply(backend, &last.streams, rows, &mut last.mix)?;
        backend.hyper_head(&last.streams, rows, self.shape, &self.base, &self.scale, &mut last.mix)?;
        backend.hyper_pre(&last.streams, rows, self.shape, &last.mix, self.shape.streams, &mut last.mean)?;
        let all = Rows { first: 0, count: rows, width: self.shape.width };
        backend.rms_norm(&last.mean, all, &self.norm, self.shape.norm_eps, &mut last.x, 0)
    }
}

//! Latent attention over the window and compressed entries, with a sink per head.

use belay_backend::{Attention as CoreAttention, Backend, Entries, KEY_BLOCK, Result, Rotary, Rows};

use crate::checkpoint::CheckpointError;
use crate::compressor::{Compressor, Role};
use crate::config::Config;
use crate::indexer::Indexer;
use crate::linear::{Linear, Loader};
use crate::scratch::Temporaries;
use crate::state::State;
use crate::step::{Segment, Step};
use crate::trace::Trace;

pub(crate) struct Attention<B: Backend> {
    wq_a: Linear<B>,
    q_norm: B::Buffer,
    wq_b: Linear<B>,
    wkv: Linear<B>,
    kv_norm: B::Buffer,
    sink: B::Buffer,
    wo_a: Linear<B>,
    wo_b: Linear<B>,
    compressor: Option<Compressor<B>>,
    indexer: Option<Indexer<B>>,
    shape: Shape,
}

/// Sizes that the forward needs.
struct Shape {
    heads: usize,
    head_dim: usize,
    rope_dim: usize,
    q_rank: usize,
    groups: usize,
    window: usize,
    norm_eps: f32,
}

impl<B: Backend> Attention<B> {
    /// `name` is `layers.N.attn`.
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        config: &Config,
        name: &str,
        layer: usize,
    ) -> Result<Self, CheckpointError> {
        let (width, heads, head_dim) = (config.hidden_size, config.heads, config.head_dim);
        let inner = config.o_groups * config.o_lora_rank;
        let kind = config.layers[layer];
        let compressor = if kind.ratio() > 0 {
            let name = format!("{name}.compressor");
            Some(Compressor::load(loader, config, &name, kind, head_dim, Role::Main)?)
        } else {
            None
        };
        let indexer = match config.indexer {
            Some(indexer) if kind.has_indexer() => {
                Some(Indexer::load(loader, config, indexer, &format!("{name}.indexer"), kind)?)
            }
            _ => None,
        };
        Ok(Self {
            wq_a: loader.linear(&format!("{name}.wq_a"), config.q_lora_rank, width)?,
            q_norm: loader.vector(&format!("{name}.q_norm.weight"), config.q_lora_rank)?,
            wq_b: loader.linear(&format!("{name}.wq_b"), heads * head_dim, config.q_lora_rank)?,
            wkv: loader.linear(&format!("{name}.wkv"), head_dim, width)?,
            kv_norm: loader.vector(&format!("{name}.kv_norm.weight"), head_dim)?,
            sink: loader.vector(&format!("{name}.attn_sink"), heads)?,
            wo_a: loader.linear(&format!("{name}.wo_a"), inner, heads * head_dim / config.o_groups)?,
            wo_b: loader.linear(&format!("{name}.wo_b"), width, inner)?,
            compressor,
            indexer,
            shape: Shape {
                heads,
                head_dim,
                rope_dim: config.rope_dim,
                q_rank: config.q_lora_rank,
                groups: config.o_groups,
                window: config.window,
                norm_eps: config.norm_eps,
            },
        })
    }

    /// y = attention(x) for all rows; extends what the segments' states hold in the arena.
    pub(crate) fn forward(
        &self,
        backend: &B,
        step: &Step,
        t: &mut Temporaries<B>,
        arena: &mut B::Arena,
        segments: &[Segment<'_>],
        layer: usize,
        trace: &mut dyn Trace,
    ) -> Result<()> {
        self.queries(backend, step, t)?;
        self.keys(backend, step, t)?;
        self.keep_window(backend, step, t, arena, segments, layer)?;
        if let Some(compressor) = &self.compressor {
            compressor.project(backend, t, step.rows())?;
            for (span, segment) in segments.iter().enumerate() {
                if let Some(parts) = &segment.state.layout().layers[layer].main {
                    compressor.feed(backend, step, span, t, arena, segment.state, parts)?;
                }
            }
        }
        if let Some(indexer) = &self.indexer {
            indexer.select(backend, step, t, arena, segments, layer)?;
            if trace.wants_blocks() {
                let mut chosen = vec![0; step.rows() * indexer.top_k()];
                backend.read_indices(&t.chosen, 0, &mut chosen)?;
                trace.blocks(layer, indexer.top_k(), &chosen);
            }
        }
        for (span, segment) in segments.iter().enumerate() {
            self.attend(backend, step, span, t, arena, segment.state, layer)?;
        }
        self.output(backend, step, t)
    }

    /// Extends the windows by the rows' keys, without any query.
    pub(crate) fn feed_keys(
        &self,
        backend: &B,
        step: &Step,
        t: &mut Temporaries<B>,
        arena: &mut B::Arena,
        segments: &[Segment<'_>],
        layer: usize,
    ) -> Result<()> {
        self.keys(backend, step, t)?;
        self.keep_window(backend, step, t, arena, segments, layer)
    }

    fn rotary(&self, heads: usize, inverse: bool) -> Rotary {
        Rotary { heads, channels: self.shape.rope_dim, inverse }
    }

    /// qr = RMS(wq_a x), q = headnorm(wq_b qr), rotated.
    fn queries(&self, backend: &B, step: &Step, t: &mut Temporaries<B>) -> Result<()> {
        let (rows, round) = (step.rows(), step.numerics.activations);
        let Shape { heads, head_dim, q_rank, norm_eps, .. } = self.shape;
        self.wq_a.apply_rounded(backend, round, &t.x, rows, &mut t.qr_raw, &mut t.rounded)?;
        let compressed = Rows { first: 0, count: rows, width: q_rank };
        backend.rms_norm(&t.qr_raw, compressed, &self.q_norm, norm_eps, &mut t.qr, 0)?;
        self.wq_b.apply_rounded(backend, round, &t.qr, rows, &mut t.q, &mut t.rounded)?;
        backend.head_norm(&mut t.q, rows * heads, head_dim, norm_eps)?;
        self.rotate(backend, rows, heads, false, &t.plain_table, &t.compressed_table, &mut t.q)
    }

    /// kv = RMS(wkv x), rotated.
    fn keys(&self, backend: &B, step: &Step, t: &mut Temporaries<B>) -> Result<()> {
        let rows = step.rows();
        let Shape { head_dim, rope_dim, norm_eps, .. } = self.shape;
        let all = Rows { first: 0, count: rows, width: head_dim };
        self.wkv.apply_rounded(
            backend,
            step.numerics.activations,
            &t.x,
            rows,
            &mut t.kv_raw,
            &mut t.rounded,
        )?;
        backend.rms_norm(&t.kv_raw, all, &self.kv_norm, norm_eps, &mut t.kv, 0)?;
        self.rotate(backend, rows, 1, false, &t.plain_table, &t.compressed_table, &mut t.kv)?;
        if step.numerics.keys {
            backend.round_e4m3(&mut t.kv, all, 0..head_dim - rope_dim, KEY_BLOCK)?;
        }
        Ok(())
    }

    fn rotate(
        &self,
        backend: &B,
        rows: usize,
        heads: usize,
        inverse: bool,
        plain: &B::Buffer,
        compressed: &B::Buffer,
        x: &mut B::Buffer,
    ) -> Result<()> {
        let all = Rows { first: 0, count: rows, width: heads * self.shape.head_dim };
        let table = if self.compressor.is_some() { compressed } else { plain };
        backend.rope(x, all, self.rotary(heads, inverse), table, 0)
    }

    /// Puts this step's keys beside the earlier ones: attention then reads all keys as they are stored, in whichever
    /// step they were computed.
    fn keep_window(
        &self,
        backend: &B,
        step: &Step,
        t: &Temporaries<B>,
        arena: &mut B::Arena,
        segments: &[Segment<'_>],
        layer: usize,
    ) -> Result<()> {
        for (place, segment) in step.spans.iter().zip(segments) {
            let window = segment.state.rows(&segment.state.layout().layers[layer].window);
            let rows = Rows { first: place.rows.start, count: place.rows.len(), width: self.shape.head_dim };
            backend.store(&t.kv, rows, arena, window, place.start)?;
        }
        Ok(())
    }

    fn attend(
        &self,
        backend: &B,
        step: &Step,
        span: usize,
        t: &mut Temporaries<B>,
        arena: &B::Arena,
        state: &State,
        layer: usize,
    ) -> Result<()> {
        let parts = &state.layout().layers[layer];
        let entries = match (&self.compressor, &self.indexer, &parts.main) {
            (Some(_), Some(indexer), Some(main)) => Entries::Selected {
                entries: state.rows(&main.entries),
                chosen: &t.chosen,
                k: indexer.top_k(),
            },
            (Some(compressor), None, Some(main)) => {
                Entries::Visible { entries: state.rows(&main.entries), ratio: compressor.ratio() }
            }
            _ => Entries::None,
        };
        let op = CoreAttention {
            q: &t.q,
            rows: step.spans[span].rows.clone(),
            start: step.spans[span].start,
            arena,
            keys: state.rows(&parts.window),
            window: self.shape.window,
            entries,
            sink: &self.sink,
            heads: self.shape.heads,
            width: self.shape.head_dim,
        };
        backend.attention(&op, &mut t.heads)
    }

    /// y = wo_b · concat over groups of (wo_a · heads rotated back).
    fn output(&self, backend: &B, step: &Step, t: &mut Temporaries<B>) -> Result<()> {
        let rows = step.rows();
        self.rotate(
            backend,
            rows,
            self.shape.heads,
            true,
            &t.plain_table,
            &t.compressed_table,
            &mut t.heads,
        )?;
        // the published code widens wo_a and never rounds its input
        self.wo_a.apply_grouped(backend, self.shape.groups, &t.heads, rows, &mut t.inner)?;
        self.wo_b.apply_rounded(backend, step.numerics.activations, &t.inner, rows, &mut t.y, &mut t.rounded)
    }
}

//! Selects the compressed entries that a query attends to, in layers of ratio 4.

use belay_backend::{Backend, Precision, Result, Rotary, Rows, Select};

use crate::checkpoint::CheckpointError;
use crate::compressor::{Compressor, Role};
use crate::config::{Config, IndexerConfig, LayerKind};
use crate::linear::{Linear, Loader};
use crate::scratch::Temporaries;
use crate::step::{Segment, Step};

pub(crate) struct Indexer<B: Backend> {
    wq_b: Linear<B>,
    weights_proj: Linear<B>,
    compressor: Compressor<B>,
    config: IndexerConfig,
    rope_dim: usize,
}

impl<B: Backend> Indexer<B> {
    /// `name` is `layers.N.attn.indexer`.
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        config: &Config,
        indexer: IndexerConfig,
        name: &str,
        kind: LayerKind,
    ) -> Result<Self, CheckpointError> {
        let width = indexer.heads * indexer.head_dim;
        let compressor = format!("{name}.compressor");
        Ok(Self {
            wq_b: loader.linear_in(Precision::Half, &format!("{name}.wq_b"), width, config.q_lora_rank)?,
            weights_proj: loader.linear_in(
                Precision::Full,
                &format!("{name}.weights_proj"),
                indexer.heads,
                config.hidden_size,
            )?,
            compressor: Compressor::load(loader, config, &compressor, kind, indexer.head_dim, Role::Index)?,
            config: indexer,
            rope_dim: config.rope_dim,
        })
    }

    pub(crate) fn top_k(&self) -> usize {
        self.config.top_k
    }

    /// Extends the indexer's keys and writes the selection of every row to `t.chosen`.
    pub(crate) fn select(
        &self,
        backend: &B,
        step: &Step,
        t: &mut Temporaries<B>,
        arena: &mut B::Arena,
        segments: &[Segment<'_>],
        layer: usize,
    ) -> Result<()> {
        let IndexerConfig { heads, head_dim, top_k } = self.config;
        let rows = step.rows();
        self.wq_b.apply_rounded(
            backend,
            step.numerics.activations,
            &t.qr,
            rows,
            &mut t.index_q,
            &mut t.rounded,
        )?;
        let all = Rows { first: 0, count: rows, width: heads * head_dim };
        let rotary = Rotary { heads, channels: self.rope_dim, inverse: false };
        backend.rope(&mut t.index_q, all, rotary, &t.compressed_table, 0)?;
        if step.numerics.indexer {
            backend.round_hadamard_e2m1(&mut t.index_q, all, head_dim)?;
        }
        self.weights_proj.apply(backend, &t.x, rows, &mut t.index_weights)?;
        self.compressor.project(backend, t, rows)?;
        for (span, segment) in segments.iter().enumerate() {
            let state = &*segment.state;
            let Some(parts) = &state.layout().layers[layer].index else { continue };
            self.compressor.feed(backend, step, span, t, arena, state, parts)?;
            let place = &step.spans[span];
            let op = Select {
                q: &t.index_q,
                head_weights: &t.index_weights,
                scale: ((head_dim * heads) as f32).sqrt().recip(),
                arena,
                keys: state.rows(&parts.entries),
                rows: place.rows.clone(),
                start: place.start,
                ratio: self.compressor.ratio(),
                heads,
                width: head_dim,
                k: top_k,
            };
            backend.select(&op, &mut t.chosen)?;
        }
        Ok(())
    }
}

//! Sizes of the models that can be made.

use serde::Serialize;

/// Sizes of a model; letters as in the specification of the architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Preset {
    /// What it is called on the command line and in reports.
    pub name: &'static str,
    /// D.
    pub hidden_size: usize,
    /// Compression ratio of each layer; one more layer of ratio 0 is the MTP stage.
    pub ratios: &'static [usize],
    /// Layers at the beginning that route by token id.
    pub hash_layers: usize,
    /// H.
    pub heads: usize,
    /// d.
    pub head_dim: usize,
    /// rd, part of `head_dim`.
    pub rope_dim: usize,
    /// Width of the compressed query.
    pub q_lora_rank: usize,
    /// G.
    pub o_groups: usize,
    /// Inner width of an output group.
    pub o_lora_rank: usize,
    /// E, routed experts of a layer.
    pub experts: usize,
    /// k, routed experts of a token.
    pub experts_per_token: usize,
    /// I, inner width of an expert.
    pub expert_width: usize,
    /// Heads of the indexer.
    pub index_heads: usize,
    /// Head width of the indexer.
    pub index_dim: usize,
    /// Entries that the indexer selects.
    pub index_top_k: usize,
    /// Longest sequence.
    pub max_positions: usize,
}

/// V: the vocabulary is that of the tokenizer that comes with every model.
pub const VOCABULARY: usize = 2048;
/// M, residual streams.
pub const STREAMS: usize = 4;
/// Sliding window of every layer, as in the published models.
pub const WINDOW: usize = 128;

impl Preset {
    /// About a million parameters: for tests.
    pub const TINY: Self = Self {
        name: "tiny",
        hidden_size: 128,
        ratios: &[0, 4, 128],
        hash_layers: 1,
        heads: 4,
        head_dim: 64,
        rope_dim: 16,
        q_lora_rank: 64,
        o_groups: 2,
        o_lora_rank: 32,
        experts: 8,
        experts_per_token: 2,
        expert_width: 64,
        index_heads: 4,
        index_dim: 32,
        index_top_k: 64,
        max_positions: 4096,
    };

    /// A tenth of [`Self::B1`]: the harness on it ends in a minute.
    pub const M100: Self = Self {
        name: "100m",
        hidden_size: 768,
        ratios: &[0, 0, 4, 128, 4],
        hash_layers: 2,
        heads: 8,
        head_dim: 128,
        rope_dim: 32,
        q_lora_rank: 256,
        o_groups: 2,
        o_lora_rank: 256,
        experts: 16,
        experts_per_token: 4,
        expert_width: 512,
        index_heads: 8,
        index_dim: 64,
        index_top_k: 256,
        max_positions: 16384,
    };

    /// More than a billion parameters in MXFP4, 0.7 GB on disk; V4-Flash's pattern of layers and share of experts.
    pub const B1: Self = Self {
        name: "1b",
        hidden_size: 1536,
        ratios: &[0, 0, 4, 128, 4, 128, 4, 128, 4, 128],
        hash_layers: 3,
        heads: 16,
        head_dim: 128,
        rope_dim: 32,
        q_lora_rank: 512,
        o_groups: 4,
        o_lora_rank: 256,
        experts: 32,
        experts_per_token: 4,
        expert_width: 768,
        index_heads: 16,
        index_dim: 128,
        index_top_k: 512,
        max_positions: 16384,
    };

    /// Seven billion parameters, 4 GB: V4-Flash's sizes, but a layer or two of each kind and a quarter of the experts.
    pub const B7: Self = Self {
        name: "7b",
        hidden_size: 4096,
        ratios: &[0, 0, 4, 128],
        hash_layers: 0,
        heads: 64,
        head_dim: 512,
        rope_dim: 64,
        q_lora_rank: 1024,
        o_groups: 8,
        o_lora_rank: 1024,
        experts: 64,
        experts_per_token: 6,
        expert_width: 2048,
        index_heads: 64,
        index_dim: 128,
        index_top_k: 512,
        max_positions: 65536,
    };

    /// All of them.
    pub const ALL: [Self; 4] = [Self::TINY, Self::M100, Self::B1, Self::B7];

    /// The preset of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name == name)
    }

    /// Parameters of the trunk's routed experts, which are stored as MXFP4.
    #[must_use]
    pub fn expert_parameters(&self) -> u64 {
        (self.ratios.len() * self.experts * 3 * self.hidden_size * self.expert_width) as u64
    }
}

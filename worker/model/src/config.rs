//! `config.json`: the published keys, checked once; nothing downstream sees the raw file.

use belay_backend::MAX_STREAMS;
use serde_json::{Map, Value};

mod fields;
mod layers;

use fields::Fields;
pub use layers::{LayerKind, RouterKind};

/// Why `config.json` was refused.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("config.json: {field}: {message}")]
pub struct ConfigError {
    /// The key, with an index where it is a list.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl ConfigError {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// YaRN, as far as it changes the rotary frequencies of layers with a compressor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// Context extension factor.
    pub factor: f64,
    /// Context of the pretraining.
    pub original_positions: usize,
    /// Rotations above which a frequency stays.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided by `factor`.
    pub beta_slow: f64,
}

/// Lightning indexer of layers with ratio 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexerConfig {
    /// `index_n_heads`.
    pub heads: usize,
    /// `index_head_dim`.
    pub head_dim: usize,
    /// `index_topk`.
    pub top_k: usize,
}

/// A DeepSeek-V4 model's sizes and constants. Letters as in the specification.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// H, query heads; there is one key/value head.
    pub heads: usize,
    /// d.
    pub head_dim: usize,
    /// rd, the last channels of a head.
    pub rope_dim: usize,
    /// Width of the compressed query.
    pub q_lora_rank: usize,
    /// G, groups of the output projection.
    pub o_groups: usize,
    /// Width of a group's inner projection.
    pub o_lora_rank: usize,
    /// Sliding window of every layer.
    pub window: usize,
    /// What kind of attention each layer has: the trunk's, then the draft stage if there is one.
    pub layers: Vec<LayerKind>,
    /// How each of them routes.
    pub routers: Vec<RouterKind>,
    /// Most tokens that the draft stage (the classic MTP stage) guesses in a row; 0: the trunk alone is used.
    pub draft_tokens: usize,
    /// What `compress_ratios` says of the first MTP stage, if that is not 0 or nothing.
    odd_stage_ratio: Option<Value>,
    /// Unset if no layer has one.
    pub indexer: Option<IndexerConfig>,
    /// Rotary base of layers without a compressor.
    pub rope_theta: f64,
    /// Rotary base of layers with one.
    pub compress_rope_theta: f64,
    /// Unset if disabled.
    pub yarn: Option<Yarn>,
    /// Longest sequence.
    pub max_positions: usize,
    /// E, routed experts of a layer.
    pub experts: usize,
    /// k, routed experts of a token.
    pub experts_per_token: usize,
    /// I, inner width of an expert.
    pub expert_width: usize,
    /// Factor on the normalised routing weights.
    pub routed_scaling: f32,
    /// Clamp of experts, routed and shared.
    pub swiglu_limit: f32,
    /// M, residual streams.
    pub streams: usize,
    /// Sinkhorn iterations.
    pub sinkhorn_iterations: usize,
    /// Epsilon of the hyper-connections.
    pub hyper_eps: f32,
    /// Epsilon of every RMS.
    pub norm_eps: f32,
    /// Begin of sequence.
    pub bos_token: u32,
    /// End of sequence.
    pub eos_token: u32,
}

impl Config {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, of the wrong type, unknown to this engine or at odds with another.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| ConfigError::new("(file)", format!("not JSON: {error}")))?;
        let Value::Object(map) = value else {
            return Err(ConfigError::new("(file)", "not a JSON object"));
        };
        Self::from_map(&map)
    }

    fn from_map(map: &Map<String, Value>) -> Result<Self, ConfigError> {
        let fields = Fields::new(map, "");
        refuse_other_families(&fields)?;
        let depth = fields.count("num_hidden_layers")?;
        let layers = layers::attention(&fields, depth)?;
        let routers = layers::routers(&fields, depth)?;
        let has_indexer = layers.iter().any(|kind| kind.has_indexer());
        let config = Self {
            vocab_size: fields.count("vocab_size")?,
            hidden_size: fields.count("hidden_size")?,
            heads: fields.count("num_attention_heads")?,
            head_dim: fields.count("head_dim")?,
            rope_dim: fields.count("qk_rope_head_dim")?,
            q_lora_rank: fields.count("q_lora_rank")?,
            o_groups: fields.count("o_groups")?,
            o_lora_rank: fields.count("o_lora_rank")?,
            window: fields.count("sliding_window")?,
            indexer: if has_indexer { Some(indexer(&fields)?) } else { None },
            rope_theta: fields.positive("rope_theta")?,
            compress_rope_theta: if layers.iter().any(|kind| kind.ratio() > 0) {
                fields.positive("compress_rope_theta")?
            } else {
                fields.positive_or("compress_rope_theta", 160_000.0)?
            },
            yarn: yarn(&fields)?,
            max_positions: fields.count("max_position_embeddings")?,
            experts: fields.count("n_routed_experts")?,
            experts_per_token: fields.count("num_experts_per_tok")?,
            expert_width: fields.count("moe_intermediate_size")?,
            routed_scaling: fields.positive("routed_scaling_factor")? as f32,
            swiglu_limit: fields.positive("swiglu_limit")? as f32,
            streams: fields.count("hc_mult")?,
            sinkhorn_iterations: fields.count("hc_sinkhorn_iters")?,
            hyper_eps: fields.positive("hc_eps")? as f32,
            norm_eps: fields.positive("rms_norm_eps")? as f32,
            bos_token: fields.token_or("bos_token_id", 0)?,
            eos_token: fields.token_or("eos_token_id", 1)?,
            draft_tokens: 0,
            odd_stage_ratio: layers::odd_stage_ratio(&fields, depth)?,
            layers,
            routers,
        };
        config.check()?;
        Ok(config)
    }

    /// Number of layers of the trunk.
    pub fn depth(&self) -> usize {
        self.layers.len() - usize::from(self.draft_tokens > 0)
    }

    /// Adds the classic MTP stage as one more layer behind the trunk's: window only, learned router.
    pub(crate) fn add_draft_stage(&mut self, draft_tokens: usize) -> Result<(), ConfigError> {
        if let Some(ratio) = &self.odd_stage_ratio {
            let field = format!("compress_ratios[{}]", self.depth());
            return Err(ConfigError::new(field, format!("an MTP stage has ratio 0, found {ratio}")));
        }
        self.layers.push(LayerKind::Sliding);
        self.routers.push(RouterKind::Learned);
        self.draft_tokens = draft_tokens;
        Ok(())
    }

    /// The kinds of layers that there are, each once, by ratio.
    pub(crate) fn kinds(&self) -> Vec<LayerKind> {
        let mut kinds = self.layers.clone();
        kinds.sort_unstable_by_key(|kind| kind.ratio());
        kinds.dedup();
        kinds
    }

    /// The compression ratios that there are, ascending.
    pub(crate) fn ratios(&self) -> Vec<usize> {
        self.kinds().into_iter().map(LayerKind::ratio).filter(|&ratio| ratio > 0).collect()
    }

    /// Values that do not fit together.
    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |field: &str, message: String| Err(ConfigError::new(field, message));
        if !self.rope_dim.is_multiple_of(2) || self.rope_dim > self.head_dim {
            return refuse(
                "qk_rope_head_dim",
                format!("{} must be even and at most head_dim {}", self.rope_dim, self.head_dim),
            );
        }
        if !self.heads.is_multiple_of(self.o_groups) {
            return refuse(
                "o_groups",
                format!("{} does not divide num_attention_heads {}", self.o_groups, self.heads),
            );
        }
        if self.streams > MAX_STREAMS {
            return refuse("hc_mult", format!("{} is more than the {MAX_STREAMS} supported", self.streams));
        }
        if self.experts_per_token > self.experts {
            return refuse(
                "num_experts_per_tok",
                format!("{} is more than n_routed_experts {}", self.experts_per_token, self.experts),
            );
        }
        if let Some(indexer) = self.indexer
            && indexer.head_dim < self.rope_dim
        {
            return refuse(
                "index_head_dim",
                format!("{} is less than qk_rope_head_dim {}", indexer.head_dim, self.rope_dim),
            );
        }
        for (field, token) in [("bos_token_id", self.bos_token), ("eos_token_id", self.eos_token)] {
            if token as usize >= self.vocab_size {
                return refuse(field, format!("{token} is outside the vocabulary of {}", self.vocab_size));
            }
        }
        Ok(())
    }
}

/// Values of keys that select a variant this engine does not compute.
fn refuse_other_families(fields: &Fields<'_>) -> Result<(), ConfigError> {
    fields.must_be("model_type", "deepseek_v4")?;
    for (key, only) in [("scoring_func", "sqrtsoftplus"), ("topk_method", "noaux_tc"), ("hidden_act", "silu")]
    {
        fields.may_be(key, &Value::from(only))?;
    }
    for (key, only) in [("norm_topk_prob", true), ("attention_bias", false), ("tie_word_embeddings", false)] {
        fields.may_be(key, &Value::from(only))?;
    }
    for (key, only) in [("num_key_value_heads", 1), ("n_shared_experts", 1)] {
        fields.may_be(key, &Value::from(only))?;
    }
    Ok(())
}

fn indexer(fields: &Fields<'_>) -> Result<IndexerConfig, ConfigError> {
    Ok(IndexerConfig {
        heads: fields.count("index_n_heads")?,
        head_dim: fields.count("index_head_dim")?,
        top_k: fields.count("index_topk")?,
    })
}

fn yarn(fields: &Fields<'_>) -> Result<Option<Yarn>, ConfigError> {
    let Some(scaling) = fields.object("rope_scaling")? else {
        return Ok(None);
    };
    let key = if scaling.has("type") { "type" } else { "rope_type" };
    scaling.must_be(key, "yarn")?;
    let original_positions = scaling.count_or_zero("original_max_position_embeddings")?;
    if original_positions == 0 {
        return Ok(None); // how the reference switches YaRN off
    }
    Ok(Some(Yarn {
        factor: scaling.positive("factor")?,
        original_positions,
        beta_fast: scaling.positive_or("beta_fast", 32.0)?,
        beta_slow: scaling.positive_or("beta_slow", 1.0)?,
    }))
}

#[cfg(test)]
mod tests;

//! Names, types and shapes of a checkpoint's tensors, and what fills them.

use belay_backend::{FP4_BLOCK, FP8_BLOCK};

use super::preset::{Preset, STREAMS, VOCABULARY};

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// 64-bit integers.
    I64,
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// Powers of two.
    E8m0,
    /// 8-bit floats.
    E4m3,
    /// Pairs of 4-bit floats.
    I8,
}

impl Kind {
    /// What safetensors calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::I64 => "I64",
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::E8m0 => "F8_E8M0",
            Self::E4m3 => "F8_E4M3",
            Self::I8 => "I8",
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::E8m0 | Self::E4m3 | Self::I8 => 1,
        }
    }
}

/// Where a tensor's values come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Uniform with this mean and standard deviation; as e4m3 codes, before the block's scale.
    Uniform {
        /// Mean.
        mean: f32,
        /// Standard deviation.
        deviation: f32,
    },
    /// Every pair of e2m1 codes alike: standard deviation 2.93 before the block's scale.
    Codes,
    /// 2^exponent, or one power above or below it.
    Scale {
        /// Exponent.
        exponent: i32,
    },
    /// Rows of distinct numbers below `limit`.
    Distinct {
        /// Length of a row.
        row: usize,
        /// Upper bound.
        limit: usize,
    },
}

/// A tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Published name.
    pub name: String,
    /// Type of the elements.
    pub kind: Kind,
    /// Rows, columns.
    pub shape: Vec<usize>,
    /// Where the values come from.
    pub fill: Fill,
}

impl Tensor {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in the file.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.elements() * self.kind.bytes()
    }
}

/// The tensors of each file, in the order in which they lie there: the embedding, then one layer a file, then what comes
/// after the layers, then the MTP stage.
#[must_use]
pub fn shards(preset: &Preset) -> Vec<Vec<Tensor>> {
    let width = preset.hidden_size;
    let mut shards = Vec::new();
    let mut list = List::default();
    list.plain("embed.weight", Kind::Bf16, &[VOCABULARY, width], 0.0, 1.0);
    shards.push(list.take());
    for (layer, &ratio) in preset.ratios.iter().enumerate() {
        list.prefix = format!("layers.{layer}.");
        list.block(preset, ratio, layer < preset.hash_layers);
        shards.push(list.take());
    }
    list.prefix.clear();
    // logits of standard deviation 3: neither flat nor one-sided
    list.plain("head.weight", Kind::Bf16, &[VOCABULARY, width], 0.0, 3.0 * inverse_root(width));
    list.norm("norm.weight", width);
    list.hyper_head(width);
    shards.push(list.take());
    list.prefix = "mtp.0.".into();
    for name in ["e_proj", "h_proj"] {
        list.fp8(name, width, width);
    }
    for name in ["enorm.weight", "hnorm.weight", "norm.weight"] {
        list.norm(name, width);
    }
    list.hyper_head(width);
    list.block(preset, 0, false);
    shards.push(list.take());
    shards
}

#[derive(Default)]
struct List {
    prefix: String,
    tensors: Vec<Tensor>,
}

impl List {
    /// By type, widest first, so that every tensor is aligned; then by name.
    fn take(&mut self) -> Vec<Tensor> {
        let mut tensors = std::mem::take(&mut self.tensors);
        tensors.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        tensors
    }

    fn add(&mut self, name: &str, kind: Kind, shape: &[usize], fill: Fill) {
        let name = format!("{}{name}", self.prefix);
        self.tensors.push(Tensor { name, kind, shape: shape.to_vec(), fill });
    }

    fn plain(&mut self, name: &str, kind: Kind, shape: &[usize], mean: f32, deviation: f32) {
        self.add(name, kind, shape, Fill::Uniform { mean, deviation });
    }

    fn norm(&mut self, name: &str, len: usize) {
        self.plain(name, Kind::Bf16, &[len], 1.0, 0.1);
    }

    /// A bf16 linear that keeps the size of what it is given.
    fn bf16(&mut self, name: &str, rows: usize, cols: usize) {
        self.plain(&format!("{name}.weight"), Kind::Bf16, &[rows, cols], 0.0, inverse_root(cols));
    }

    fn fp8(&mut self, name: &str, rows: usize, cols: usize) {
        self.plain(&format!("{name}.weight"), Kind::E4m3, &[rows, cols], 0.0, 1.0);
        let blocks = [rows.div_ceil(FP8_BLOCK), cols.div_ceil(FP8_BLOCK)];
        self.add(&format!("{name}.scale"), Kind::E8m0, &blocks, Fill::Scale { exponent: half_log2(cols) });
    }

    fn fp4(&mut self, name: &str, rows: usize, cols: usize) {
        self.add(&format!("{name}.weight"), Kind::I8, &[rows, cols / 2], Fill::Codes);
        // codes have a standard deviation of about 2^1.5; the mean square of the scales adds another half
        let fill = Fill::Scale { exponent: half_log2(cols) - 2 };
        self.add(&format!("{name}.scale"), Kind::E8m0, &[rows, cols / FP4_BLOCK], fill);
    }

    fn hyper(&mut self, name: &str, rows: usize, scales: usize, width: usize) {
        let inputs = STREAMS * width;
        self.plain(&format!("{name}_fn"), Kind::F32, &[rows, inputs], 0.0, inverse_root(inputs));
        self.plain(&format!("{name}_base"), Kind::F32, &[rows], 0.0, 0.5);
        self.plain(&format!("{name}_scale"), Kind::F32, &[scales], 0.5, 0.1);
    }

    fn hyper_head(&mut self, width: usize) {
        self.hyper("hc_head", STREAMS, 1, width);
    }

    fn block(&mut self, preset: &Preset, ratio: usize, by_hash: bool) {
        let width = preset.hidden_size;
        for site in ["attn", "ffn"] {
            self.hyper(&format!("hc_{site}"), (2 + STREAMS) * STREAMS, 3, width);
            self.norm(&format!("{site}_norm.weight"), width);
        }
        self.attention(preset, ratio);
        self.bf16("ffn.gate", preset.experts, width);
        if by_hash {
            let fill = Fill::Distinct { row: preset.experts_per_token, limit: preset.experts };
            self.add("ffn.gate.tid2eid", Kind::I64, &[VOCABULARY, preset.experts_per_token], fill);
        } else {
            self.plain("ffn.gate.bias", Kind::F32, &[preset.experts], 0.0, 0.1);
        }
        for expert in 0..preset.experts {
            for (name, rows, cols) in projections(preset, &format!("ffn.experts.{expert}")) {
                self.fp4(&name, rows, cols);
            }
        }
        for (name, rows, cols) in projections(preset, "ffn.shared_experts") {
            self.fp8(&name, rows, cols);
        }
    }

    fn attention(&mut self, preset: &Preset, ratio: usize) {
        let (width, heads, head_dim) = (preset.hidden_size, preset.heads, preset.head_dim);
        let inner = preset.o_groups * preset.o_lora_rank;
        self.plain("attn.attn_sink", Kind::F32, &[heads], 0.0, 1.0);
        self.fp8("attn.wq_a", preset.q_lora_rank, width);
        self.norm("attn.q_norm.weight", preset.q_lora_rank);
        self.fp8("attn.wq_b", heads * head_dim, preset.q_lora_rank);
        self.fp8("attn.wkv", head_dim, width);
        self.norm("attn.kv_norm.weight", head_dim);
        self.fp8("attn.wo_a", inner, heads * head_dim / preset.o_groups);
        self.fp8("attn.wo_b", width, inner);
        if ratio > 0 {
            self.compressor("attn.compressor", ratio, head_dim, width);
        }
        if ratio == 4 {
            self.fp8("attn.indexer.wq_b", preset.index_heads * preset.index_dim, preset.q_lora_rank);
            self.bf16("attn.indexer.weights_proj", preset.index_heads, width);
            self.compressor("attn.indexer.compressor", ratio, preset.index_dim, width);
        }
    }

    /// With ratio 4 windows overlap, and each projection has a half for either window.
    fn compressor(&mut self, name: &str, ratio: usize, width: usize, hidden: usize) {
        let rows = if ratio == 4 { 2 * width } else { width };
        self.bf16(&format!("{name}.wkv"), rows, hidden);
        self.bf16(&format!("{name}.wgate"), rows, hidden);
        self.plain(&format!("{name}.ape"), Kind::F32, &[ratio, rows], 0.0, 0.5);
        self.norm(&format!("{name}.norm.weight"), width);
    }
}

/// Gate, up and down projection.
fn projections(preset: &Preset, name: &str) -> [(String, usize, usize); 3] {
    let (inner, width) = (preset.expert_width, preset.hidden_size);
    [
        (format!("{name}.w1"), inner, width),
        (format!("{name}.w3"), inner, width),
        (format!("{name}.w2"), width, inner),
    ]
}

/// 1/√n; IEEE 754 rounds both operations correctly, so it is the same everywhere.
fn inverse_root(n: usize) -> f32 {
    1.0 / (n as f32).sqrt()
}

/// log2(1/√n), to the nearest integer below.
fn half_log2(n: usize) -> i32 {
    -(n.ilog2().div_ceil(2) as i32)
}

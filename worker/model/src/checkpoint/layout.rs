//! Names and shapes of the published tensors, by the configuration.

use crate::config::{Config, RouterKind};

/// Tensors of the multi-token-prediction stages begin with this.
pub(super) const MTP_PREFIX: &str = "mtp.";
/// Prefix of the draft stage's names.
pub(crate) const STAGE: &str = "mtp.0";

/// What a tensor must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A linear's weight `<name>.weight`, perhaps with `<name>.scale`.
    Linear(usize, usize),
    /// An f32 matrix without a suffix.
    Matrix(usize, usize),
    /// A vector in f32 or bf16.
    Vector(usize),
    /// An integer table.
    Table(usize, usize),
}

/// One expected tensor.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) name: String,
    pub(super) shape: Shape,
    /// (layer, expert) of a routed expert's tensor.
    pub(super) expert: Option<(u32, u32)>,
}

/// Prefix of a layer's names; the draft stage counts as the layer behind the trunk's last.
pub(crate) fn layer_prefix(config: &Config, layer: usize) -> String {
    if layer < config.depth() { format!("layers.{layer}") } else { STAGE.to_owned() }
}

/// Prefix of a routed expert's names.
pub(crate) fn expert_prefix(config: &Config, layer: u32, expert: u32) -> String {
    format!("{}.ffn.experts.{expert}", layer_prefix(config, layer as usize))
}

/// Everything that the trunk needs, and the draft stage if the configuration has it.
pub(super) fn expected(config: &Config) -> Vec<Expected> {
    let mut out = Vec::new();
    let mut list = List { out: &mut out, prefix: String::new() };
    let (vocab, width) = (config.vocab_size, config.hidden_size);
    list.add("embed", Shape::Linear(vocab, width));
    list.add("head", Shape::Linear(vocab, width));
    end_tensors(&mut list, config);
    if config.draft_tokens > 0 {
        list.prefix = format!("{STAGE}.");
        for name in ["e_proj", "h_proj"] {
            list.add(name, Shape::Linear(width, width));
        }
        for name in ["enorm.weight", "hnorm.weight"] {
            list.add(name, Shape::Vector(width));
        }
        end_tensors(&mut list, config);
    }
    for layer in 0..config.layers.len() {
        list.prefix = layer_prefix(config, layer) + ".";
        layer_tensors(&mut list, config, layer);
        for expert in 0..config.experts {
            expert_tensors(list.out, config, layer as u32, expert as u32);
        }
    }
    out
}

/// What stands between the last streams and the head.
fn end_tensors(list: &mut List<'_>, config: &Config) {
    let (width, streams) = (config.hidden_size, config.streams);
    list.add("norm.weight", Shape::Vector(width));
    list.add("hc_head_fn", Shape::Matrix(streams, streams * width));
    list.add("hc_head_base", Shape::Vector(streams));
    list.add("hc_head_scale", Shape::Vector(1));
}

struct List<'a> {
    out: &'a mut Vec<Expected>,
    prefix: String,
}

impl List<'_> {
    fn add(&mut self, name: &str, shape: Shape) {
        self.out.push(Expected { name: format!("{}{name}", self.prefix), shape, expert: None });
    }
}

fn layer_tensors(list: &mut List<'_>, config: &Config, layer: usize) {
    let width = config.hidden_size;
    let mix = (2 + config.streams) * config.streams;
    for site in ["attn", "ffn"] {
        list.add(&format!("hc_{site}_fn"), Shape::Matrix(mix, config.streams * width));
        list.add(&format!("hc_{site}_base"), Shape::Vector(mix));
        list.add(&format!("hc_{site}_scale"), Shape::Vector(3));
        list.add(&format!("{site}_norm.weight"), Shape::Vector(width));
    }

    let (heads, head_dim, q_rank) = (config.heads, config.head_dim, config.q_lora_rank);
    let inner = config.o_groups * config.o_lora_rank;
    list.add("attn.attn_sink", Shape::Vector(heads));
    list.add("attn.wq_a", Shape::Linear(q_rank, width));
    list.add("attn.q_norm.weight", Shape::Vector(q_rank));
    list.add("attn.wq_b", Shape::Linear(heads * head_dim, q_rank));
    list.add("attn.wkv", Shape::Linear(head_dim, width));
    list.add("attn.kv_norm.weight", Shape::Vector(head_dim));
    list.add("attn.wo_a", Shape::Linear(inner, heads * head_dim / config.o_groups));
    list.add("attn.wo_b", Shape::Linear(width, inner));

    let kind = config.layers[layer];
    if kind.ratio() > 0 {
        compressor_tensors(list, "attn.compressor", kind.ratio(), kind.overlaps(), head_dim, width);
    }
    if let (true, Some(indexer)) = (kind.has_indexer(), config.indexer) {
        list.add("attn.indexer.wq_b", Shape::Linear(indexer.heads * indexer.head_dim, q_rank));
        list.add("attn.indexer.weights_proj", Shape::Linear(indexer.heads, width));
        compressor_tensors(
            list,
            "attn.indexer.compressor",
            kind.ratio(),
            kind.overlaps(),
            indexer.head_dim,
            width,
        );
    }

    list.add("ffn.gate", Shape::Linear(config.experts, width));
    match config.routers[layer] {
        RouterKind::Hash => {
            list.add("ffn.gate.tid2eid", Shape::Table(config.vocab_size, config.experts_per_token));
        }
        RouterKind::Learned => list.add("ffn.gate.bias", Shape::Vector(config.experts)),
    }
    for (name, shape) in expert_shapes(config) {
        list.add(&format!("ffn.shared_experts.{name}"), shape);
    }
}

fn compressor_tensors(
    list: &mut List<'_>,
    name: &str,
    ratio: usize,
    overlaps: bool,
    width: usize,
    hidden: usize,
) {
    let gate_width = if overlaps { 2 * width } else { width };
    list.add(&format!("{name}.wkv"), Shape::Linear(gate_width, hidden));
    list.add(&format!("{name}.wgate"), Shape::Linear(gate_width, hidden));
    list.add(&format!("{name}.ape"), Shape::Matrix(ratio, gate_width));
    list.add(&format!("{name}.norm.weight"), Shape::Vector(width));
}

fn expert_tensors(out: &mut Vec<Expected>, config: &Config, layer: u32, expert: u32) {
    let prefix = expert_prefix(config, layer, expert);
    for (name, shape) in expert_shapes(config) {
        out.push(Expected { name: format!("{prefix}.{name}"), shape, expert: Some((layer, expert)) });
    }
}

/// Gate, up and down projection of an expert.
fn expert_shapes(config: &Config) -> [(&'static str, Shape); 3] {
    let (inner, width) = (config.expert_width, config.hidden_size);
    [
        ("w1", Shape::Linear(inner, width)),
        ("w3", Shape::Linear(inner, width)),
        ("w2", Shape::Linear(width, inner)),
    ]
}

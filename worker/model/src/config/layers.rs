//! Which kind each layer is: by `compress_ratios`, or by `layer_types` and `compress_rates`.

use serde_json::Value;

use super::ConfigError;
use super::fields::Fields;

/// The ratio that stands for overlapping windows and an indexer.
const INDEXED_RATIO: usize = 4;

/// Attention of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Ratio 0: the window only.
    Sliding,
    /// Ratio 4 (CSA): overlapping windows, and an indexer that selects entries.
    Indexed,
    /// Any other ratio (HCA): plain windows, every entry is seen.
    Compressed {
        /// Tokens of one entry.
        ratio: usize,
    },
}

impl LayerKind {
    /// Tokens of one compressed entry; 0 without a compressor.
    pub fn ratio(self) -> usize {
        match self {
            Self::Sliding => 0,
            Self::Indexed => INDEXED_RATIO,
            Self::Compressed { ratio } => ratio,
        }
    }

    /// Whether an entry also pools the window before its own.
    pub fn overlaps(self) -> bool {
        self == Self::Indexed
    }

    /// Whether an indexer selects the entries.
    pub fn has_indexer(self) -> bool {
        self == Self::Indexed
    }

    fn of_ratio(ratio: usize) -> Self {
        match ratio {
            0 => Self::Sliding,
            INDEXED_RATIO => Self::Indexed,
            ratio => Self::Compressed { ratio },
        }
    }
}

/// How a layer picks a token's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterKind {
    /// By the token's id.
    Hash,
    /// The best of score + bias.
    Learned,
}

pub(super) fn attention(fields: &Fields<'_>, depth: usize) -> Result<Vec<LayerKind>, ConfigError> {
    let by_ratio = fields.list("compress_ratios")?.map(|ratios| of_ratios(ratios, depth)).transpose()?;
    let by_type = fields.list("layer_types")?.map(|types| of_types(types, fields, depth)).transpose()?;
    match (by_ratio, by_type) {
        (None, None) => Err(ConfigError::new("compress_ratios", "missing")),
        (Some(kinds), None) | (None, Some(kinds)) => Ok(kinds),
        (Some(by_ratio), Some(by_type)) => {
            match (0..depth).find(|&layer| by_ratio[layer] != by_type[layer]) {
                None => Ok(by_ratio),
                Some(layer) => Err(ConfigError::new(
                    format!("layer_types[{layer}]"),
                    format!(
                        "a ratio of {}, but compress_ratios[{layer}] is {}",
                        by_type[layer].ratio(),
                        by_ratio[layer].ratio()
                    ),
                )),
            }
        }
    }
}

/// The entry of `compress_ratios` behind the trunk's, which belongs to the first MTP stage, unless it is 0.
pub(super) fn odd_stage_ratio(fields: &Fields<'_>, depth: usize) -> Result<Option<Value>, ConfigError> {
    let entry = fields.list("compress_ratios")?.and_then(|ratios| ratios.get(depth));
    Ok(entry.filter(|ratio| ratio.as_u64() != Some(0)).cloned())
}

/// The first `depth` ratios are the layers', what follows belongs to MTP stages.
fn of_ratios(ratios: &[Value], depth: usize) -> Result<Vec<LayerKind>, ConfigError> {
    if ratios.len() < depth {
        let message = format!("{} entries for num_hidden_layers {depth}", ratios.len());
        return Err(ConfigError::new("compress_ratios", message));
    }
    let kind = |(layer, value): (usize, &Value)| match value.as_u64() {
        Some(ratio) if ratio != 1 && ratio < 1 << 20 => Ok(LayerKind::of_ratio(ratio as usize)),
        _ => Err(ConfigError::new(
            format!("compress_ratios[{layer}]"),
            format!("unknown layer kind {value}: expected 0, 4 or another window of at least 2"),
        )),
    };
    ratios.iter().take(depth).enumerate().map(kind).collect()
}

fn of_types(types: &[Value], fields: &Fields<'_>, depth: usize) -> Result<Vec<LayerKind>, ConfigError> {
    if types.len() != depth {
        let message = format!("{} entries for num_hidden_layers {depth}", types.len());
        return Err(ConfigError::new("layer_types", message));
    }
    let rates = fields.object("compress_rates")?;
    let rate = |name: &str, usual: usize| match &rates {
        Some(rates) if rates.has(name) => rates.count(name),
        _ => Ok(usual),
    };
    let kind = |(layer, value): (usize, &Value)| match value.as_str() {
        Some("sliding_attention") => Ok(LayerKind::Sliding),
        Some(name @ "compressed_sparse_attention") => match rate(name, INDEXED_RATIO)? {
            INDEXED_RATIO => Ok(LayerKind::Indexed),
            other => Err(ConfigError::new(
                format!("compress_rates.{name}"),
                format!("only {INDEXED_RATIO} is supported, found {other}"),
            )),
        },
        Some(name @ "heavily_compressed_attention") => match rate(name, 128)? {
            ratio @ (1 | INDEXED_RATIO) => Err(ConfigError::new(
                format!("compress_rates.{name}"),
                format!("{ratio} is not the ratio of a heavily compressed layer"),
            )),
            ratio => Ok(LayerKind::Compressed { ratio }),
        },
        _ => Err(ConfigError::new(format!("layer_types[{layer}]"), format!("unknown layer kind {value}"))),
    };
    types.iter().enumerate().map(kind).collect()
}

pub(super) fn routers(fields: &Fields<'_>, depth: usize) -> Result<Vec<RouterKind>, ConfigError> {
    let hash_layers = if fields.has("num_hash_layers") || !fields.has("mlp_layer_types") {
        Some(fields.count_or_zero("num_hash_layers")?)
    } else {
        None
    };
    if let Some(hash_layers) = hash_layers
        && hash_layers > depth
    {
        let message = format!("{hash_layers} is more than num_hidden_layers {depth}");
        return Err(ConfigError::new("num_hash_layers", message));
    }
    let by_count = hash_layers.map(|hash_layers| {
        (0..depth)
            .map(|layer| if layer < hash_layers { RouterKind::Hash } else { RouterKind::Learned })
            .collect()
    });
    let by_type = fields.list("mlp_layer_types")?.map(|types| router_types(types, depth)).transpose()?;
    match (by_count, by_type) {
        (Some(by_count), Some(by_type)) if by_count != by_type => {
            Err(ConfigError::new("mlp_layer_types", "does not agree with num_hash_layers"))
        }
        (Some(kinds), _) | (None, Some(kinds)) => Ok(kinds),
        (None, None) => Ok(vec![RouterKind::Learned; depth]),
    }
}

fn router_types(types: &[Value], depth: usize) -> Result<Vec<RouterKind>, ConfigError> {
    if types.len() != depth {
        let message = format!("{} entries for num_hidden_layers {depth}", types.len());
        return Err(ConfigError::new("mlp_layer_types", message));
    }
    let kind = |(layer, value): (usize, &Value)| match value.as_str() {
        Some("hash_moe") => Ok(RouterKind::Hash),
        Some("moe") => Ok(RouterKind::Learned),
        _ => {
            Err(ConfigError::new(format!("mlp_layer_types[{layer}]"), format!("unknown layer kind {value}")))
        }
    };
    types.iter().enumerate().map(kind).collect()
}

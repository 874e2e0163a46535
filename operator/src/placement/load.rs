//! How much experts are used, and how unevenly that falls on ranks.
use belay_proto::admin::{ExpertLoad, LayerPlacement};

use super::fleet::{Fleet, Model};

/// Sum of the weights of the busiest layer. Shares of copies are whole numbers: far from 64 bits, and so fine that
/// rounding never shows.
const WEIGHT: u128 = 1 << 48;

/// Tokens that went to each expert, in thousandths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// By layer, by expert; what is missing counts as 0.
    layers: Vec<Vec<u64>>,
}

impl Load {
    /// From thousandths of a token by layer and expert.
    pub fn new(layers: Vec<Vec<u64>>) -> Self {
        Self { layers }
    }

    /// What several workers counted, together. Reports of another shape than the model's are left out.
    pub fn sum<'a>(model: &Model, reports: impl IntoIterator<Item = &'a ExpertLoad>) -> Self {
        let experts = model.experts as usize;
        let mut layers = vec![vec![0u64; experts]; model.layers as usize];
        for report in reports {
            if report.layers.len() != layers.len()
                || report.layers.iter().any(|layer| layer.millitokens.len() != experts)
            {
                continue;
            }
            for (sum, layer) in layers.iter_mut().zip(&report.layers) {
                for (sum, count) in sum.iter_mut().zip(&layer.millitokens) {
                    *sum = sum.saturating_add(*count);
                }
            }
        }
        Self { layers }
    }

    /// Thousandths of a token that went to an expert.
    pub fn of(&self, layer: usize, expert: usize) -> u64 {
        self.layers.get(layer).and_then(|layer| layer.get(expert)).copied().unwrap_or(0)
    }

    /// Tokens that went to experts of a layer: each token counts once for every expert that it was sent to.
    pub fn routes(&self, layer: usize) -> f64 {
        self.layers.get(layer).map_or(0.0, |layer| layer.iter().map(|&count| count as f64).sum::<f64>() / 1e3)
    }
}

/// Loads as weights, to calculate with.
pub(super) struct Weights {
    /// By layer, by expert. A layer of which nothing is known has the same for each.
    pub layers: Vec<Vec<u64>>,
    /// By layer: whether something is known.
    pub known: Vec<bool>,
}

impl Weights {
    /// Without load, each expert is taken to be used as much as any other.
    pub fn of(layers: usize, experts: usize, load: Option<&Load>) -> Self {
        let even = vec![u64::try_from(WEIGHT / experts.max(1) as u128).unwrap_or(u64::MAX); experts];
        let Some(load) = load else {
            return Self { layers: vec![even; layers], known: vec![true; layers] };
        };
        let sum = |layer| (0..experts).map(|expert| u128::from(load.of(layer, expert))).sum::<u128>();
        let most = (0..layers).map(sum).max().unwrap_or(0);
        let known: Vec<bool> = (0..layers).map(|layer| sum(layer) > 0).collect();
        let weigh = |layer, expert| {
            u64::try_from(u128::from(load.of(layer, expert)) * WEIGHT / most.max(1)).unwrap_or(u64::MAX)
        };
        let layers = (0..layers).map(|layer| {
            if known[layer] {
                (0..experts).map(|expert| weigh(layer, expert)).collect()
            } else {
                even.clone()
            }
        });
        Self { layers: layers.collect(), known }
    }
}

/// 100 × Σ over layers of the busiest rank's load ÷ Σ over layers of the mean rank's load, over the usable ranks.
///
/// 100 is even, and is what a placement has whose experts are not used or have no usable rank. An expert's load is
/// split evenly over its copies on usable ranks; without load, each expert is taken to be used as much as any other.
pub fn imbalance_percent(layers: &[LayerPlacement], load: Option<&Load>, fleet: &Fleet) -> u32 {
    let experts = layers.iter().map(|layer| layer.experts.len()).max().unwrap_or(0);
    let weights = Weights::of(layers.len(), experts, load);
    let usable = (0..fleet.ranks()).filter(|&rank| fleet.usable(rank)).count() as u128;
    let (mut peaks, mut total) = (0u128, 0u128);
    for ((layer, weights), _) in
        layers.iter().zip(&weights.layers).zip(&weights.known).filter(|(_, known)| **known)
    {
        let mut ranks = vec![0u64; fleet.ranks() as usize];
        for (copies, weight) in layer.experts.iter().zip(weights) {
            let on: Vec<u32> = copies.ranks.iter().copied().filter(|&rank| fleet.usable(rank)).collect();
            for &rank in &on {
                ranks[rank as usize] += weight / on.len() as u64;
            }
        }
        peaks += u128::from(ranks.iter().max().copied().unwrap_or(0));
        total += ranks.iter().map(|&load| u128::from(load)).sum::<u128>();
    }
    if total == 0 {
        return 100;
    }
    u32::try_from((100 * peaks * usable + total / 2) / total).unwrap_or(u32::MAX)
}

//! Where tokens go: the load of experts, how even it is over the ranks, and prompts that make it uneven.

use belay_proto::admin::{ExpertLoad, LayerPlacement};

/// Tokens by layer and expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// By layer, by expert.
    pub layers: Vec<Vec<f64>>,
    /// Seconds after which a token counts half.
    pub half_life: f64,
}

impl Load {
    /// As a worker tells it.
    #[must_use]
    pub fn of(answer: &ExpertLoad) -> Self {
        let tokens = |millitokens: &u64| *millitokens as f64 / 1e3;
        let layers = answer.layers.iter().map(|layer| layer.millitokens.iter().map(tokens).collect());
        Self { layers: layers.collect(), half_life: answer.half_life_seconds }
    }

    /// Both together: the workers of a group count what each asked for.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        if self.layers.is_empty() {
            return other.clone();
        }
        for (layer, more) in self.layers.iter_mut().zip(&other.layers) {
            layer.iter_mut().zip(more).for_each(|(tokens, more)| *tokens += more);
        }
        self
    }

    /// What came since an `earlier` answer of the same worker.
    #[must_use]
    pub fn since(&self, earlier: &Self, seconds: f64) -> Self {
        let left = if self.half_life > 0.0 { 0.5_f64.powf(seconds / self.half_life) } else { 1.0 };
        let mut new = self.clone();
        for (layer, old) in new.layers.iter_mut().zip(&earlier.layers) {
            layer.iter_mut().zip(old).for_each(|(tokens, old)| *tokens = (*tokens - old * left).max(0.0));
        }
        new
    }

    /// Tokens of all layers and experts.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.layers.iter().flatten().sum()
    }
}

/// Imbalance of a load on a placement, in percent: 100 × the sum over layers of the busiest rank's load, by the sum of
/// the mean rank's load. An expert's load is split evenly over its copies. 100 is even, as is no load at all.
#[must_use]
pub fn imbalance_percent(placement: &[LayerPlacement], ranks: usize, load: &Load) -> f64 {
    let (mut busiest, mut mean) = (0.0, 0.0);
    for (layer, tokens) in placement.iter().zip(&load.layers) {
        let mut of_rank = vec![0.0_f64; ranks];
        for (expert, tokens) in layer.experts.iter().zip(tokens) {
            for &rank in &expert.ranks {
                if let Some(rank) = of_rank.get_mut(rank as usize) {
                    *rank += tokens / expert.ranks.len() as f64;
                }
            }
        }
        busiest += of_rank.iter().copied().fold(0.0, f64::max);
        mean += of_rank.iter().sum::<f64>() / ranks as f64;
    }
    if mean > 0.0 { 100.0 * busiest / mean } else { 100.0 }
}

/// What a mix of prompts is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// Few ranks have most to do.
    Skewed,
    /// All have the same.
    Even,
}

/// Chooses `count` of the prompts whose loads are given, one after the other: each time the one that brings the load of
/// all chosen so far closest to the aim. Indices, and the imbalance of the mix.
#[must_use]
pub fn choose(
    loads: &[Load],
    placement: &[LayerPlacement],
    ranks: usize,
    count: usize,
    aim: Aim,
) -> (Vec<usize>, f64) {
    let mut chosen: Vec<usize> = Vec::new();
    let (mut sum, mut reached) = (Load::default(), 100.0);
    while chosen.len() < count {
        let open = (0..loads.len()).filter(|index| !chosen.contains(index));
        let each = open.map(|index| {
            let with = sum.clone().and(&loads[index]);
            (index, imbalance_percent(placement, ranks, &with), with)
        });
        let best = each.max_by(|(_, a, _), (_, b, _)| match aim {
            Aim::Skewed => a.total_cmp(b),
            Aim::Even => b.total_cmp(a),
        });
        let Some((index, imbalance, with)) = best else { break };
        (sum, reached) = (with, imbalance);
        chosen.push(index);
    }
    (chosen, reached)
}

#[cfg(test)]
mod tests {
    use belay_proto::admin::{ExpertCopies, LayerLoad};

    use super::*;

    fn placement(holders: &[&[u32]]) -> Vec<LayerPlacement> {
        let experts = holders.iter().map(|ranks| ExpertCopies { ranks: ranks.to_vec() }).collect();
        vec![LayerPlacement { experts }]
    }

    fn load(tokens: &[f64]) -> Load {
        Load { layers: vec![tokens.to_vec()], half_life: 60.0 }
    }

    #[test]
    fn imbalance_is_the_busiest_by_the_mean() {
        let apart = placement(&[&[0], &[1]]);
        assert_eq!(imbalance_percent(&apart, 2, &load(&[3.0, 3.0])), 100.0);
        assert_eq!(imbalance_percent(&apart, 2, &load(&[3.0, 1.0])), 150.0);
        assert_eq!(imbalance_percent(&apart, 2, &load(&[3.0, 0.0])), 200.0);
        assert_eq!(imbalance_percent(&apart, 2, &load(&[0.0, 0.0])), 100.0);
        let shared = placement(&[&[0, 1], &[1]]);
        assert_eq!(imbalance_percent(&shared, 2, &load(&[2.0, 0.0])), 100.0);
        let mut two = load(&[3.0, 1.0]);
        two.layers.push(vec![1.0, 3.0]);
        let layers = [apart.clone(), apart].concat();
        assert_eq!(imbalance_percent(&layers, 2, &two), 150.0, "each layer has a busiest rank of its own");
    }

    #[test]
    fn what_came_since_is_told_apart_from_what_decayed() {
        let answer =
            ExpertLoad { layers: vec![LayerLoad { millitokens: vec![8000, 500] }], half_life_seconds: 60.0 };
        let now = Load::of(&answer);
        assert_eq!(now.since(&load(&[4.0, 2.0]), 60.0).layers, [[6.0, 0.0]]);
        assert_eq!(now.total(), 8.5);
        assert_eq!(Load::default().and(&now).and(&now).layers, [[16.0, 1.0]]);
    }

    #[test]
    fn prompts_are_chosen_for_the_mix_and_not_each_for_itself() {
        let placement = placement(&[&[0], &[1]]);
        let loads = [load(&[9.0, 1.0]), load(&[5.0, 5.0]), load(&[8.0, 2.0]), load(&[0.0, 8.0])];
        let (skewed, percent) = choose(&loads, &placement, 2, 2, Aim::Skewed);
        assert_eq!((skewed, percent), (vec![3, 1], 100.0 * 13.0 / 9.0));
        let (even, percent) = choose(&loads, &placement, 2, 1, Aim::Even);
        assert_eq!((even, percent), (vec![1], 100.0));
        assert_eq!(choose(&loads, &placement, 2, 9, Aim::Even).0.len(), 4);
    }
}

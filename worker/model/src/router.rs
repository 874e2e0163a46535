//! Which experts a token goes to, and with what weight.

use belay_backend::{Backend, Precision, Route};

use crate::checkpoint::CheckpointError;
use crate::config::{Config, RouterKind};
use crate::linear::{Linear, Loader};

pub(crate) struct Router<B: Backend> {
    pub(crate) gate: Linear<B>,
    choice: Choice,
}

/// The host-side decision of one layer.
struct Choice {
    by: By,
    experts: usize,
    k: usize,
    scaling: f32,
}

enum By {
    /// `[V, k]`: the token's id decides.
    Token(Vec<u32>),
    /// `[E]`: the best of score + bias.
    Score(Vec<f32>),
}

impl<B: Backend> Router<B> {
    /// `name` is `layers.N.ffn.gate`.
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        config: &Config,
        name: &str,
        kind: RouterKind,
    ) -> Result<Self, CheckpointError> {
        let (experts, k) = (config.experts, config.experts_per_token);
        let by = match kind {
            RouterKind::Hash => By::Token(loader.checkpoint.table(
                &format!("{name}.tid2eid"),
                config.vocab_size,
                k,
                experts,
            )?),
            RouterKind::Learned => By::Score(loader.checkpoint.vector(&format!("{name}.bias"), experts)?),
        };
        Ok(Self {
            gate: loader.linear_in(Precision::Full, name, experts, config.hidden_size)?,
            choice: Choice { by, experts, k, scaling: config.routed_scaling },
        })
    }

    /// Routes of all rows, by row and then by expert. `scores` is `[rows, E]`: sqrt(softplus(gate x)).
    pub(crate) fn route(&self, scores: &[f32], ids: &[u32], routes: &mut Vec<Route>) {
        self.choice.route(scores, ids, routes);
    }
}

impl Choice {
    fn route(&self, scores: &[f32], ids: &[u32], routes: &mut Vec<Route>) {
        routes.clear();
        let mut chosen = Vec::with_capacity(self.k + 1);
        for (row, (scores, &id)) in scores.chunks_exact(self.experts).zip(ids).enumerate() {
            match &self.by {
                By::Token(table) => {
                    chosen.clear();
                    chosen.extend_from_slice(&table[id as usize * self.k..][..self.k]);
                }
                By::Score(bias) => best(scores, bias, self.k, &mut chosen),
            }
            chosen.sort_unstable();
            // the bias decides who is chosen, not how much it counts
            let sum: f32 = chosen.iter().map(|&expert| scores[expert as usize]).sum();
            routes.extend(chosen.iter().map(|&expert| Route {
                row: row as u32,
                expert,
                weight: scores[expert as usize] / sum * self.scaling,
            }));
        }
    }
}

/// The k highest of score + bias; the lower index wins a tie.
fn best(scores: &[f32], bias: &[f32], k: usize, chosen: &mut Vec<u32>) {
    chosen.clear();
    let value = |expert: u32| scores[expert as usize] + bias[expert as usize];
    for expert in 0..scores.len() as u32 {
        let place = chosen.partition_point(|&other| value(other) >= value(expert));
        if place < k {
            chosen.insert(place, expert);
            chosen.truncate(k);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn weights_come_from_scores_without_bias() {
        let choice = Choice { by: By::Score(vec![0.0, 5.0, 0.0]), experts: 3, k: 2, scaling: 2.0 };
        let mut routes = Vec::new();
        choice.route(&[3.0, 1.0, 2.0], &[0], &mut routes);
        assert_eq!(
            routes,
            [Route { row: 0, expert: 0, weight: 1.5 }, Route { row: 0, expert: 1, weight: 0.5 }]
        );
    }

    #[test]
    fn hash_layers_look_only_at_the_token() {
        let choice = Choice { by: By::Token(vec![0, 1, 2, 0]), experts: 3, k: 2, scaling: 1.0 };
        let mut routes = Vec::new();
        choice.route(&[1.0, 1.0, 1.0, 1.0, 9.0, 3.0], &[0, 1], &mut routes);
        let sets: Vec<_> = routes.iter().map(|route| (route.row, route.expert, route.weight)).collect();
        assert_eq!(sets, [(0, 0, 0.5), (0, 1, 0.5), (1, 0, 0.25), (1, 2, 0.75)]);
    }

    proptest! {
        #[test]
        fn best_is_what_sorting_gives(scores in prop::collection::vec(0u8..6, 1..40), k in 1usize..8) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let k = k.min(scores.len());
            let mut sorted: Vec<u32> = (0..scores.len() as u32).collect();
            sorted.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
            let mut chosen = Vec::new();
            best(&scores, &vec![0.0; scores.len()], k, &mut chosen);
            prop_assert_eq!(&chosen, &sorted[..k]);
        }
    }
}

//! Ranks and experts in words.
use std::collections::BTreeMap;

use belay_proto::admin::LayerPlacement;

use super::seats::worker_of;

/// Ranks of a worker: "rank 3", "ranks 2-3".
pub fn describe_ranks(worker: u32, ranks_per_worker: u32) -> String {
    let first = worker.saturating_mul(ranks_per_worker);
    match ranks_per_worker {
        0 | 1 => format!("rank {first}"),
        _ => format!("ranks {first}-{}", first.saturating_add(ranks_per_worker - 1)),
    }
}

/// Experts that a worker's ranks hold: "layers 0-42 experts 128-191", or their number if that is shorter.
pub fn describe_copies(layers: &[LayerPlacement], ranks_per_worker: u32, worker: u32) -> String {
    const MOST: usize = 3;
    let mut by_experts: BTreeMap<Vec<u32>, Vec<u32>> = BTreeMap::new();
    let mut total = 0usize;
    for (layer, placed) in (0u32..).zip(layers) {
        let here: Vec<u32> = (0u32..)
            .zip(&placed.experts)
            .filter(|(_, copies)| {
                copies.ranks.iter().any(|rank| worker_of(*rank, ranks_per_worker) == worker)
            })
            .map(|(expert, _)| expert)
            .collect();
        total += here.len();
        if !here.is_empty() {
            by_experts.entry(here).or_default().push(layer);
        }
    }
    if by_experts.is_empty() {
        return "no experts".to_owned();
    }
    let simple = by_experts.len() <= MOST && by_experts.keys().all(|experts| ranges(experts).len() <= MOST);
    if !simple {
        return format!("{total} experts of {} layers", by_experts.values().map(Vec::len).sum::<usize>());
    }
    let parts: Vec<String> = by_experts
        .iter()
        .map(|(experts, layers)| {
            format!("layers {} experts {}", ranges(layers).join(","), ranges(experts).join(","))
        })
        .collect();
    parts.join("; ")
}

/// Ascending numbers as ranges: "0-2", "5".
fn ranges(numbers: &[u32]) -> Vec<String> {
    let mut ranges: Vec<(u32, u32)> = vec![];
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let text =
        |(first, last): (u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use belay_proto::admin::ExpertCopies;

    use super::*;

    fn layer(ranks: &[&[u32]]) -> LayerPlacement {
        LayerPlacement { experts: ranks.iter().map(|ranks| ExpertCopies { ranks: ranks.to_vec() }).collect() }
    }

    #[test]
    fn equal_layers_are_told_together() {
        let even = layer(&[&[0], &[1], &[2], &[3], &[2, 0]]);
        let layers = vec![even.clone(), even.clone(), even];
        assert_eq!(describe_copies(&layers, 2, 1), "layers 0-2 experts 2-4");
        assert_eq!(describe_copies(&layers, 2, 0), "layers 0-2 experts 0-1,4");
        assert_eq!(describe_copies(&layers, 2, 7), "no experts");
    }

    #[test]
    fn what_cannot_be_told_shortly_is_counted() {
        let layers: Vec<LayerPlacement> = (0..4usize)
            .map(|skip| {
                layer(
                    &(0..8usize).map(|e| if e % 4 == skip { &[0u32][..] } else { &[1] }).collect::<Vec<_>>(),
                )
            })
            .collect();
        assert_eq!(describe_copies(&layers, 1, 0), "8 experts of 4 layers");
    }

    #[test]
    fn ranks_are_named() {
        assert_eq!((describe_ranks(1, 2), describe_ranks(3, 1)), ("ranks 2-3".into(), "rank 3".into()));
    }
}

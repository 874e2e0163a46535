//! Whatever is answered: nothing panics, no line is too long, and no copy is hidden.
use belay_proto::admin::{ExpertCopies, PeerHealth, Phase};
use kubectl_belay::{
    answers::GroupAnswers,
    picture::{
        grid::{Grid, Mark},
        text::{Options, render},
        view::View,
    },
    terminal::line::Line,
};
use proptest::prelude::*;

use crate::support::group::{self, Size, answers, of};

/// A group that is broken in every way at once.
fn broken() -> impl Strategy<Value = (Size, GroupAnswers)> {
    let size =
        (1u32..4, 1u32..40, 1u32..5, 1u32..4).prop_map(|(layers, experts, workers, ranks_per_worker)| Size {
            layers,
            experts,
            workers,
            ranks_per_worker,
        });
    size.prop_flat_map(|size| {
        let worker =
            (any::<bool>(), 0i32..4, any::<bool>(), prop::collection::vec(any::<u8>(), 0..60), 0u32..3);
        (
            Just(size),
            prop::option::of(prop::collection::vec(prop::collection::vec(0..size.ranks() + 2, 0..4), 1..60)),
            prop::collection::vec(worker, size.workers as usize),
            any::<bool>(),
        )
    })
    .prop_map(|(size, placed, workers, no_load)| {
        let mut group = group::group(size);
        match placed {
            None => group.placement = None,
            Some(placed) => {
                let mut placed = placed.into_iter().cycle();
                let layers = &mut group.placement.as_mut().unwrap().layers;
                for copies in layers.iter_mut().flat_map(|layer| &mut layer.experts) {
                    *copies = ExpertCopies { ranks: placed.next().unwrap() };
                }
            }
        }
        for (index, (silent, health, new, bits, adopted)) in workers.into_iter().enumerate() {
            let answer = of(&mut group, index);
            answer.status.set_phase(if new { Phase::Loading } else { Phase::Ready });
            answer.status.coverage.as_mut().unwrap().adopted = adopted;
            for peer in &mut answer.status.peers {
                peer.set_health(PeerHealth::try_from(health).unwrap());
            }
            if no_load {
                answer.load = Err("no".into());
            }
            let mut bits = bits.into_iter().cycle();
            for layer in answer.experts.as_mut().unwrap().ranks.iter_mut().flat_map(|rank| &mut rank.layers) {
                *layer = layer.iter().map(|_| bits.next().unwrap_or(0)).collect::<Vec<u8>>();
            }
            if new {
                group.pods[index].pod.uid = "new".into();
            }
            if silent {
                group.pods[index].worker = Err("no answer \u{1b}[2J\n at all".into());
            }
        }
        (size, group)
    })
}

/// (layer, expert, rank) of each bit that a worker told.
fn told(group: &GroupAnswers) -> Vec<(u32, u32, u32)> {
    let mut told = vec![];
    for rank in group
        .pods
        .iter()
        .filter_map(|pod| pod.worker.as_ref().ok())
        .flat_map(|a| &a.experts.as_ref().unwrap().ranks)
    {
        for (layer, bits) in (0..).zip(&rank.layers) {
            told.extend(
                (0..8 * bits.len() as u32)
                    .filter(|e| bits[*e as usize / 8] >> (e % 8) & 1 == 1)
                    .map(|e| (layer, e, rank.rank)),
            );
        }
    }
    told
}

proptest! {
    #[test]
    fn every_resident_copy_is_seen((_, group) in broken(), width in 20usize..220, coloured: bool) {
        let view = View::of(&answers(group.clone()));
        let shown = &view.groups[0];
        for columns in [1u32, 7, 40, 1000] {
            let grid = Grid::of(&shown.copies, &shown.ranks, columns);
            prop_assert!(grid.columns <= columns && grid.columns * grid.experts_per_column >= shown.copies.shape.experts);
            let mut seen = 0;
            for (layer, expert, rank) in told(&group) {
                let row = grid.rows.iter().find(|row| row.rank == rank).unwrap();
                let cell = row.cells[(expert / grid.experts_per_column) as usize];
                prop_assert!(cell.mark != Mark::Nothing && cell.resident > 0, "layer {layer} expert {expert} rank {rank}");
                seen += 1;
            }
            let counted: u32 = grid.rows.iter().flat_map(|row| &row.cells).map(|cell| cell.resident).sum();
            prop_assert_eq!(counted, seen, "nothing is counted twice");
        }

        let lines = render(&view, Options { width, coloured });
        for line in &lines {
            prop_assert!(line.width() <= width, "{:?}", line);
            prop_assert!(!line.plain().contains(|c: char| c.is_control()), "{:?}", line);
        }
        // and in words: a row's signs, and the sum at its end
        for rank in shown.ranks.iter().filter(|rank| rank.copies > 0) {
            let label = format!("{:>4} ", rank.rank);
            let row = lines.iter().map(Line::plain).find(|line| line.starts_with(&label));
            let row = row.ok_or_else(|| TestCaseError::fail(format!("rank {} has no row", rank.rank)))?;
            prop_assert!(row[label.len()..].contains(['#', 'o', '+', 'a', '>', '<', '?', 'x', 'X']), "{row}");
            if width >= 50 {
                prop_assert!(row.ends_with(&format!(" {}", rank.copies)), "{row}");
            }
        }
    }

    #[test]
    fn loads_on_copies_add_up_to_those_of_covered_experts((_, group) in broken()) {
        let view = View::of(&answers(group));
        let copies = &view.groups[0].copies;
        for layer in copies.layers() {
            for expert in 0..copies.shape.experts {
                let live: Vec<u64> = copies
                    .list
                    .iter()
                    .filter(|copy| (copy.layer, copy.expert) == (layer, expert) && copy.state.is_live())
                    .map(|copy| copy.load)
                    .collect();
                let all = copies.load_of(layer, expert);
                let sum: u64 = live.iter().sum();
                if !live.is_empty() {
                    // split over copies, and rounded down at each
                    prop_assert!(sum <= all && all - sum < live.len() as u64);
                }
            }
        }
        prop_assert!(view.groups[0].imbalance_percent.is_none_or(|percent| percent >= 100));
        let json = serde_json::to_value(&view).unwrap();
        prop_assert!(json["groups"][0]["layers"].is_array());
    }
}

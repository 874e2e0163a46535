//! Copies folded into cells: a row for each rank, a column for each expert, or for several where there is no room.
use std::collections::BTreeMap;

use super::{
    copies::{Copies, Copy, State},
    heat::{Heat, heat},
    view::RankView,
};

/// What stands in a cell: of several copies that which asks for most attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// No copy.
    #[default]
    Nothing,
    /// A copy beyond the first; there are others.
    Further,
    /// The first of several copies.
    First,
    /// The only live copy.
    Only,
    /// Held still, though no placement needs it.
    Leaving,
    /// Held already, for the placement that is being prepared.
    Arriving,
    /// Held for ranks that are lost.
    Adopted,
    /// Its worker does not answer this program.
    Unseen,
    /// Not here, but live elsewhere.
    Missing,
    /// Not here, and nowhere else.
    Uncovered,
}

impl Mark {
    /// All that a cell may show, as the legend lists them.
    pub const ALL: [Self; 9] = [
        Self::Only,
        Self::First,
        Self::Further,
        Self::Adopted,
        Self::Arriving,
        Self::Leaving,
        Self::Unseen,
        Self::Missing,
        Self::Uncovered,
    ];

    /// Of one copy.
    pub fn of(copy: &Copy) -> Self {
        match copy.state {
            State::Missing if copy.live_copies == 0 => Self::Uncovered,
            State::Missing => Self::Missing,
            State::Unseen => Self::Unseen,
            State::Adopted => Self::Adopted,
            State::Arriving => Self::Arriving,
            State::Leaving => Self::Leaving,
            State::First | State::Further if copy.live_copies == 1 => Self::Only,
            State::First => Self::First,
            State::Further => Self::Further,
        }
    }

    /// One character, one column wide in every terminal.
    pub fn sign(self) -> char {
        match self {
            Self::Nothing => '.',
            Self::Further => '+',
            Self::First => 'o',
            Self::Only => '#',
            Self::Leaving => '<',
            Self::Arriving => '>',
            Self::Adopted => 'a',
            Self::Unseen => '?',
            Self::Missing => 'x',
            Self::Uncovered => 'X',
        }
    }

    /// What it means.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Nothing => "no copy",
            Self::Further => "further copy",
            Self::First => "first of several copies",
            Self::Only => "only live copy",
            Self::Leaving => "about to go",
            Self::Arriving => "loaded for the next epoch",
            Self::Adopted => "adopted for a lost rank",
            Self::Unseen => "worker answers its peers only",
            Self::Missing => "missing, lives elsewhere",
            Self::Uncovered => "missing, lives nowhere",
        }
    }
}

/// One cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// What stands in it.
    pub mark: Mark,
    /// Copies that the rank holds.
    pub resident: u32,
    /// Mean load of its live copies; `None` without load, or without a live copy.
    pub heat: Option<Heat>,
}

/// One rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub rank: u32,
    /// Its worker.
    pub worker: u32,
    /// By column.
    pub cells: Vec<Cell>,
    /// Copies that it holds.
    pub resident: u32,
    /// Its load in percent of the mean rank's; absent without load.
    pub load_percent: Option<u64>,
}

/// All cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Experts in a column; at least 1.
    pub experts_per_column: u32,
    /// Columns.
    pub columns: u32,
    /// By rank.
    pub rows: Vec<Row>,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    cell: Cell,
    live: u32,
    load: u64,
}

impl Grid {
    /// Folds copies into at most `most_columns` columns of equally many experts.
    pub fn of(copies: &Copies, ranks: &[RankView], most_columns: u32) -> Self {
        let experts = copies.shape.experts;
        let experts_per_column = experts.div_ceil(most_columns.max(1)).max(1);
        let columns = experts.div_ceil(experts_per_column);
        let mut sums: BTreeMap<u32, Vec<Sum>> =
            ranks.iter().map(|rank| (rank.rank, vec![Sum::default(); columns as usize])).collect();
        for copy in &copies.list {
            let column = (copy.expert / experts_per_column) as usize;
            let Some(sum) = sums.get_mut(&copy.rank).and_then(|row| row.get_mut(column)) else { continue };
            sum.cell.mark = sum.cell.mark.max(Mark::of(copy));
            sum.cell.resident += u32::from(copy.state.is_resident());
            sum.live += u32::from(copy.state.is_live());
            sum.load = sum.load.saturating_add(copy.load);
        }
        let of_layer = |layer| (0..experts).map(move |expert| copies.load_of(layer, expert));
        let all = copies.layers().flat_map(of_layer).fold(0, u64::saturating_add);
        let pairs = experts.saturating_mul(u32::try_from(copies.layers().len()).unwrap_or(u32::MAX));
        // a rank without a live copy takes no part in the mean: it is lost, or new
        let taking = sums.values().filter(|row| row.iter().any(|sum| sum.live > 0)).count() as u128;
        let loads: u128 = sums.values().flatten().map(|sum| u128::from(sum.load)).sum();
        let rows = ranks.iter().zip(sums.values()).map(|(rank, row)| {
            let load: u128 = row.iter().map(|sum| u128::from(sum.load)).sum();
            let is_live = row.iter().any(|sum| sum.live > 0);
            let percent = (100 * load * taking + loads / 2).checked_div(loads);
            Row {
                rank: rank.rank,
                worker: rank.worker,
                resident: row.iter().map(|sum| sum.cell.resident).sum(),
                load_percent: percent.filter(|_| is_live).and_then(|percent| u64::try_from(percent).ok()),
                cells: row
                    .iter()
                    .map(|sum| Cell { heat: heat(sum.load, sum.live, all, pairs), ..sum.cell })
                    .collect(),
            }
        });
        Self { experts_per_column, columns, rows: rows.collect() }
    }
}

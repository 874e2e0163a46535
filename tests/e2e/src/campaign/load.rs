//! A group under a skewed or an even load over time.

use anyhow::Result;

use super::{
    csv::{self, Record},
    provenance::Provenance,
};

/// One moment of one run: a line of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moment {
    /// Where it comes from.
    pub provenance: Provenance,
    /// `skewed` or `even`.
    pub mix: String,
    /// Workers and ranks: `4x1`.
    pub layout: String,
    /// Seconds between two rebalances at least.
    pub interval_s: u32,
    /// Seconds since the load began.
    pub at_s: f64,
    /// As computed from the workers' counts, of the last seconds, and the placement in force.
    pub imbalance_percent: f64,
    /// Of all clients, since the moment before.
    pub tokens_per_s: f64,
    /// Epoch in force.
    pub epoch: u64,
}

impl Record for Moment {
    const COLUMNS: &'static [&'static str] = &[
        "date",
        "commit",
        "machine",
        "mix",
        "layout",
        "interval_s",
        "at_s",
        "imbalance_percent",
        "tokens_per_s",
        "epoch",
    ];

    fn values(&self) -> Vec<String> {
        let Provenance { date, commit, machine } = self.provenance.clone();
        vec![
            date,
            commit,
            machine,
            self.mix.clone(),
            self.layout.clone(),
            self.interval_s.to_string(),
            csv::seconds(Some(self.at_s)),
            format!("{:.1}", self.imbalance_percent),
            format!("{:.1}", self.tokens_per_s),
            self.epoch.to_string(),
        ]
    }

    fn parse(values: &[&str]) -> Result<Self> {
        let text = |name| csv::value::<String>(Self::COLUMNS, values, name);
        let number = |name| csv::value::<f64>(Self::COLUMNS, values, name);
        Ok(Self {
            provenance: Provenance::parse(Self::COLUMNS, values)?,
            mix: text("mix")?,
            layout: text("layout")?,
            interval_s: csv::value(Self::COLUMNS, values, "interval_s")?,
            at_s: number("at_s")?,
            imbalance_percent: number("imbalance_percent")?,
            tokens_per_s: number("tokens_per_s")?,
            epoch: csv::value(Self::COLUMNS, values, "epoch")?,
        })
    }
}

/// What the moments of one run show.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Seconds from the first moment to the last.
    pub seconds: f64,
    /// Times that the epoch changed.
    pub moves: usize,
    /// Mean imbalance before the first move, in percent; of all moments without one.
    pub before_percent: f64,
    /// The last moment's.
    pub after_percent: f64,
    /// Largest of all moments.
    pub most_percent: f64,
    /// From the load's beginning until the imbalance was below 120 % for good; `None` if it is not.
    pub even_after_s: Option<f64>,
    /// Mean throughput before the first move.
    pub tokens_before: f64,
    /// Mean throughput from the last move on.
    pub tokens_after: f64,
}

/// What counts as even, in percent.
pub const EVEN_PERCENT: f64 = 120.0;

impl Summary {
    /// Of the moments of one run, in their order. The first moment of each part is left out of its throughput: it
    /// lies across the change.
    #[must_use]
    pub fn of(moments: &[Moment]) -> Option<Self> {
        let (first, last) = (moments.first()?, moments.last()?);
        let moves = moments.windows(2).filter(|pair| pair[0].epoch != pair[1].epoch).count();
        let before = || moments.iter().filter(|moment| moment.epoch == first.epoch);
        let after = || moments.iter().filter(|moment| moment.epoch == last.epoch);
        let uneven = moments.iter().rposition(|moment| moment.imbalance_percent >= EVEN_PERCENT);
        let even_from = uneven.map_or(0, |index| index + 1);
        Some(Self {
            seconds: last.at_s - first.at_s,
            moves,
            before_percent: mean(before().map(|moment| moment.imbalance_percent)),
            after_percent: last.imbalance_percent,
            most_percent: moments.iter().map(|moment| moment.imbalance_percent).fold(0.0, f64::max),
            even_after_s: moments.get(even_from).map(|moment| moment.at_s),
            tokens_before: mean(before().skip(1).map(|moment| moment.tokens_per_s)),
            tokens_after: mean(after().skip(1).map(|moment| moment.tokens_per_s)),
        })
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for value in values {
        sum += value;
        count += 1;
    }
    if count == 0 { 0.0 } else { sum / f64::from(count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(at_s: f64, imbalance_percent: f64, tokens_per_s: f64, epoch: u64) -> Moment {
        Moment { at_s, imbalance_percent, tokens_per_s, epoch, mix: "skewed".into(), ..Moment::default() }
    }

    #[test]
    fn a_move_is_told_by_the_epoch_and_judged_by_what_came_after() {
        let run = [
            moment(1.0, 180.0, 0.0, 1),
            moment(2.0, 160.0, 100.0, 1),
            moment(3.0, 150.0, 90.0, 2),
            moment(4.0, 119.0, 110.0, 2),
            moment(5.0, 110.0, 130.0, 2),
        ];
        let summary = Summary::of(&run).unwrap();
        assert_eq!((summary.moves, summary.seconds), (1, 4.0));
        assert_eq!(
            (summary.before_percent, summary.after_percent, summary.most_percent),
            (170.0, 110.0, 180.0)
        );
        assert_eq!((summary.tokens_before, summary.tokens_after), (100.0, 120.0));
        assert_eq!(summary.even_after_s, Some(4.0));
        assert_eq!(Summary::of(&run[..3]).unwrap().even_after_s, None);
        assert_eq!(Summary::of(&run[3..]).unwrap().even_after_s, Some(4.0));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn moments_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("load.csv");
        let moment = moment(1.5, 150.5, 99.5, 3);
        csv::append(&path, &moment).unwrap();
        assert_eq!(csv::read::<Moment>(&path).unwrap(), [moment]);
    }
}

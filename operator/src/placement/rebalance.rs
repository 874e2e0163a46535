//! Whether a change for the sake of balance is worth it: pure.
//!
//! A change costs: copies are read from the checkpoint while the group serves. So there is none unless all of this holds:
//!
//! 1. The last one is `min_interval` ago.
//! 2. The imbalance reaches the threshold.
//! 3. Its excess over 100 % is at least twice what chance could show. A router that is perfectly even still gives ranks
//!    different numbers of tokens, and the busiest of `R` ranks is what counts: with `m` routes a rank on average and
//!    independent tokens its number exceeds `m` by `√(2·m·ln R) + ln R/3` (the expectation of the greatest of `R` Poisson
//!    counts is no more than that). Tokens are not independent: what comes from one text goes to the same experts. So
//!    routes are taken to come in bursts of [`BURST`], and three standard deviations of the sum over layers are added.
//!    For a threshold of 130 % this asks for about 40,000 tokens with 128 ranks, 61 layers and 6 experts a token, and for
//!    about 4,000 with 16 ranks; an imbalance of 200 % is believed after a tenth of that.
//!    And a load that cannot be told from an even one is taken as even, or experts would move after what is but noise.
//! 4. The better placement takes away a third of the excess, and more than chance could have brought. What chance could
//!    show is not counted as a gain: nothing better than that was ever seen.
//! 5. Until the next change may come, more serving time is gained than loading costs.
use std::{fmt, time::Duration};

use belay_proto::admin::LayerPlacement;

use super::{Aim, Copies, Fleet, Load, Model, PlacementError, Planned, imbalance_percent, plan};

/// Tokens that are taken to have gone to an expert together, as one event.
const BURST: f64 = 4.0;

/// Standard deviations of the busiest ranks' load that are put down to chance.
const DEVIATIONS: f64 = 3.0;

/// When a change may be made, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Imbalance from which a change is considered, in percent.
    pub threshold_percent: u32,
    /// Between two changes.
    pub min_interval: Duration,
    /// Since the last one; `None`: there was none.
    pub since_last: Option<Duration>,
    /// Copies that one change may load.
    pub most_moves: u32,
    /// What a change costs.
    pub price: Price,
}

/// Estimates of what a change costs and what balance is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Bytes of experts that a worker loads in a second while it serves.
    pub bytes_per_second: u64,
    /// How much slower the group is meanwhile, in percent.
    pub slowdown_percent: u32,
    /// Part of a step that waits for the busiest rank, in percent.
    pub experts_percent: u32,
}

impl Default for Price {
    /// A disk or network of 0.5 GB/s, a fifth of the speed lost, half of a step spent on experts.
    fn default() -> Self {
        Self { bytes_per_second: 500_000_000, slowdown_percent: 20, experts_percent: 50 }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Leave everything where it is.
    Hold(Hold),
    /// Change.
    Move(Box<Change>),
}

/// A change that is worth it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Where the experts go.
    pub planned: Planned,
    /// Imbalance of what is in force, in percent.
    pub before_percent: u32,
    /// What it would have been with this placement, in percent.
    pub after_percent: u32,
    /// Bytes to load.
    pub bytes: u64,
    /// Serving time that is gained until the next change may come, in seconds.
    pub gain_seconds: f64,
    /// Serving time that loading costs, in seconds.
    pub cost_seconds: f64,
}

/// Why nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Hold {
    /// The last change was not long ago.
    TooSoon {
        /// Until the next may come.
        left: Duration,
    },
    /// The imbalance is below the threshold.
    Even {
        /// The imbalance, in percent.
        percent: u32,
        /// The threshold, in percent.
        threshold_percent: u32,
    },
    /// So few tokens were counted that the imbalance may be chance.
    Chance {
        /// The imbalance, in percent.
        percent: u32,
        /// What an even load of as many tokens could show, in percent.
        chance_percent: u32,
    },
    /// No placement within reach is enough better.
    NothingBetter {
        /// The imbalance, in percent.
        percent: u32,
        /// That of the best placement that was found, in percent.
        after_percent: u32,
    },
    /// Loading costs more than is gained.
    NotWorth {
        /// Serving time that would be gained until the next change may come, in seconds.
        gain_seconds: f64,
        /// Serving time that loading would cost, in seconds.
        cost_seconds: f64,
    },
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSoon { left } => write!(f, "the next rebalance may come in {} s", left.as_secs()),
            Self::Even { percent, threshold_percent } => {
                write!(f, "an imbalance of {percent} % is below the threshold of {threshold_percent} %")
            }
            Self::Chance { percent, chance_percent } => write!(
                f,
                "too few tokens were counted: an imbalance of {percent} % may be chance, which could show \
                 {chance_percent} %"
            ),
            Self::NothingBetter { percent, after_percent } => {
                write!(f, "an imbalance of {percent} % could only become {after_percent} %")
            }
            Self::NotWorth { gain_seconds, cost_seconds } => write!(
                f,
                "loading would cost {cost_seconds:.1} s of serving time and gain {gain_seconds:.1} s"
            ),
        }
    }
}

/// Decides whether copies move for the sake of balance.
///
/// What is missing is no matter of balance: [`Aim::Repair`] and [`Aim::Refill`] come first, and at once.
///
/// # Errors
/// When there can be no placement at all: see [`PlacementError`].
pub fn decide(
    model: &Model,
    copies: &Copies,
    fleet: &Fleet,
    load: &Load,
    current: &[LayerPlacement],
    terms: &Terms,
) -> Result<Decision, PlacementError> {
    let hold = |hold| Ok(Decision::Hold(hold));
    if let Some(left) = terms.since_last.and_then(|since| terms.min_interval.checked_sub(since))
        && !left.is_zero()
    {
        return hold(Hold::TooSoon { left });
    }
    let percent = imbalance_percent(current, Some(load), fleet);
    if percent < terms.threshold_percent {
        return hold(Hold::Even { percent, threshold_percent: terms.threshold_percent });
    }
    let chance = chance_percent(load, model, fleet);
    let chance_percent = whole(chance);
    if f64::from(percent.saturating_sub(100)) < 2.0 * (chance - 100.0) {
        return hold(Hold::Chance { percent, chance_percent });
    }
    let load = is_uneven(load, model).then_some(load);
    let before = imbalance_percent(current, load, fleet);
    if before < terms.threshold_percent {
        return hold(Hold::Chance { percent, chance_percent });
    }
    let excess = f64::from(before.saturating_sub(100));
    let aim = Aim::Rebalance { most_moves: terms.most_moves };
    let planned = plan(model, copies, fleet, load, Some(current), aim)?;
    let after = imbalance_percent(&planned.layers, load, fleet);
    let shown = f64::from(after).max(chance);
    let gained = f64::from(before) - shown;
    if gained < excess / 3.0 || gained <= chance - 100.0 || planned.moves.is_empty() {
        return hold(Hold::NothingBetter { percent: before, after_percent: after });
    }
    let gain_seconds = terms.min_interval.as_secs_f64() * f64::from(terms.price.experts_percent) / 100.0
        * gained
        / f64::from(before);
    let cost_seconds = cost_seconds(model, fleet, &planned, terms.price);
    if cost_seconds >= gain_seconds {
        return hold(Hold::NotWorth { gain_seconds, cost_seconds });
    }
    let bytes = (planned.moves.len() as u64).saturating_mul(model.expert_bytes);
    Ok(Decision::Move(Box::new(Change {
        planned,
        before_percent: before,
        after_percent: after,
        bytes,
        gain_seconds,
        cost_seconds,
    })))
}

/// The imbalance that an even load of as many tokens could show by chance, in percent.
pub fn chance_percent(load: &Load, model: &Model, fleet: &Fleet) -> f64 {
    let ranks = (0..fleet.ranks()).filter(|&rank| fleet.usable(rank)).count() as f64;
    if ranks < 2.0 {
        return 100.0;
    }
    let (mut means, mut above, mut variance) = (0.0, 0.0, 0.0);
    for layer in 0..model.layers as usize {
        let mean = load.routes(layer) / ranks;
        if mean > 0.0 {
            means += mean;
            above += (2.0 * BURST * mean * ranks.ln()).sqrt() + BURST * ranks.ln() / 3.0;
            variance += BURST * mean;
        }
    }
    if means == 0.0 {
        return f64::from(u32::MAX);
    }
    100.0 + 100.0 * (above + DEVIATIONS * variance.sqrt()) / means
}

/// Whether experts are used more differently than chance makes it look: the sum of `(n − m)²/m` over experts, `n` routes
/// each and `m` on average, is [`BURST`] for each expert but one of a layer if all are equally likely.
fn is_uneven(load: &Load, model: &Model) -> bool {
    let experts = model.experts as usize;
    let (mut sum, mut free) = (0.0, 0.0);
    for layer in 0..model.layers as usize {
        let mean = load.routes(layer) / experts.max(1) as f64;
        if mean > 0.0 {
            let routes = |expert| load.of(layer, expert) as f64 / 1e3;
            sum += (0..experts).map(|expert| (routes(expert) - mean).powi(2) / mean).sum::<f64>();
            free += experts as f64 - 1.0;
        }
    }
    sum > BURST * (free + DEVIATIONS * (2.0 * free).sqrt())
}

/// Workers load at the same time: the one that loads most counts.
fn cost_seconds(model: &Model, fleet: &Fleet, planned: &Planned, price: Price) -> f64 {
    let mut by_worker = vec![0u64; fleet.workers.len()];
    for to_load in &planned.moves {
        if let Some(count) = to_load
            .rank
            .checked_div(fleet.ranks_per_worker)
            .and_then(|worker| by_worker.get_mut(worker as usize))
        {
            *count += 1;
        }
    }
    let most = by_worker.iter().max().copied().unwrap_or(0) as f64 * model.expert_bytes as f64;
    most / price.bytes_per_second.max(1) as f64 * f64::from(price.slowdown_percent) / 100.0
}

/// A number of percent for people; rounded up, since it is a bound.
fn whole(percent: f64) -> u32 {
    percent.ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}

//! What the workers said over time about their experts' copies, and what follows from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use belay_proto::admin::{PeerHealth, Phase, WorkerStatus};

/// One answer of one worker, or that it gave none.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Since the sampler began.
    pub at: Duration,
    /// The pod's UID.
    pub uid: String,
    /// Index of the worker in its group.
    pub worker: u32,
    /// What it said.
    pub seen: Seen,
}

/// What a sample shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// An answer.
    View(View),
    /// No answer in time.
    Silent,
    /// The pod was deleted.
    Gone,
}

/// The part of a worker's status that is about copies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// It takes requests.
    pub ready: bool,
    /// Name of the process: a pod that is started anew keeps its UID, and another process has nothing to keep to.
    pub process: String,
    /// Epoch of the placement in force.
    pub epoch: u64,
    /// (layer, expert) pairs without a live copy.
    pub uncovered: u32,
    /// Live copies of the pair that has the fewest.
    pub min_live_copies: u32,
    /// Copies beyond the placement.
    pub adopted: u32,
    /// Time without coverage since it became ready, as it counted itself.
    pub uncovered_for: Duration,
    /// The part of it in which whatever had no live copy had a holder that was only silent.
    pub silent_for: Duration,
    /// Peers that do not answer.
    pub suspect: BTreeSet<u32>,
    /// Peers that are lost.
    pub lost: BTreeSet<u32>,
}

impl View {
    /// Of a status.
    #[must_use]
    pub fn of(status: &WorkerStatus) -> Self {
        let coverage = status.coverage.unwrap_or_default();
        let peers = |health| {
            status.peers.iter().filter(|peer| peer.health() == health).map(|peer| peer.worker).collect()
        };
        Self {
            ready: status.phase() == Phase::Ready,
            process: status.process.clone(),
            epoch: status.placement_epoch,
            uncovered: coverage.uncovered,
            min_live_copies: coverage.min_live_copies,
            adopted: coverage.adopted,
            uncovered_for: Duration::from_millis(coverage.uncovered_milliseconds),
            silent_for: Duration::from_millis(coverage.silent_milliseconds),
            suspect: peers(PeerHealth::Suspect),
            lost: peers(PeerHealth::Lost),
        }
    }

    fn serves(&self) -> bool {
        self.ready && self.uncovered == 0
    }
}

/// Samples in the order of their time.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    samples: Vec<Sample>,
}

impl Timeline {
    /// Sorts them. An answer that crossed with the news that its pod is gone does not count.
    #[must_use]
    pub fn new(mut samples: Vec<Sample>) -> Self {
        samples.sort_by_key(|sample| sample.at);
        let mut gone = BTreeSet::new();
        samples.retain(|sample| {
            let before = !gone.contains(&sample.uid);
            if sample.seen == Seen::Gone {
                gone.insert(sample.uid.clone());
            }
            before
        });
        Self { samples }
    }

    /// Samples in which a worker that had been ready saw an expert without a live copy, and the longest times that a
    /// worker counted itself. `except` are workers whose view does not count: those that were struck themselves.
    #[must_use]
    pub fn uncovered(&self, except: &[u32]) -> Uncovered {
        let mut all = Uncovered::default();
        for samples in self.lives().values() {
            let mut been_ready = false;
            let (mut before, mut grown, mut silent) = (None::<&View>, Duration::ZERO, Duration::ZERO);
            for (sample, view) in
                views(samples.iter().copied()).filter(|(sample, _)| !except.contains(&sample.worker))
            {
                let before_here = before.filter(|before| before.process == view.process);
                been_ready = view.ready || (been_ready && before_here.is_some());
                if been_ready && view.uncovered > 0 {
                    all.samples += 1;
                    all.first.get_or_insert_with(|| {
                        format!(
                            "worker {} saw {} experts without a copy at {:.2} s",
                            sample.worker,
                            view.uncovered,
                            sample.at.as_secs_f64()
                        )
                    });
                }
                // the counts begin anew with each process
                let growth = |of: fn(&View) -> Duration| match (before_here, before) {
                    (Some(before), _) => of(view).saturating_sub(of(before)),
                    (None, Some(_)) => of(view),
                    (None, None) => Duration::ZERO,
                };
                grown += growth(|view| view.uncovered_for);
                silent += growth(|view| view.silent_for);
                before = Some(view);
            }
            all.counted = all.counted.max(grown);
            all.bare = all.bare.max(grown.saturating_sub(silent));
        }
        all
    }

    /// How long after `since` some worker first saw that one of `struck` does not answer.
    #[must_use]
    pub fn noticed(&self, since: Duration, struck: &[u32]) -> Option<Duration> {
        self.first(since, struck, |view| view.suspect.union(&view.lost).copied().collect())
    }

    /// How long after `since` some worker first gave one of `struck` up.
    #[must_use]
    pub fn given_up(&self, since: Duration, struck: &[u32]) -> Option<Duration> {
        self.first(since, struck, |view| view.lost.clone())
    }

    /// How long after `since` the last of the workers that were ready then, `struck` aside, had coverage and was ready
    /// for good; zero if nothing kept them from it. `None` if one is not.
    #[must_use]
    pub fn served_again(&self, since: Duration, struck: &[u32]) -> Option<Duration> {
        let mut latest = Duration::ZERO;
        for samples in self.lives().values() {
            let survived = views(samples.iter().copied()).take_while(|(sample, _)| sample.at < since).last();
            if !survived.is_some_and(|(sample, view)| view.ready && !struck.contains(&sample.worker)) {
                continue;
            }
            let mut again = Some(Duration::ZERO);
            for (sample, view) in views(samples.iter().copied()).filter(|(sample, _)| sample.at >= since) {
                again = match (again, view.serves()) {
                    (_, false) => None,
                    (None, true) => Some(sample.at - since),
                    (again, true) => again,
                };
            }
            let replaced = samples.last().is_some_and(|sample| sample.seen == Seen::Gone);
            match again {
                Some(again) => latest = latest.max(again),
                None if replaced => {}
                None => return None,
            }
        }
        Some(latest)
    }

    /// How long after `since` all `workers` were ready for good, on one epoch, with `copies` live copies of every
    /// expert in each one's view and none adopted; zero if nothing kept them from it. `None` if it is not so.
    #[must_use]
    pub fn restored(&self, since: Duration, workers: u32, copies: u32) -> Option<Duration> {
        let mut last: BTreeMap<&str, (u32, Option<&View>)> = BTreeMap::new();
        let mut again = None;
        let mut ever_less = false;
        for sample in &self.samples {
            match &sample.seen {
                Seen::Gone => last.remove(sample.uid.as_str()),
                Seen::Silent => last.insert(&sample.uid, (sample.worker, None)),
                Seen::View(view) => last.insert(&sample.uid, (sample.worker, Some(view))),
            };
            if sample.at < since {
                continue;
            }
            let whole = whole(last.values(), workers, copies);
            ever_less |= !whole;
            again = match (again, whole) {
                (_, false) => None,
                (None, true) => Some(sample.at - since),
                (again, true) => again,
            };
        }
        if ever_less { again } else { again.map(|_| Duration::ZERO) }
    }

    /// Fewest live copies of any expert that a ready worker outside `except` saw from `since` on.
    #[must_use]
    pub fn least_copies(&self, since: Duration, except: &[u32]) -> Option<u32> {
        let samples =
            self.samples.iter().filter(|sample| sample.at >= since && !except.contains(&sample.worker));
        views(samples).filter(|(_, view)| view.ready).map(|(_, view)| view.min_live_copies).min()
    }

    /// Workers whose epoch fell while the process went on.
    #[must_use]
    pub fn fallen_epochs(&self) -> Vec<String> {
        let mut fallen = Vec::new();
        for samples in self.lives().values() {
            let mut before = None::<&View>;
            for (sample, view) in views(samples.iter().copied()) {
                if let Some(before) = before.filter(|before| before.process == view.process)
                    && view.epoch < before.epoch
                {
                    fallen.push(format!(
                        "worker {} fell from epoch {} to {}",
                        sample.worker, before.epoch, view.epoch
                    ));
                }
                before = Some(view);
            }
        }
        fallen
    }

    /// How closely the workers were watched.
    #[must_use]
    pub fn density(&self) -> Density {
        let mut between = Vec::new();
        for samples in self.lives().values() {
            let times: Vec<Duration> = views(samples.iter().copied()).map(|(sample, _)| sample.at).collect();
            between.extend(times.windows(2).map(|pair| pair[1] - pair[0]));
        }
        between.sort_unstable();
        Density {
            samples: self.samples.len(),
            median: between.get(between.len() / 2).copied().unwrap_or_default(),
            longest: between.last().copied().unwrap_or_default(),
        }
    }

    /// The last sample of each pod that is there, for people.
    #[must_use]
    pub fn last(&self) -> Vec<String> {
        let last = self.lives().into_iter().filter_map(|(uid, samples)| Some((uid, *samples.last()?)));
        last.filter(|(_, sample)| sample.seen != Seen::Gone)
            .map(|(uid, sample)| {
                format!(
                    "{:.1} s: worker {} ({uid}): {:?}",
                    sample.at.as_secs_f64(),
                    sample.worker,
                    sample.seen
                )
            })
            .collect()
    }

    fn lives(&self) -> BTreeMap<&str, Vec<&Sample>> {
        let mut lives: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
        for sample in &self.samples {
            lives.entry(&sample.uid).or_default().push(sample);
        }
        lives
    }

    fn first(
        &self,
        since: Duration,
        struck: &[u32],
        of: impl Fn(&View) -> BTreeSet<u32>,
    ) -> Option<Duration> {
        let samples =
            self.samples.iter().filter(|sample| sample.at >= since && !struck.contains(&sample.worker));
        views(samples)
            .find(|(_, view)| of(view).iter().any(|worker| struck.contains(worker)))
            .map(|(sample, _)| sample.at - since)
    }
}

/// Whether nothing is missing, by the last answer of each pod.
fn whole<'a>(last: impl Iterator<Item = &'a (u32, Option<&'a View>)>, workers: u32, copies: u32) -> bool {
    let mut indices = BTreeSet::new();
    let mut epochs = BTreeSet::new();
    for (worker, view) in last {
        let Some(view) = view else { return false };
        let complete = view.serves() && view.min_live_copies >= copies && view.adopted == 0;
        if !(complete && view.suspect.is_empty() && view.lost.is_empty() && indices.insert(*worker)) {
            return false;
        }
        epochs.insert(view.epoch);
    }
    indices.len() == workers as usize && epochs.len() == 1
}

fn views<'a>(samples: impl Iterator<Item = &'a Sample>) -> impl Iterator<Item = (&'a Sample, &'a View)> {
    samples.filter_map(|sample| match &sample.seen {
        Seen::View(view) => Some((sample, view)),
        Seen::Silent | Seen::Gone => None,
    })
}

/// Moments without coverage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uncovered {
    /// Samples that show one.
    pub samples: usize,
    /// The longest time in all that one worker counted.
    pub counted: Duration,
    /// The part of that in which something had no holder, not even one that was only silent; the longest of any worker.
    pub bare: Duration,
    /// The first sample that shows one, for people.
    pub first: Option<String>,
}

impl Uncovered {
    /// Whether there was none.
    #[must_use]
    pub fn none(&self) -> bool {
        self.samples == 0 && self.counted.is_zero()
    }

    /// Whether a copy of everything was there throughout. One whose holder was only silent was: on a machine that
    /// stands still for a moment every worker is silent. A sample cannot tell these apart, so it says nothing alone.
    #[must_use]
    pub fn held(&self) -> bool {
        self.bare.is_zero()
    }
}

/// Times between two answers of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Density {
    /// Samples in all.
    pub samples: usize,
    /// Median.
    pub median: Duration,
    /// Longest.
    pub longest: Duration,
}

impl fmt::Display for Density {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, median, longest } = self;
        write!(f, "{samples} samples, {} ms apart, at most {}", median.as_millis(), longest.as_millis())
    }
}

#[cfg(test)]
mod tests;

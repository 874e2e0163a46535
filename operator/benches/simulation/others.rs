//! What is there otherwise: a fixed number of groups, and a HorizontalPodAutoscaler with its defaults (a look each 15 s, a
//! tolerance of 10 %, up at once by 100 % or 4 in 15 s, down to the largest number of the last 5 minutes). It cannot go to zero.
use super::{
    Autoscaler,
    plant::{Plant, Seen},
};

/// A fixed number of groups.
pub struct Fixed(pub u32);

impl Autoscaler for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn start(&self) -> u32 {
        self.0
    }

    fn look(&mut self, _: f64, current: u32, _: &Plant) -> u32 {
        current
    }
}

/// What a HorizontalPodAutoscaler goes by.
#[derive(Clone, Copy, Debug)]
pub enum HpaMetric {
    /// Resource metric: mean share of what ready groups can do that they do, as processor time is of a CPU model.
    Use(f64),
    /// External metric, average value: requests that wait or run, for each group.
    Requests(f64),
}

const SYNC: f64 = 15.0;
const TOLERANCE: f64 = 0.1;
const DOWN_WINDOW: f64 = 300.0;

/// A HorizontalPodAutoscaler.
pub struct Hpa {
    metric: HpaMetric,
    most: u32,
    next: f64,
    /// Of each step since the last look.
    shares: Vec<f64>,
    asked: Vec<(f64, u32)>,
    /// Changes: when, by how much.
    changes: Vec<(f64, i64)>,
}

impl Hpa {
    pub fn new(metric: HpaMetric, most: u32) -> Self {
        Self { metric, most, next: 0.0, shares: vec![], asked: vec![(0.0, 1)], changes: vec![] }
    }

    fn ask(&self, current: u32, seen: &Seen) -> u32 {
        let near = |ratio: f64| (ratio - 1.0).abs() <= TOLERANCE;
        match self.metric {
            HpaMetric::Requests(target) => {
                let requests = (seen.held + seen.running) as f64;
                if near(requests / (target * f64::from(current))) {
                    current
                } else {
                    (requests / target).ceil() as u32
                }
            }
            HpaMetric::Use(target) => {
                let mean = self.shares.iter().sum::<f64>() / self.shares.len().max(1) as f64;
                let (ready, all) = (f64::from(seen.ready), f64::from(seen.ready + seen.loading));
                let ratio = mean / target;
                if seen.ready == 0 || near(ratio) {
                    return current;
                }
                // pods that are not ready count as idle, if it were to go up
                let whole = if ratio > 1.0 { ratio * ready / all } else { ratio };
                if near(whole) || (ratio > 1.0) != (whole > 1.0) {
                    return current;
                }
                let count = if ratio > 1.0 { all } else { ready };
                (whole * count).ceil() as u32
            }
        }
    }
}

impl Autoscaler for Hpa {
    fn name(&self) -> &'static str {
        match self.metric {
            HpaMetric::Use(_) => "HPA, use",
            HpaMetric::Requests(_) => "HPA, queue",
        }
    }

    fn start(&self) -> u32 {
        1
    }

    fn look(&mut self, now: f64, current: u32, plant: &Plant) -> u32 {
        self.shares.push(plant.use_share());
        if now < self.next {
            return current;
        }
        self.next = now + SYNC;
        let asked = self.ask(current, &plant.seen(now));
        self.shares.clear();
        self.asked.push((now, asked));
        self.asked.retain(|(at, _)| now - at < DOWN_WINDOW);
        self.changes.retain(|(at, _)| now - at < SYNC);
        let before = i64::from(current) - self.changes.iter().map(|(_, change)| change).sum::<i64>();
        let desired = if asked > current {
            asked.min(u32::try_from((2 * before).max(before + 4)).unwrap_or(current))
        } else {
            let most = self.asked.iter().map(|(_, asked)| *asked).max().unwrap_or(asked);
            most.min(current)
        };
        let desired = desired.clamp(1, self.most);
        if desired != current {
            self.changes.push((now, i64::from(desired) - i64::from(current)));
        }
        desired
    }
}

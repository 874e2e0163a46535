//! How far groups are that load, and when they will be ready.
use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use crate::{group::Group, rollout::Health, scaling::Groups};

/// Remembers how far each group was.
#[derive(Debug, Default)]
pub struct Progress {
    loading: BTreeMap<String, Load>,
    /// Seconds that the last group took from its beginning to its first request.
    took: Option<i64>,
}

#[derive(Clone, Copy, Debug)]
struct Load {
    since: Timestamp,
    /// When bytes were first seen to come, and how many there were.
    first: Option<(Timestamp, u64)>,
}

impl Progress {
    /// The groups there are. Those of `wanted` that do not exist yet count as loading.
    pub fn groups(&mut self, groups: &[Group], wanted: u32, now: Timestamp) -> Groups {
        let mut seen = Groups::default();
        let mut still = BTreeMap::new();
        let mut etas = vec![];
        for group in groups.iter().filter(|group| !group.draining()) {
            match group.health() {
                // it takes requests, though some of its workers are away
                _ if group.serves() => {
                    seen.ready += 1;
                    if let Some(load) = self.loading.get(&group.name) {
                        self.took = Some(now.as_second() - load.since.as_second());
                    }
                }
                Health::Broken => seen.failing += 1,
                Health::Ready | Health::Starting => {
                    seen.loading += 1;
                    let mut load =
                        self.loading.get(&group.name).copied().unwrap_or(Load { since: now, first: None });
                    etas.push(self.eta(&mut load, group, now));
                    still.insert(group.name.clone(), load);
                }
            }
        }
        self.loading = still;
        let missing = wanted.saturating_sub(seen.ready + seen.loading + seen.failing);
        if missing > 0 {
            seen.loading += missing;
            etas.push(self.took);
        }
        // one of which nothing is known makes all unknown
        let eta = etas.into_iter().collect::<Option<Vec<i64>>>().and_then(|etas| etas.into_iter().max());
        seen.eta_seconds = eta.and_then(|eta| u32::try_from(eta.max(1)).ok());
        seen
    }

    /// Seconds until it is ready: by the bytes that come, or by what the group before it took.
    fn eta(&self, load: &mut Load, group: &Group, now: Timestamp) -> Option<i64> {
        let statuses = || group.pods().filter_map(|(_, pod)| pod.status());
        let done: u64 = statuses().map(|status| status.load_bytes_done).sum();
        let total: u64 = statuses().map(|status| status.load_bytes_total).sum();
        if done > 0 {
            let (at, first) = *load.first.get_or_insert((now, done));
            let elapsed = now.as_second() - at.as_second();
            if elapsed >= 2 && done > first {
                let left = total.saturating_sub(done) as f64;
                return Some((left * elapsed as f64 / (done - first) as f64) as i64);
            }
        }
        Some((self.took? - (now.as_second() - load.since.as_second())).max(1))
    }
}

#[cfg(test)]
mod tests {
    use belay_proto::admin::WorkerStatus;

    use super::*;
    use crate::group::WorkerPod;

    fn group(name: &str, ready: bool, done: u64) -> Group {
        let mut status =
            WorkerStatus { load_bytes_done: done, load_bytes_total: 1000, ..WorkerStatus::default() };
        if ready {
            status.set_phase(belay_proto::admin::Phase::Ready);
        }
        let pod = WorkerPod { ready, running: true, worker: Some(Ok(status)), ..WorkerPod::default() };
        Group { name: name.into(), slots: vec![Some(pod)], ..Group::default() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn time_left_follows_the_bytes_and_before_them_the_group_before() {
        let mut progress = Progress::default();
        let mut see = |groups: &[Group], wanted, second| progress.groups(groups, wanted, at(second));
        assert_eq!(see(&[], 1, 0), Groups { loading: 1, ..Groups::default() });
        assert_eq!(see(&[group("a", false, 0)], 1, 0).eta_seconds, None);
        assert_eq!(see(&[group("a", false, 100)], 1, 10).eta_seconds, None);
        assert_eq!(see(&[group("a", false, 300)], 1, 20).eta_seconds, Some(35));
        let ready = see(&[group("a", true, 1000)], 1, 60);
        assert_eq!(ready, Groups { ready: 1, ..Groups::default() });
        // the next one: 60 seconds, as the last one took
        let two = see(&[group("a", true, 1000)], 2, 100);
        assert_eq!((two.ready, two.loading, two.eta_seconds), (1, 1, Some(60)));
        assert_eq!(see(&[group("a", true, 1000), group("b", false, 0)], 2, 100).eta_seconds, Some(60));
        assert_eq!(see(&[group("a", true, 1000), group("b", false, 0)], 2, 125).eta_seconds, Some(35));
    }
}

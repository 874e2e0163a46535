//! When the next group of a model will have read its checkpoint, by how it got on so far. Pure.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::discovery::Loading;

/// What was seen of each group that loads.
#[derive(Debug, Default)]
pub struct Progress {
    first: BTreeMap<String, (Instant, u64)>,
}

impl Progress {
    /// Takes over what discovery sees now. When the first of the groups will be done; `None` if none loads, or it is not yet
    /// known how fast.
    pub fn observe(&mut self, now: Instant, loading: &[Loading]) -> Option<Instant> {
        self.first.retain(|group, _| loading.iter().any(|one| one.group == *group));
        let ends = loading.iter().filter_map(|one| {
            let (since, done) = *self.first.entry(one.group.clone()).or_insert((now, one.bytes_done));
            if one.bytes_done < done {
                // it began again
                self.first.insert(one.group.clone(), (now, one.bytes_done));
                return None;
            }
            let seconds = now.saturating_duration_since(since).as_secs_f64();
            let left = one.bytes_total.saturating_sub(one.bytes_done) as f64;
            let rest = left * seconds / (one.bytes_done - done) as f64;
            now.checked_add(Duration::try_from_secs_f64(rest).ok()?)
        });
        ends.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loading(group: &str, bytes_done: u64) -> Loading {
        Loading { group: group.into(), bytes_done, bytes_total: 1000 }
    }

    #[test]
    fn the_fastest_group_counts_once_its_pace_is_known() {
        let mut progress = Progress::default();
        let start = Instant::now();
        let later = start + Duration::from_secs(10);
        assert_eq!(progress.observe(start, &[loading("a", 0), loading("b", 500)]), None);
        let end = progress.observe(later, &[loading("a", 200), loading("b", 600)]);
        assert_eq!(end, Some(later + Duration::from_secs(40)));
        assert_eq!(progress.observe(later, &[loading("b", 100)]), None, "it began again");
        assert_eq!(progress.observe(later, &[]), None);
        assert_eq!(progress.observe(later, &[loading("a", 900)]), None, "what was gone is new");
    }
}

//! A histogram of the operator's metrics page, and what came in between two looks at it.

/// Bounds in seconds, and how many were below each.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// From the page.
    pub fn read(text: &str, name: &str) -> Self {
        let start = format!("{name}_bucket{{le=\"");
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix(&start)?.split_once("\"} ")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count.parse().ok()?))
        };
        Self { buckets: text.lines().filter_map(bucket).collect() }
    }

    /// What came since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let at = |index: usize| before.buckets.get(index).map_or(0.0, |bucket| bucket.1);
        let buckets = self.buckets.iter().enumerate();
        Self { buckets: buckets.map(|(index, &(bound, count))| (bound, count - at(index))).collect() }
    }

    /// How many there are.
    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |bucket| bucket.1)
    }

    /// The value in milliseconds that a share of them does not exceed, taken as evenly spread within a bucket.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let rank = share * self.count();
        let mut below = (0.0, 0.0);
        for &(bound, count) in &self.buckets {
            if count >= rank && count > below.1 {
                if bound.is_infinite() {
                    return below.0 * 1000.0;
                }
                return (below.0 + (bound - below.0) * (rank - below.1) / (count - below.1)) * 1000.0;
            }
            below = (bound, count);
        }
        0.0
    }
}

//! Whether a difference is more than chance. Pure.
use belay_proto::gateway::Histogram;

/// How unlikely a difference must be by chance to count as one: one in a thousand. Looks are taken again and again, and a good
/// revision must not be taken back by the fiftieth of them.
pub const SIGNIFICANCE: f64 = 0.001;

/// Below this a difference may be one, and is worth waiting for more values. No verdict hangs on it, so it may be met by chance:
/// it costs time.
pub const DOUBT: f64 = 0.05;

/// Probability of at least `hits` of `trials` if each is one with probability `share`: the tail of the binomial distribution.
pub fn binomial_tail(hits: u64, trials: u64, share: f64) -> f64 {
    if hits == 0 {
        return 1.0;
    }
    if share <= 0.0 {
        return 0.0;
    }
    if share >= 1.0 {
        return 1.0;
    }
    let term =
        |k: u64| (choose(trials, k) + k as f64 * share.ln() + (trials - k) as f64 * (1.0 - share).ln()).exp();
    tail(hits, trials, term)
}

/// Probability that the first of two groups has at least `hits` of all hits, if hits fall on both alike: Fisher's exact test, one
/// side. Groups are given as hits and trials.
pub fn fisher(first: (u64, u64), second: (u64, u64)) -> f64 {
    let (hits, trials) = (first.0 + second.0, first.1 + second.1);
    let term = |k: u64| {
        if k > hits || hits - k > second.1 {
            return 0.0;
        }
        (choose(first.1, k) + choose(second.1, hits - k) - choose(trials, hits)).exp()
    };
    tail(first.0, first.1.min(hits), term)
}

/// Sums from the largest terms down; far terms are too small to matter.
fn tail(from: u64, to: u64, term: impl Fn(u64) -> f64) -> f64 {
    let mut sum = 0.0;
    let mut last = 0.0;
    for k in from..=to {
        let next = term(k);
        sum += next;
        if next < last && next < sum * 1e-12 {
            break;
        }
        last = next;
    }
    sum.min(1.0)
}

/// Logarithm of the number of ways to choose `k` of `n`.
fn choose(n: u64, k: u64) -> f64 {
    ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
}

/// Exact sums for small numbers, Stirling's series (error below 1e-10) for others.
fn ln_factorial(n: u64) -> f64 {
    if n < 32 {
        return (2..=n).map(|k| (k as f64).ln()).sum();
    }
    let x = n as f64;
    x * x.ln() - x + 0.5 * (std::f64::consts::TAU * x).ln() + 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3))
}

/// Of the values of both, how many count as slow ones.
const SLOW: f64 = 0.2;

/// Probability that as many of the largest values would be of the first histogram by chance, if its values were like those of the
/// second, times `factor`: Mood's test at the 80th percentile of both together. Both count as `independent` values at most.
/// `None`: there is nothing to compare.
///
/// The test of Mann and Whitney asks which of two values is larger more often. A revision that is as fast as ever half of the time,
/// and ten times slower the other half, hardly moves it.
pub fn larger_tail(
    first: &Histogram,
    second: &Histogram,
    factor: f64,
    independent: (u64, u64),
) -> Option<f64> {
    let Pair { own, other, n, m } = Pair::of(first, second, factor, independent)?;
    let (mut slow_own, mut slow_other) = (0.0, 0.0);
    for (own, other) in own.iter().zip(&other).rev() {
        let (next_own, next_other) = (slow_own + own * n, slow_other + other * m);
        if next_own + next_other > SLOW * (n + m) {
            break;
        }
        (slow_own, slow_other) = (next_own, next_other);
    }
    let whole = |value: f64| value.round() as u64;
    Some(fisher((whole(slow_own), whole(n)), (whole(slow_other), whole(m))))
}

/// Two histograms bucket by bucket, each as shares of its values, and as how many values they count.
struct Pair {
    own: Vec<f64>,
    other: Vec<f64>,
    n: f64,
    m: f64,
}

impl Pair {
    /// `None` if they have different buckets, or one has nothing. The second one's values are multiplied.
    fn of(first: &Histogram, second: &Histogram, factor: f64, independent: (u64, u64)) -> Option<Self> {
        if first.factor != second.factor || first.first != second.first || first.factor <= 1.0 {
            return None;
        }
        // times a factor is so many buckets to the right; a part of a bucket is split
        let shift = factor.max(f64::MIN_POSITIVE).ln() / first.factor.ln();
        let mut other = moved(&second.counts, shift);
        let mut own: Vec<f64> = first.counts.iter().map(|&count| count as f64).collect();
        let length = own.len().max(other.len());
        let (total_own, total_other): (f64, f64) = (own.iter().sum(), other.iter().sum());
        let (n, m) = (total_own.min(independent.0 as f64), total_other.min(independent.1 as f64));
        if n < 1.0 || m < 1.0 {
            return None;
        }
        for (counts, total) in [(&mut own, total_own), (&mut other, total_other)] {
            counts.resize(length, 0.0);
            counts.iter_mut().for_each(|count| *count /= total);
        }
        Some(Self { own, other, n, m })
    }
}

/// How much larger values of the first histogram are than values of the second, times `factor`: the standard score of the
/// Mann–Whitney test with ties, in which both count as `independent` values at most. `None`: there is nothing to compare.
///
/// Tokens of one answer come fast or slowly together; so they count as fewer values than they are.
pub fn larger_by(first: &Histogram, second: &Histogram, factor: f64, independent: (u64, u64)) -> Option<f64> {
    let Pair { own, other, n, m } = Pair::of(first, second, factor, independent)?;
    let (mut below, mut wins, mut ties) = (0.0, 0.0, 0.0);
    for (own, other) in own.into_iter().zip(other) {
        wins += own * (below + other / 2.0);
        below += other;
        // share of all values in this bucket, each side by its weight
        let together = (own * n + other * m) / (n + m);
        ties += together.powi(3);
    }
    let variance = n * m * (n + m + 1.0) / 12.0 * (1.0 - ties);
    if variance <= 0.0 {
        return Some(0.0);
    }
    Some((wins - 0.5) * n * m / variance.sqrt())
}

/// Counts moved to the right by a number of buckets that need not be whole.
fn moved(counts: &[u64], shift: f64) -> Vec<f64> {
    let (whole, part) = (shift.floor(), shift - shift.floor());
    let mut out = vec![0.0; counts.len() + usize::try_from(whole as i64).unwrap_or(0) + 2];
    for (i, &count) in counts.iter().enumerate() {
        let left = (i as i64 + whole as i64).max(0);
        for (index, share) in [(left, 1.0 - part), (left + 1, part)] {
            if let Some(slot) = usize::try_from(index).ok().and_then(|index| out.get_mut(index)) {
                *slot += share * count as f64;
            }
        }
    }
    out
}

/// Probability of a standard score at least this high by chance.
pub fn upper_tail(score: f64) -> f64 {
    // Abramowitz and Stegun 26.2.17: error below 7.5e-8
    let x = score.abs();
    let t = 1.0 / (1.0 + 0.231_641_9 * x);
    let series = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let sum = series.iter().rev().fold(0.0, |sum, coefficient| (sum + coefficient) * t);
    let tail = sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
    if score >= 0.0 { tail } else { 1.0 - tail }
}

/// The value below which `share` of the values are, in seconds: the middle of its bucket. `None`: there are none.
pub fn quantile(histogram: &Histogram, share: f64) -> Option<f64> {
    let total: u64 = histogram.counts.iter().sum();
    let target = (total as f64 * share).ceil().max(1.0);
    let mut sum = 0.0;
    for (i, &count) in histogram.counts.iter().enumerate() {
        sum += count as f64;
        if total > 0 && sum >= target {
            return Some(histogram.first * histogram.factor.powf(i as f64 - 0.5));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn histogram(values: &[f64]) -> Histogram {
        let (first, factor) = (0.0005, 1.1f64);
        let mut counts = vec![0; 160];
        for value in values {
            let bucket = ((value / first).ln() / factor.ln()).floor() as i64 + 1;
            counts[bucket.clamp(0, 159) as usize] += 1;
        }
        Histogram { first, factor, counts, sum: values.iter().sum() }
    }

    /// Values with a long tail, as latencies are: a fixed sequence for each seed.
    fn latencies(seed: u64, count: usize, scale: f64) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..count).map(|_| scale * (0.5 + (0..4).map(|_| uniform()).sum::<f64>()).exp2()).collect()
    }

    #[test]
    fn tails_are_those_of_the_tables() {
        assert!((binomial_tail(5, 30, 0.01) - 1.156_757e-5).abs() < 1e-10, "{}", binomial_tail(5, 30, 0.01));
        assert!((binomial_tail(1, 10, 0.5) - (1.0 - 0.5f64.powi(10))).abs() < 1e-12);
        // the tea tasting: 4 of 4 right, and 3 of 4
        assert!((fisher((4, 4), (0, 4)) - 1.0 / 70.0).abs() < 1e-12);
        assert!((fisher((3, 4), (1, 4)) - 17.0 / 70.0).abs() < 1e-12);
        assert!((upper_tail(1.959_964) - 0.025).abs() < 1e-6);
        assert!((upper_tail(-1.0) - 0.841_345).abs() < 1e-5);
        assert!((ln_factorial(100) - 363.739_375_555_563).abs() < 1e-9);
    }

    #[test]
    fn a_quantile_is_right_within_a_bucket() {
        let values: Vec<f64> = (1..=1000).map(|i| i as f64 / 1000.0).collect();
        let median = quantile(&histogram(&values), 0.5).unwrap();
        assert!((median / 0.5).ln().abs() < 0.1, "{median}");
        assert_eq!(quantile(&Histogram::default(), 0.5), None);
    }

    #[test]
    fn twice_as_slow_is_seen_from_few_values_and_a_tenth_slower_is_within_the_margin() {
        let (slow, usual) = (histogram(&latencies(1, 30, 0.2)), histogram(&latencies(2, 300, 0.1)));
        let score = larger_by(&slow, &usual, 1.2, (30, 300)).unwrap();
        assert!(upper_tail(score) < SIGNIFICANCE, "{score}");
        let tenth = histogram(&latencies(3, 3000, 0.11));
        let score = larger_by(&tenth, &usual, 1.2, (3000, 300)).unwrap();
        assert!(score < 0.0, "{score}");
    }

    #[test]
    fn tokens_of_one_answer_count_as_fewer_values() {
        let (slow, usual) = (histogram(&latencies(1, 3000, 0.15)), histogram(&latencies(2, 3000, 0.1)));
        let few = larger_by(&slow, &usual, 1.2, (5, 50)).unwrap();
        let many = larger_by(&slow, &usual, 1.2, (3000, 3000)).unwrap();
        assert!(many > 10.0 * few, "{many} {few}");
        assert_eq!(larger_by(&Histogram::default(), &usual, 1.2, (5, 5)), None);
    }

    #[test]
    fn a_part_that_is_much_slower_is_seen_and_a_slower_answer_now_and_then_is_not() {
        let usual = histogram(&latencies(2, 120, 0.1));
        let with_slow = |share: usize| {
            let values = latencies(1, 60, 0.1).into_iter().enumerate();
            histogram(
                &values
                    .map(|(i, value)| if i % 10 < share { 8.0 * value } else { value })
                    .collect::<Vec<_>>(),
            )
        };
        let independent = (60, 120);
        let part = with_slow(4);
        let score = larger_by(&part, &usual, 1.2, independent).unwrap();
        assert!(upper_tail(score) > 10.0 * SIGNIFICANCE, "as a whole it hardly shows: {score}");
        assert!(larger_tail(&part, &usual, 1.2, independent).unwrap() < SIGNIFICANCE / 2.0);
        assert!(larger_tail(&with_slow(1), &usual, 1.2, independent).unwrap() > DOUBT);
        assert!(larger_tail(&usual, &usual, 1.0, independent).unwrap() > 0.1);
        assert_eq!(larger_tail(&Histogram::default(), &usual, 1.2, independent), None);
    }

    /// Looks at equal revisions: as many are called different as chance allows, not more.
    #[test]
    fn both_tests_err_as_seldom_as_they_say() {
        let looks = 4000;
        let mut erred = (0, 0);
        for seed in 0..looks {
            let (a, b) =
                (histogram(&latencies(2 * seed + 1, 40, 0.1)), histogram(&latencies(2 * seed + 2, 160, 0.1)));
            let independent = (40, 160);
            let score = larger_by(&a, &b, 1.0, independent).unwrap();
            erred.0 += u32::from(upper_tail(score) < 0.01);
            erred.1 += u32::from(larger_tail(&a, &b, 1.0, independent).unwrap() < 0.01);
        }
        // 40 each are expected, with a deviation of 6
        assert!(erred.0 < 65 && erred.1 < 65, "{erred:?} of {looks}");
        assert!(erred.0 > 15, "the test of medians would be too weak: {erred:?}");
    }

    proptest! {
        /// The same distribution twice, without any margin: one look in a thousand may err, not one in fifty.
        #[test]
        fn equal_revisions_are_seldom_told_apart(seed in 0u64..5000) {
            let (a, b) = (histogram(&latencies(2 * seed + 1, 50, 0.1)), histogram(&latencies(2 * seed + 2, 400, 0.1)));
            let score = larger_by(&a, &b, 1.0, (50, 400)).unwrap();
            prop_assert!(score < 4.5, "{score}");
            let with_margin = larger_by(&a, &b, 1.2, (50, 400)).unwrap();
            prop_assert!(upper_tail(with_margin) > SIGNIFICANCE, "{with_margin}");
            prop_assert!(larger_tail(&a, &b, 1.2, (50, 400)).unwrap() > SIGNIFICANCE / 2.0);
        }

        #[test]
        fn tests_of_shares_are_probabilities_and_grow_with_the_evidence(
            hits in 0u64..40, trials in 40u64..400, others in 0u64..40, of in 40u64..400, share in 0.0f64..1.0,
        ) {
            let p = fisher((hits, trials), (others, of));
            prop_assert!((0.0..=1.0).contains(&p));
            prop_assert!(fisher((hits + 1, trials), (others, of)) <= p + 1e-9);
            let p = binomial_tail(hits, trials, share);
            prop_assert!((0.0..=1.0).contains(&p));
            prop_assert!(binomial_tail(hits + 1, trials, share) <= p + 1e-9);
        }
    }
}

//! Verdicts on what gateways have measured of two revisions over the same time. Pure.
use belay_crds::{AnalysisSpec, CheckStatus, Reason};
use belay_proto::gateway::Revision;

use crate::rollout::Gate;

use super::statistics::{
    DOUBT, SIGNIFICANCE, binomial_tail, fisher, larger_by, larger_tail, quantile, upper_tail,
};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// As in `status.rollout.analysis`.
    pub name: String,
    /// What came of it.
    pub verdict: Verdict,
    /// The numbers behind it.
    pub message: String,
}

/// What came of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against the new revision.
    Good,
    /// It is worse, beyond chance.
    Bad(Reason),
    /// It looks worse, and may be so by chance: more answers will tell.
    Undecided,
    /// Not enough to tell.
    TooFew,
    /// It is being found out.
    Pending,
}

impl Verdict {
    /// Of a difference that chance alone would show with this probability.
    fn by(chance: f64, reason: Reason) -> Self {
        if chance < SIGNIFICANCE {
            Self::Bad(reason)
        } else if chance < DOUBT {
            Self::Undecided
        } else {
            Self::Good
        }
    }
}

impl Check {
    /// A look with its result.
    pub fn new(name: &str, verdict: Verdict, message: String) -> Self {
        Self { name: name.to_owned(), verdict, message }
    }
}

impl From<&Check> for CheckStatus {
    fn from(check: &Check) -> Self {
        let verdict = match check.verdict {
            Verdict::Good => "Good",
            Verdict::Bad(_) => "Bad",
            Verdict::Undecided => "Undecided",
            Verdict::TooFew => "TooFew",
            Verdict::Pending => "Pending",
        };
        Self { name: check.name.clone(), verdict: verdict.to_owned(), message: check.message.clone() }
    }
}

/// Fewest values of either revision that times are compared by.
const LEAST: u64 = 10;

/// Whether a step may go on. `enough`: whether the requests that it must have are answered; `may_wait`: whether more of them may
/// be waited for.
pub fn gate(checks: &[Check], enough: Gate, may_wait: bool) -> Gate {
    let bad = checks.iter().find_map(|check| match check.verdict {
        Verdict::Bad(reason) => Some(Gate::Bad(reason, check.message.clone())),
        _ => None,
    });
    let in_doubt = checks.iter().find(|check| may_wait && check.verdict == Verdict::Undecided);
    match (bad, enough, in_doubt) {
        (Some(bad), _, _) => bad,
        // not the numbers: a status that changes with each request would be written with each
        (None, Gate::Open, Some(check)) => {
            Gate::Wait(format!("{} is undecided: more answers will tell", check.name))
        }
        (None, enough, _) => enough,
    }
}

/// Compares what both did over the same time.
pub fn compare(spec: &AnalysisSpec, new: &Revision, stable: &Revision) -> Vec<Check> {
    let margin = |percent: i32| 1.0 + f64::from(percent) / 100.0;
    let requests = |revision: &Revision| revision.served + revision.failed;
    let independent = (requests(new), requests(stable));
    let times = |name, reason, new: &Option<_>, stable: &Option<_>, percent| {
        times(name, reason, new.as_ref(), stable.as_ref(), margin(percent), independent)
    };
    vec![
        errors(spec, new, stable),
        times(
            "FirstToken",
            Reason::FirstTokenSlower,
            &new.first_token,
            &stable.first_token,
            spec.max_time_to_first_token_increase_percent,
        ),
        times(
            "InterToken",
            Reason::TokensSlower,
            &new.inter_token,
            &stable.inter_token,
            spec.max_inter_token_increase_percent,
        ),
    ]
}

/// Requests that the new revision has answered, of those that it must have.
pub fn enough(spec: &AnalysisSpec, new: &Revision) -> Result<(), String> {
    let answered = new.served + new.failed + new.rejected;
    let least = u64::try_from(spec.min_requests).unwrap_or(0);
    if answered >= least { Ok(()) } else { Err(format!("{answered} of {least} requests are answered")) }
}

/// What a revision refuses counts as failed as well: a new one that finds fault with every request is worse.
fn errors(spec: &AnalysisSpec, new: &Revision, stable: &Revision) -> Check {
    let counted = |revision: &Revision| {
        let bad = revision.failed + revision.rejected;
        (bad, bad + revision.served)
    };
    let (own, other) = (counted(new), counted(stable));
    let limit = f64::from(spec.max_error_percent) / 100.0;
    let percent = |(bad, all): (u64, u64)| 100.0 * bad as f64 / (all.max(1)) as f64;
    let over_limit = binomial_tail(own.0, own.1, limit);
    let over_stable = fisher(own, other);
    let message = format!(
        "{} of {} failed ({:.1} %), stable {} of {} ({:.1} %); limit {} %; by chance {:.2e}, {:.2e}",
        own.0,
        own.1,
        percent(own),
        other.0,
        other.1,
        percent(other),
        spec.max_error_percent,
        over_limit,
        over_stable,
    );
    // without a stable one that was asked, there is only the limit
    let chance = if other.1 == 0 { over_limit } else { over_limit.max(over_stable) };
    let verdict = if own.1 == 0 { Verdict::TooFew } else { Verdict::by(chance, Reason::ErrorsIncreased) };
    Check::new("Errors", verdict, message)
}

fn times(
    name: &str,
    reason: Reason,
    new: Option<&belay_proto::gateway::Histogram>,
    stable: Option<&belay_proto::gateway::Histogram>,
    margin: f64,
    independent: (u64, u64),
) -> Check {
    let compared = new.zip(stable).and_then(|(new, stable)| {
        let typical = upper_tail(larger_by(new, stable, margin, independent)?);
        let slow = larger_tail(new, stable, margin, independent)?;
        // two questions: either may be answered wrongly
        let chance = (2.0 * typical.min(slow)).min(1.0);
        let told = |histogram| Some([1000.0 * quantile(histogram, 0.5)?, 1000.0 * quantile(histogram, 0.9)?]);
        Some((told(new)?, told(stable)?, chance))
    });
    let Some((own, other, chance)) = compared.filter(|_| independent.0.min(independent.1) >= LEAST) else {
        let message = format!("{} and {} answers are too few to compare", independent.0, independent.1);
        return Check::new(name, Verdict::TooFew, message);
    };
    let message = format!(
        "p50 {:.1} ms, p90 {:.1} ms, stable {:.1} and {:.1} ms; limit + {:.0} %; by chance {chance:.2e}",
        own[0],
        own[1],
        other[0],
        other[1],
        (margin - 1.0) * 100.0
    );
    Check::new(name, Verdict::by(chance, reason), message)
}

#[cfg(test)]
mod tests {
    use belay_proto::gateway::Histogram;

    use super::*;

    /// So many answers, all in one bucket, so many of them failed.
    fn revision(served: u64, failed: u64, bucket: usize) -> Revision {
        let mut counts = vec![0; 150];
        counts[bucket] = served;
        let times = Histogram { first: 0.0005, factor: 1.1, counts, sum: 1.0 };
        Revision {
            served,
            failed,
            first_token: Some(times.clone()),
            inter_token: Some(times),
            ..Revision::default()
        }
    }

    fn verdicts(new: &Revision, stable: &Revision) -> Vec<Verdict> {
        compare(&AnalysisSpec::default(), new, stable).into_iter().map(|check| check.verdict).collect()
    }

    #[test]
    fn equal_revisions_are_good_and_few_answers_say_nothing_of_times() {
        assert_eq!(verdicts(&revision(50, 0, 50), &revision(400, 0, 50)), [Verdict::Good; 3]);
        let few = verdicts(&revision(5, 0, 90), &revision(400, 0, 50));
        assert_eq!(few, [Verdict::Good, Verdict::TooFew, Verdict::TooFew]);
        assert_eq!(verdicts(&Revision::default(), &revision(400, 0, 50))[0], Verdict::TooFew);
    }

    #[test]
    fn errors_count_beyond_the_limit_and_beyond_the_other_revision() {
        let bad = Verdict::Bad(Reason::ErrorsIncreased);
        assert_eq!(verdicts(&revision(20, 10, 50), &revision(400, 0, 50))[0], bad);
        assert_eq!(
            verdicts(&revision(49, 1, 50), &revision(400, 0, 50))[0],
            Verdict::Good,
            "one may be chance"
        );
        assert_eq!(
            verdicts(&revision(48, 3, 50), &revision(400, 0, 50))[0],
            Verdict::Undecided,
            "three look like more than that, and are not enough for a verdict"
        );
        assert_eq!(
            verdicts(&revision(20, 10, 50), &revision(280, 120, 50))[0],
            Verdict::Good,
            "the other fails as much: it is not the revision"
        );
        let refuses = Revision { rejected: 30, ..Revision::default() };
        assert_eq!(verdicts(&refuses, &revision(400, 0, 50))[0], bad);
    }

    #[test]
    fn times_are_bad_beyond_the_margin() {
        let slower = verdicts(&revision(50, 0, 55), &revision(400, 0, 50));
        assert_eq!(slower[1], Verdict::Bad(Reason::FirstTokenSlower), "five buckets are 61 percent");
        assert_eq!(slower[2], Verdict::Bad(Reason::TokensSlower));
        assert_eq!(verdicts(&revision(50, 0, 51), &revision(400, 0, 50)), [Verdict::Good; 3]);
    }

    #[test]
    fn few_slower_answers_decide_nothing_yet() {
        // a fifth of them much slower
        let mixed = |answers: u64| {
            let mut revision = revision(answers, 0, 50);
            let mut counts = vec![0; 150];
            (counts[50], counts[70]) = (answers * 4 / 5, answers / 5);
            let times = Histogram { first: 0.0005, factor: 1.1, counts, sum: 1.0 };
            (revision.first_token, revision.inter_token) = (Some(times.clone()), Some(times));
            verdicts(&revision, &self::revision(3 * answers, 0, 50))[1]
        };
        assert_eq!(mixed(15), Verdict::Undecided);
        assert_eq!(mixed(100), Verdict::Bad(Reason::FirstTokenSlower));
    }

    #[test]
    fn a_step_waits_for_a_check_in_doubt_as_long_as_it_may() {
        let checks = |verdict| {
            let good = Check::new("Errors", Verdict::Good, String::new());
            [good, Check::new("FirstToken", verdict, "slow".to_owned())]
        };
        let waits = Gate::Wait("fewer".to_owned());
        let bad = Verdict::Bad(Reason::FirstTokenSlower);
        for may_wait in [true, false] {
            assert_eq!(gate(&checks(Verdict::Good), Gate::Open, may_wait), Gate::Open);
            assert_eq!(gate(&checks(Verdict::TooFew), waits.clone(), may_wait), waits);
            assert_eq!(gate(&checks(Verdict::Undecided), waits.clone(), may_wait), waits);
            let taken_back = Gate::Bad(Reason::FirstTokenSlower, "slow".to_owned());
            assert_eq!(gate(&checks(bad), waits.clone(), may_wait), taken_back);
        }
        let in_doubt = gate(&checks(Verdict::Undecided), Gate::Open, true);
        assert_eq!(in_doubt, Gate::Wait("FirstToken is undecided: more answers will tell".to_owned()));
        assert_eq!(gate(&checks(Verdict::Undecided), Gate::Open, false), Gate::Open);
    }

    #[test]
    fn enough_counts_answers_good_or_bad() {
        let spec = AnalysisSpec { min_requests: 30, ..AnalysisSpec::default() };
        assert_eq!(enough(&spec, &revision(20, 10, 0)), Ok(()));
        assert_eq!(enough(&spec, &revision(20, 9, 0)).unwrap_err(), "29 of 30 requests are answered");
    }
}

//! Constant streaming traffic in which every answer is compared with the right one, and every pause measured.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use crate::{
    client::{self, Length, Pace},
    http,
    oracle::Expected,
};

/// Wrong answers after which a client gives up: the run has failed by then.
const MOST_WRONG: usize = 5;

/// Clients that ask without pause until told to stop.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    clients: JoinSet<Report>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicUsize,
    tokens: AtomicUsize,
}

/// How a client asks.
#[derive(Clone, Debug)]
enum Client {
    Grpc(Channel),
    Http(reqwest::Client, String),
}

/// What the clients saw.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Requests that were answered to the last token, each of them the right one.
    pub right: usize,
    /// One line for each request that failed.
    pub failed: Vec<String>,
    /// One line for each request whose answer differed.
    pub differing: Vec<String>,
    /// The longest waits of any stream, right or not.
    pub pace: Pace,
}

impl Traffic {
    /// Starts `clients` clients against a gateway, by gRPC and by HTTP in turn; each streams one answer after the
    /// other.
    ///
    /// # Errors
    /// If the address can't be parsed.
    pub fn start(url: &str, model: &str, expected: &[Expected], clients: usize) -> Result<Self> {
        ensure!(!expected.is_empty(), "nothing to ask");
        let shared = Arc::new(Shared::default());
        let mut set = JoinSet::new();
        for number in 0..clients {
            let client = match number % 2 {
                0 => Client::Grpc(Endpoint::from_shared(url.to_owned())?.connect_lazy()),
                _ => Client::Http(reqwest::Client::new(), url.to_owned()),
            };
            let (shared, model, expected) = (Arc::clone(&shared), model.to_owned(), expected.to_vec());
            set.spawn(async move { ask_on(number, &client, &model, &expected, &shared).await });
        }
        Ok(Self { shared, clients: set })
    }

    /// Right answers so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Tokens so far, of answers under way as well.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.shared.tokens.load(Ordering::Relaxed)
    }

    /// Lets every client finish the answer it is reading, and reports.
    pub async fn stop(mut self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Report::default();
        while let Some(report) = self.clients.join_next().await {
            match report {
                Ok(report) => all.add(report),
                Err(panic) => all.failed.push(panic.to_string()),
            }
        }
        all
    }
}

impl Report {
    /// At least `least` answers, and every one of them right.
    ///
    /// # Errors
    /// With each request that failed or differed.
    pub fn all_right(&self, least: usize) -> Result<()> {
        let Self { right, failed, differing, .. } = self;
        if !(failed.is_empty() && differing.is_empty()) {
            let lines: Vec<&str> = failed.iter().chain(differing).map(String::as_str).collect();
            bail!(
                "{right} right, {} failed, {} differ:\n{}",
                failed.len(),
                differing.len(),
                lines.join("\n")
            );
        }
        ensure!(*right >= least, "only {right} answers: too few to show anything");
        Ok(())
    }

    /// The longest time that any client saw nothing: before the first piece of a stream, or between two.
    #[must_use]
    pub fn stall(&self) -> Duration {
        self.pace.first.max(self.pace.gap)
    }

    /// No client waited longer than this for anything.
    ///
    /// # Errors
    /// If one did, with how long.
    pub fn stalled_at_most(&self, limit: Duration) -> Result<()> {
        let Pace { first, gap } = self.pace;
        ensure!(
            self.stall() <= limit,
            "a stream stood still: {:.1} s to the first piece, {:.1} s between two, where {:.1} s is the most",
            first.as_secs_f64(),
            gap.as_secs_f64(),
            limit.as_secs_f64()
        );
        Ok(())
    }

    fn add(&mut self, other: Self) {
        self.right += other.right;
        self.failed.extend(other.failed);
        self.differing.extend(other.differing);
        self.pace = self.pace.worst(other.pace);
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} streams right, {} failed, {} differ; worst wait {:.2} s for a first piece, {:.2} s between two",
            self.right,
            self.failed.len(),
            self.differing.len(),
            self.pace.first.as_secs_f64(),
            self.pace.gap.as_secs_f64()
        )
    }
}

async fn ask_on(
    number: usize,
    client: &Client,
    model: &str,
    expected: &[Expected],
    shared: &Shared,
) -> Report {
    let mut report = Report::default();
    let mut next = number;
    let count = |tokens| {
        shared.tokens.fetch_add(tokens, Ordering::Relaxed);
    };
    while !shared.stop.load(Ordering::Relaxed) && report.failed.len() + report.differing.len() < MOST_WRONG {
        let case = &expected[next % expected.len()];
        next += 1;
        let outcome = match client {
            Client::Grpc(channel) => {
                let length = Length::Exactly(u32::try_from(case.ids.len()).unwrap_or(u32::MAX));
                client::generate_counted(channel, model, &case.prompt, length, count)
                    .await
                    .map(|answer| (answer.pace, tokens_differ(&answer.ids, &case.ids)))
            }
            Client::Http(client, url) => {
                http::complete(client, url, model, &case.prompt, case.ids.len(), count)
                    .await
                    .map(|answer| (answer.pace, text_differs(&answer, case)))
            }
        };
        match outcome {
            Ok((pace, difference)) => {
                report.pace = report.pace.worst(pace);
                match difference {
                    None => {
                        report.right += 1;
                        shared.answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(difference) => report.differing.push(format!("client {number}: {difference}")),
                }
            }
            Err(error) => report.failed.push(format!("client {number}: {error:#}")),
        }
    }
    report
}

fn tokens_differ(came: &[u32], right: &[u32]) -> Option<String> {
    let at = came.iter().zip(right).take_while(|(a, b)| a == b).count();
    (came != right).then(|| {
        let counts = format!("{} of {} tokens", came.len(), right.len());
        format!("token {at} differs: {:?} for {:?} ({counts})", came.get(at), right.get(at))
    })
}

/// Where a streamed text departs from the right one.
pub(crate) fn text_differs(came: &http::Answer, right: &Expected) -> Option<String> {
    if came.tokens != right.ids.len() {
        return Some(format!("{} tokens for {}", came.tokens, right.ids.len()));
    }
    let at = came.text.bytes().zip(right.text.bytes()).take_while(|(a, b)| a == b).count();
    (came.text != right.text).then(|| {
        format!("text differs at byte {at} of {} for {}: {:?}", came.text.len(), right.text.len(), came.text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named_by_its_place() {
        assert_eq!(tokens_differ(&[1, 2], &[1, 2]), None);
        assert!(tokens_differ(&[1, 3], &[1, 2]).unwrap().starts_with("token 1 differs: Some(3) for Some(2)"));
        assert!(tokens_differ(&[1], &[1, 2]).unwrap().contains("None for Some(2) (1 of 2 tokens)"));
        let right = Expected { prompt: vec![], ids: vec![1, 2], text: "ab".into() };
        let came = |text: &str, tokens| http::Answer { text: text.into(), tokens, ..http::Answer::default() };
        assert_eq!(text_differs(&came("ab", 2), &right), None);
        assert!(text_differs(&came("ac", 2), &right).unwrap().contains("at byte 1"));
        assert!(text_differs(&came("ab", 3), &right).unwrap().contains("3 tokens for 2"));
    }

    #[test]
    fn one_wrong_answer_or_one_long_wait_spoils_a_report() {
        let good = Report { right: 8, ..Report::default() };
        good.all_right(8).unwrap();
        good.all_right(9).unwrap_err();
        Report { failed: vec!["lost".into()], ..good.clone() }.all_right(8).unwrap_err();
        Report { differing: vec!["token 3".into()], ..good.clone() }.all_right(8).unwrap_err();
        let second = Duration::from_secs(1);
        for pace in
            [Pace { first: 2 * second, gap: Duration::ZERO }, Pace { first: Duration::ZERO, gap: 2 * second }]
        {
            let mut all = good.clone();
            all.add(Report { pace, ..good.clone() });
            assert_eq!((all.right, all.stall()), (16, 2 * second));
            all.stalled_at_most(2 * second).unwrap();
            all.stalled_at_most(second).unwrap_err();
        }
    }
}

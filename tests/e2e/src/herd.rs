//! Many streams at one moment, each on a connection of its own; whoever is sent away comes back when it was told to.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::task::JoinSet;

use crate::{
    client::Pace,
    http::{self, Refusal},
    oracle::Expected,
    traffic::text_differs,
};

/// The longest that a gateway may send anybody away for.
const LONGEST: u64 = 120;

/// What became of them.
#[derive(Clone, Debug, Default)]
pub struct Herd {
    /// Streams that were right to the last token, sooner or later.
    pub right: usize,
    /// Of these, those that were answered when they first asked.
    pub at_once: usize,
    /// One for each time that one was sent away.
    pub refusals: Vec<Refusal>,
    /// One line for each that failed.
    pub failed: Vec<String>,
    /// One line for each whose answer differed.
    pub differing: Vec<String>,
    /// Waits of those that were answered, from when they asked that time.
    pub pace: Pace,
}

/// What one of them met.
#[derive(Debug)]
struct Fate {
    refusals: Vec<Refusal>,
    /// The answer, and where it differs.
    end: Result<(http::Answer, Option<String>)>,
}

/// Sends `count` streams, and waits for the last one; after `patience` nobody comes back any more.
pub async fn rush(url: &str, model: &str, expected: &[Expected], count: usize, patience: Duration) -> Herd {
    let mut streams = JoinSet::new();
    for case in expected.iter().cycle().take(count) {
        let (url, model, case) = (url.to_owned(), model.to_owned(), case.clone());
        streams.spawn(async move { insist(&url, &model, &case, patience).await });
    }
    let mut herd = Herd::default();
    while let Some(fate) = streams.join_next().await {
        match fate {
            Ok(fate) => herd.add(fate),
            Err(panic) => herd.failed.push(panic.to_string()),
        }
    }
    herd
}

async fn insist(url: &str, model: &str, case: &Expected, patience: Duration) -> Fate {
    let began = Instant::now();
    let client = reqwest::Client::new();
    let mut refusals = Vec::new();
    let end = loop {
        match http::try_complete(&client, url, model, &case.prompt, case.ids.len(), |_| {}).await {
            Ok(Ok(answer)) => {
                let difference = text_differs(&answer, case);
                break Ok((answer, difference));
            }
            Ok(Err(refusal)) => {
                let wait = refusal.retry_after.filter(|_| began.elapsed() < patience);
                refusals.push(refusal);
                let Some(seconds) = wait else { break Err(anyhow!("sent away for good")) };
                tokio::time::sleep(Duration::from_secs(seconds)).await;
            }
            Err(error) => break Err(error),
        }
    };
    Fate { refusals, end }
}

impl Herd {
    fn add(&mut self, fate: Fate) {
        let first = fate.refusals.is_empty();
        self.refusals.extend(fate.refusals);
        match fate.end {
            Ok((answer, None)) => {
                self.right += 1;
                self.at_once += usize::from(first);
                self.pace = self.pace.worst(answer.pace);
            }
            Ok((_, Some(difference))) => self.differing.push(difference),
            Err(error) => self.failed.push(format!("{error:#}")),
        }
    }

    /// All of them were answered, sooner or later, and whoever was sent away was told when to come back.
    ///
    /// # Errors
    /// With what was wrong.
    pub fn all_served(&self) -> Result<()> {
        let Self { right, failed, differing, .. } = self;
        if !(failed.is_empty() && differing.is_empty()) {
            let lines: Vec<&str> = failed.iter().chain(differing).map(String::as_str).collect();
            bail!("{right} right, {} failed, {} differ: {}", failed.len(), differing.len(), lines.join("; "));
        }
        self.refusals.iter().try_for_each(in_order)
    }
}

/// Whether one was sent away as the gateway's documents say.
fn in_order(refusal: &Refusal) -> Result<()> {
    let Refusal { status, retry_after, body } = refusal;
    let code = refusal.code();
    let known = matches!(
        (status, code.as_deref()),
        (429, Some("too_many_held_requests" | "overloaded")) | (503, Some("no_ready_worker"))
    );
    ensure!(known, "sent away with {status}: {body}");
    let seconds = retry_after.with_context(|| format!("{status} without Retry-After"))?;
    ensure!((1..=LONGEST).contains(&seconds), "sent away for {seconds} s");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_documents_name_is_in_order() {
        let refusal = |status, code: &str, retry_after| {
            let body = format!(r#"{{"error": {{"code": "{code}"}}}}"#);
            Refusal { status, retry_after, body }
        };
        in_order(&refusal(429, "too_many_held_requests", Some(5))).unwrap();
        in_order(&refusal(503, "no_ready_worker", Some(120))).unwrap();
        for wrong in [
            refusal(500, "internal", Some(5)),
            refusal(503, "too_many_held_requests", Some(5)),
            refusal(429, "too_many_held_requests", None),
            refusal(429, "too_many_held_requests", Some(0)),
            refusal(429, "too_many_held_requests", Some(121)),
        ] {
            in_order(&wrong).unwrap_err();
        }
    }

    #[test]
    fn a_herd_counts_those_who_came_back() {
        let body = r#"{"error": {"code": "too_many_held_requests"}}"#.to_owned();
        let away = Refusal { status: 429, retry_after: Some(1), body };
        let right = || Ok((http::Answer::default(), None));
        let mut herd = Herd::default();
        herd.add(Fate { refusals: vec![], end: right() });
        herd.add(Fate { refusals: vec![away.clone(), away.clone()], end: right() });
        assert_eq!((herd.right, herd.at_once, herd.refusals.len()), (2, 1, 2));
        herd.all_served().unwrap();
        herd.add(Fate { refusals: vec![away], end: Err(anyhow!("cut off")) });
        assert!(herd.all_served().unwrap_err().to_string().contains("cut off"));
    }
}

//! Constant streaming traffic in which every answer is compared with the right one.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use anyhow::{Result, bail};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use crate::{
    client::{self, Length},
    oracle::Expected,
};

/// Clients that ask without pause until told to stop.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: JoinSet<Vec<String>>,
}

/// What the clients saw.
#[derive(Debug)]
pub struct Report {
    /// Requests that were answered to the last token, each of them the right one.
    pub right: usize,
    /// One line for each request that failed or differed.
    pub wrong: Vec<String>,
}

impl Traffic {
    /// Starts `clients` clients against a gateway; each streams one answer after the other.
    ///
    /// # Errors
    /// If the address can't be parsed.
    pub fn start(url: &str, model: &str, expected: &[Expected], clients: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let mut set = JoinSet::new();
        for client in 0..clients {
            let channel = Endpoint::from_shared(url.to_owned())?.connect_lazy();
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let (model, expected) = (model.to_owned(), expected.to_vec());
            set.spawn(async move { ask_on(client, &channel, &model, &expected, &stop, &answered).await });
        }
        Ok(Self { stop, answered, clients: set })
    }

    /// Right answers so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Lets every client finish the answer it is reading, and reports.
    pub async fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut wrong = Vec::new();
        while let Some(lines) = self.clients.join_next().await {
            wrong.extend(lines.unwrap_or_else(|panic| vec![panic.to_string()]));
        }
        Report { right: self.answered.load(Ordering::Relaxed), wrong }
    }
}

impl Report {
    /// At least `least` answers, and every one of them right.
    ///
    /// # Errors
    /// With each request that failed or differed.
    pub fn all_right(&self, least: usize) -> Result<()> {
        if !self.wrong.is_empty() {
            bail!("{} right, {} wrong:\n{}", self.right, self.wrong.len(), self.wrong.join("\n"));
        }
        if self.right < least {
            bail!("only {} answers: too few to show anything", self.right);
        }
        Ok(())
    }
}

async fn ask_on(
    client: usize,
    channel: &Channel,
    model: &str,
    expected: &[Expected],
    stop: &AtomicBool,
    answered: &AtomicUsize,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut next = client;
    while !stop.load(Ordering::Relaxed) && wrong.len() < 5 {
        let case = &expected[next % expected.len()];
        next += 1;
        let length = Length::Exactly(u32::try_from(case.ids.len()).unwrap_or(u32::MAX));
        match client::generate(channel, model, &case.prompt, length).await {
            Ok(answer) if answer.ids == case.ids => {
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => {
                let at = answer.ids.iter().zip(&case.ids).take_while(|(a, b)| a == b).count();
                wrong.push(format!(
                    "client {client}: token {at} differs: {:?} for {:?} ({} of {} tokens)",
                    answer.ids.get(at),
                    case.ids.get(at),
                    answer.ids.len(),
                    case.ids.len()
                ));
            }
            Err(error) => wrong.push(format!("client {client}: {error:#}")),
        }
    }
    wrong
}

//! Many requests of every kind, good and bad, read to the end and abandoned; then what they left behind.

mod ask;
mod check;
mod kind;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use futures::future::try_join_all;

use crate::process::Stack;

pub use ask::{Clients, Outcome};
pub use check::{Memory, settled};
pub use kind::Kind;

/// How a soak goes.
#[derive(Clone, Copy, Debug)]
pub struct Soak {
    /// Requests in all.
    pub requests: usize,
    /// At a time.
    pub clients: usize,
    /// The same seed makes the same requests.
    pub seed: u64,
    /// Requests of one kind, to find out which one leaves something behind; `None`: of all.
    pub only: Option<Kind>,
}

/// Parts of a soak; memory is read behind each.
const PARTS: usize = 5;

/// What the worker is told: memory that is soon full of prefixes, and guesses, which have to be taken back.
pub const WORKER_ARGS: [&str; 4] = ["--memory", "16Mi", "--draft-tokens", "1"];

/// How many of them warm up: until the largest batch of the largest requests has come by chance.
const WARM_UP: usize = 2;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// How many requests of each kind ended in which way.
    pub outcomes: BTreeMap<(Kind, Outcome), usize>,
    /// Memory after each fifth of the requests, all ended.
    pub memory: Vec<Memory>,
}

impl Report {
    /// Whether the processes are as large at the end as they were after two fifths of the requests.
    ///
    /// # Errors
    /// Which one grew, and by how much.
    pub fn is_flat(&self) -> Result<()> {
        let (Some(warm), Some(end)) = (self.memory.get(WARM_UP - 1), self.memory.last()) else {
            return Ok(());
        };
        end.is_flat_since(warm).with_context(|| format!("memory was {:?}", self.memory))
    }
}

impl Soak {
    /// Sends the requests. After each fifth of them, nothing may be in use.
    ///
    /// # Errors
    /// A request that ended otherwise than its kind may; memory or requests that stay.
    pub async fn run(&self, stack: &Stack, model: &str) -> Result<Report> {
        let clients = Clients::new(stack, model)?;
        let mut report = Report { outcomes: BTreeMap::new(), memory: Vec::new() };
        for part in 0..PARTS {
            let end = |part| part * self.requests / PARTS;
            self.send(&clients, end(part)..end(part + 1), &mut report.outcomes).await?;
            settled(stack).await.with_context(|| format!("after {} requests", end(part + 1)))?;
            report.memory.push(Memory::of(stack)?);
        }
        Ok(report)
    }

    async fn send(
        &self,
        clients: &Clients,
        numbers: std::ops::Range<usize>,
        outcomes: &mut BTreeMap<(Kind, Outcome), usize>,
    ) -> Result<()> {
        let next = AtomicUsize::new(numbers.start);
        let counted = Mutex::new(outcomes);
        let client = async || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= numbers.end {
                    return Ok::<_, anyhow::Error>(());
                }
                let (kind, outcome) = clients
                    .ask(self.seed, number, self.only)
                    .await
                    .with_context(|| format!("seed {}, request {number}", self.seed))?;
                let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
                *counted.entry((kind, outcome)).or_default() += 1;
            }
        };
        try_join_all((0..self.clients).map(|_| client())).await?;
        Ok(())
    }
}

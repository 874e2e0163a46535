//! A key at work: what it has taken of what it may.
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Bucket, Entry};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// When it is worth asking again for a key that has too many requests under way: that depends on its own requests.
const REST: Duration = Duration::from_secs(1);

/// How much a key may take; unset: any amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests, of any kind.
    pub requests_per_minute: Option<u64>,
    /// Tokens of prompts and answers.
    pub tokens_per_minute: Option<u64>,
    /// Tokens of prompts and answers.
    pub tokens_per_day: Option<u64>,
    /// Requests under way at a time.
    pub max_concurrent: Option<u64>,
}

impl Limits {
    /// The part of one of so many replicas, at least 1 of each.
    #[must_use]
    pub fn part(self, replicas: u64) -> Self {
        let part = |limit: Option<u64>| limit.map(|limit| limit.div_ceil(replicas.max(1)));
        Self {
            requests_per_minute: part(self.requests_per_minute),
            tokens_per_minute: part(self.tokens_per_minute),
            tokens_per_day: part(self.tokens_per_day),
            max_concurrent: part(self.max_concurrent),
        }
    }
}

/// Which limit refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Requests a minute.
    RequestsPerMinute,
    /// Tokens a minute.
    TokensPerMinute,
    /// Tokens a day.
    TokensPerDay,
    /// Requests under way.
    Concurrent,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RequestsPerMinute => "requestsPerMinute",
            Self::TokensPerMinute => "tokensPerMinute",
            Self::TokensPerDay => "tokensPerDay",
            Self::Concurrent => "maxConcurrent",
        })
    }
}

/// A request that is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Of which limit.
    pub reason: Reason,
    /// When there will be enough.
    pub after: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Key {
    /// As in the file.
    pub name: Arc<str>,
    models: Vec<String>,
    limits: Limits,
    /// Outlives changes of the file.
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    start: Instant,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    requests: Bucket,
    minute: Bucket,
    day: Bucket,
    under_way: u64,
}

impl Key {
    /// A key of this entry. `before` is the key of that name until now, which has taken what it has taken.
    pub fn new(entry: Entry, replicas: u64, before: Option<&Self>) -> Self {
        let fresh = || Arc::new(State { start: Instant::now(), taken: Mutex::default() });
        Self {
            name: entry.name.into(),
            models: entry.models,
            limits: entry.limits.part(replicas),
            state: before.map_or_else(fresh, |before| before.state.clone()),
        }
    }

    /// Whether it may ask for this model.
    pub fn allows(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|allowed| allowed == model)
    }

    /// Takes what a request is expected to take, or nothing. What it really took is told to the ticket.
    pub fn admit(self: &Arc<Self>, tokens: u64) -> Result<Ticket, Refusal> {
        self.admit_at(self.now(), tokens)
    }

    fn now(&self) -> Duration {
        self.state.start.elapsed()
    }

    fn admit_at(self: &Arc<Self>, now: Duration, tokens: u64) -> Result<Ticket, Refusal> {
        let mut taken = self.taken();
        let Limits { requests_per_minute, max_concurrent, .. } = self.limits;
        if max_concurrent.is_some_and(|most| taken.under_way >= most) {
            return Err(Refusal { reason: Reason::Concurrent, after: REST });
        }
        let requests =
            requests_per_minute.map(|most| (Reason::RequestsPerMinute, most, taken.requests, 1, MINUTE));
        let minute = self.minute().map(|most| (Reason::TokensPerMinute, most, taken.minute, tokens, MINUTE));
        let day = self.day().map(|most| (Reason::TokensPerDay, most, taken.day, tokens, DAY));
        let all = [requests, minute, day].into_iter().flatten();
        let waits = all.map(|(reason, most, bucket, amount, window)| Refusal {
            reason,
            after: bucket.after(now, amount, most, window),
        });
        if let Some(longest) = waits.max_by_key(|wait| wait.after).filter(|wait| !wait.after.is_zero()) {
            return Err(longest);
        }
        taken.under_way += 1;
        if let Some(most) = requests_per_minute {
            taken.requests.take(now, 1, most, MINUTE);
        }
        self.take(&mut taken, now, tokens);
        Ok(Ticket { key: self.clone(), reserved: Mutex::new(Some(tokens)) })
    }

    fn take(&self, taken: &mut Taken, now: Duration, tokens: u64) {
        if let Some(most) = self.minute() {
            taken.minute.take(now, tokens, most, MINUTE);
        }
        if let Some(most) = self.day() {
            taken.day.take(now, tokens, most, DAY);
        }
    }

    fn put_back(&self, taken: &mut Taken, tokens: u64) {
        if let Some(most) = self.minute() {
            taken.minute.put_back(tokens, most, MINUTE);
        }
        if let Some(most) = self.day() {
            taken.day.put_back(tokens, most, DAY);
        }
    }

    fn minute(&self) -> Option<u64> {
        self.limits.tokens_per_minute
    }

    fn day(&self) -> Option<u64> {
        self.limits.tokens_per_day
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.state.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that was let in, until dropped. Unless it is settled it takes nothing in the end.
#[derive(Debug)]
pub struct Ticket {
    key: Arc<Key>,
    reserved: Mutex<Option<u64>>,
}

impl Ticket {
    /// So many tokens it really took. The first word counts.
    pub fn settle(&self, tokens: u64) {
        let Some(reserved) = self.reserved.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        let now = self.key.now();
        let mut taken = self.key.taken();
        if tokens > reserved {
            self.key.take(&mut taken, now, tokens - reserved);
        } else {
            self.key.put_back(&mut taken, reserved - tokens);
        }
    }

    /// Name of its key.
    pub fn key_name(&self) -> Arc<str> {
        self.key.name.clone()
    }

    /// As many as were expected.
    pub fn settle_as_expected(&self) {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle(0);
        self.key.taken().under_way -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(limits: Limits) -> Entry {
        Entry { name: "k".into(), hash: [0; 32], models: vec!["m".into()], limits }
    }

    fn key(limits: Limits) -> Arc<Key> {
        Arc::new(Key::new(entry(limits), 1, None))
    }

    fn refused(key: &Arc<Key>, now: u64, tokens: u64) -> Option<(Reason, u64)> {
        let refusal = key.admit_at(Duration::from_secs(now), tokens).err()?;
        Some((refusal.reason, refusal.after.as_secs()))
    }

    #[test]
    fn each_limit_says_which_and_when() {
        let requests = key(Limits { requests_per_minute: Some(2), ..Limits::default() });
        for expected in [None, None, Some((Reason::RequestsPerMinute, 30))] {
            assert_eq!(refused(&requests, 5, 0), expected);
        }
        let concurrent = key(Limits { max_concurrent: Some(1), ..Limits::default() });
        let ticket = concurrent.admit(5).unwrap();
        assert_eq!(refused(&concurrent, 0, 0), Some((Reason::Concurrent, 1)));
        drop(ticket);
        assert_eq!(refused(&concurrent, 0, 0), None);
        let limits =
            Limits { tokens_per_minute: Some(600), tokens_per_day: Some(86_400), ..Limits::default() };
        let tokens = key(limits);
        let held = tokens.admit_at(Duration::from_secs(9), 600).unwrap();
        assert_eq!(refused(&tokens, 9, 100), Some((Reason::TokensPerMinute, 10)));
        drop(held);
        assert_eq!(
            refused(&tokens, 9, 600),
            None,
            "a request that took nothing gives back what was set aside"
        );
    }

    #[test]
    fn what_is_really_taken_counts() {
        let limits = Limits { tokens_per_day: Some(86_400), ..Limits::default() };
        let (less, more) = (key(limits), key(limits));
        less.admit_at(Duration::ZERO, 86_400).unwrap().settle(400);
        assert_eq!(refused(&less, 0, 86_000), None);
        let ticket = more.admit_at(Duration::ZERO, 10).unwrap();
        ticket.settle(86_400 + 50);
        ticket.settle(0);
        let (reason, after) = refused(&more, 0, 10).unwrap();
        assert_eq!(reason, Reason::TokensPerDay);
        assert!((59..=61).contains(&after), "{after}: 50 too many, and 10 more");
    }

    #[test]
    fn a_changed_file_forgives_nothing() {
        let limits = Limits { requests_per_minute: Some(1), ..Limits::default() };
        let before = key(limits);
        let _ticket = before.admit(0).unwrap();
        let after = Arc::new(Key::new(entry(limits), 1, Some(&before)));
        assert!(after.admit(0).is_err());
        assert!(!after.allows("other") && after.allows("m"));
    }

    #[test]
    fn replicas_share_the_limits() {
        let limits = Limits { requests_per_minute: Some(10), max_concurrent: Some(1), ..Limits::default() };
        let part = Limits { requests_per_minute: Some(4), max_concurrent: Some(1), ..Limits::default() };
        assert_eq!(limits.part(3), part);
        assert_eq!(limits.part(0), limits);
    }
}

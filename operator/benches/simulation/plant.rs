//! Groups and the queue before them.
use std::collections::VecDeque;

use super::{STEP, trace::Request};

/// Requests that a group works on at a time.
pub const SLOTS: usize = 32;

/// What a group does in a second; an output token is 1.
const WORK: f64 = 1000.0;

/// Work of a token of a prompt.
const PROMPT_TOKEN: f64 = 0.1;

/// Most that is done for one request in a second: output tokens, and tokens of its prompt.
const FASTEST: (f64, f64) = (50.0, 5000.0);

/// Answers of unknown length are taken to have so many tokens.
const EXPECTED_OUTPUT: u32 = 200;

/// Bounds of the queue: seconds, requests.
pub const HOLD: (f64, usize) = (120.0, 1000);

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Record {
    /// It had its first token after so many seconds.
    Served(f64),
    /// It was refused after so many seconds.
    Refused(f64),
}

#[derive(Clone, Copy, Debug)]
struct Running {
    request: Request,
    prompt_left: f64,
    output_done: f64,
}

#[derive(Debug, Default)]
struct Group {
    ready_at: f64,
    draining: bool,
    running: Vec<Running>,
}

/// What can be seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub ready: u32,
    pub loading: u32,
    /// Seconds until the last of those is ready.
    pub eta: f64,
    pub held: u64,
    pub held_tokens: u64,
    pub running: u64,
    pub running_tokens: u64,
    pub served_tokens: u64,
    pub idle_seconds: f64,
    /// First tokens of the last minute, and when nine of ten were there, in milliseconds.
    pub first_tokens: u64,
    pub first_token_p90: u64,
}

/// Groups and the queue before them.
#[derive(Debug, Default)]
pub struct Plant {
    load_seconds: f64,
    groups: Vec<Group>,
    queue: VecDeque<Request>,
    records: Vec<Record>,
    /// (when, how long it took)
    recent: VecDeque<(f64, f64)>,
    served: f64,
    used: f64,
    last_activity: f64,
}

impl Plant {
    pub fn new(ready: u32, load_seconds: f64) -> Self {
        let groups = (0..ready).map(|_| Group::default()).collect();
        Self { load_seconds, groups, ..Self::default() }
    }

    pub fn arrive(&mut self, request: Request, now: f64) {
        self.last_activity = now;
        if self.queue.len() >= HOLD.1 {
            self.records.push(Record::Refused(0.0));
        } else {
            self.queue.push_back(request);
        }
    }

    /// A step passes.
    pub fn step(&mut self, now: f64) {
        while let Some(request) = self.queue.front().filter(|request| now - request.arrival > HOLD.0) {
            self.records.push(Record::Refused(now - request.arrival));
            self.queue.pop_front();
        }
        while !self.queue.is_empty() {
            let free =
                |group: &&mut Group| group.ready_at <= now && !group.draining && group.running.len() < SLOTS;
            let Some(group) = self.groups.iter_mut().filter(free).min_by_key(|group| group.running.len())
            else {
                break;
            };
            if let Some(request) = self.queue.pop_front() {
                let prompt_left = f64::from(request.prompt_tokens);
                group.running.push(Running { request, prompt_left, output_done: 0.0 });
            }
        }
        let (mut used, mut ready) = (0.0, 0u32);
        for group in &mut self.groups {
            ready += u32::from(group.ready_at <= now && !group.draining);
            let share = WORK * STEP / group.running.len().max(1) as f64;
            let before = group.running.len();
            for running in &mut group.running {
                let prompt = running.prompt_left.min(FASTEST.1 * STEP).min(share / PROMPT_TOKEN);
                running.prompt_left -= prompt;
                let mut output = 0.0;
                if running.prompt_left <= 0.0 {
                    let left = f64::from(running.request.output_tokens) - running.output_done;
                    output = (share - prompt * PROMPT_TOKEN).min(FASTEST.0 * STEP).min(left).max(0.0);
                    // the first token is there once a whole one is
                    if running.output_done < 1.0 && running.output_done + output >= 1.0 {
                        let waited = now + STEP - running.request.arrival;
                        self.records.push(Record::Served(waited));
                        self.recent.push_back((now, waited));
                    }
                    running.output_done += output;
                }
                used += prompt * PROMPT_TOKEN + output;
                self.served += prompt + output;
            }
            group.running.retain(|running| running.output_done < f64::from(running.request.output_tokens));
            if group.running.len() < before {
                self.last_activity = now;
            }
        }
        self.groups.retain(|group| !group.draining || !group.running.is_empty());
        while self.recent.front().is_some_and(|(at, _)| now - at > 60.0) {
            self.recent.pop_front();
        }
        self.used = if ready == 0 { 0.0 } else { used / (WORK * STEP * f64::from(ready)) };
    }

    /// There are to be so many groups, beside those that drain.
    pub fn scale(&mut self, wanted: u32, now: f64) {
        let wanted = wanted as usize;
        while self.live() < wanted {
            self.groups.push(Group { ready_at: now + self.load_seconds, ..Group::default() });
        }
        while self.live() > wanted {
            // those that load go first, then the last ones
            let load = |group: &Group| !group.draining && group.ready_at > now;
            let index = self.groups.iter().rposition(load);
            let index = index.or_else(|| self.groups.iter().rposition(|group| !group.draining));
            if let Some(group) = index.and_then(|index| self.groups.get_mut(index)) {
                group.draining = true;
                group.ready_at = group.ready_at.min(now);
            }
        }
        self.groups.retain(|group| !group.draining || !group.running.is_empty());
    }

    fn live(&self) -> usize {
        self.groups.iter().filter(|group| !group.draining).count()
    }

    /// Groups that hold their devices.
    pub fn existing(&self) -> u32 {
        self.groups.len() as u32
    }

    pub fn idle(&self) -> bool {
        self.queue.is_empty() && self.groups.iter().all(|group| group.running.is_empty())
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    fn p90(&self) -> f64 {
        let mut waits: Vec<f64> = self.recent.iter().map(|(_, waited)| *waited).collect();
        let index = waits.len() * 9 / 10;
        if index >= waits.len() { 0.0 } else { *waits.select_nth_unstable_by(index, f64::total_cmp).1 }
    }

    /// Share of what ready groups can do that they did in the last step.
    pub fn use_share(&self) -> f64 {
        self.used
    }

    pub fn seen(&self, now: f64) -> Seen {
        let live = || self.groups.iter().filter(|group| !group.draining);
        let loading = || live().filter(|group| group.ready_at > now);
        let running = || self.groups.iter().flat_map(|group| &group.running);
        let left = |running: &Running| {
            running.prompt_left + (f64::from(EXPECTED_OUTPUT) - running.output_done).max(1.0)
        };
        let whole = |request: &Request| u64::from(request.prompt_tokens + EXPECTED_OUTPUT);
        let count = |groups: usize| groups as u32;
        Seen {
            ready: count(live().count() - loading().count()),
            loading: count(loading().count()),
            eta: loading().map(|group| group.ready_at - now).fold(0.0, f64::max),
            held: self.queue.len() as u64,
            held_tokens: self.queue.iter().map(whole).sum(),
            running: running().count() as u64,
            running_tokens: running().map(left).sum::<f64>() as u64,
            served_tokens: self.served as u64,
            idle_seconds: if self.idle() { now - self.last_activity } else { 0.0 },
            first_tokens: self.recent.len() as u64,
            first_token_p90: (1000.0 * self.p90()) as u64,
        }
    }
}

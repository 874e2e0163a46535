//! What the double says, and how it fails.
//!
//! The answer is a function of prompt, seed and position, so that any worker can go on at any token. Its text has
//! characters of one to four bytes, one byte a token: text lags behind the ids, as with real tokenizers.
use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize},
    },
};

use belay_proto::inference::ChatRequest;

/// How a request ends before its time. Positions count the tokens that this worker made for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// UNAVAILABLE, `belay-retry: step-lost`.
    StepLost(u32),
    /// The stream ends as if it were complete, but without a finish reason.
    Ends(u32),
    /// Every connection of the worker is torn down.
    Cut(u32),
    /// INTERNAL.
    Breaks(u32),
}

/// How a worker behaves, and what it saw.
#[derive(Debug, Default)]
pub struct Script {
    /// One for each request to come; then none.
    pub faults: Mutex<VecDeque<Fault>>,
    /// Refuse with UNAVAILABLE, `belay-retry: draining`.
    pub draining: AtomicBool,
    /// Refuse with RESOURCE_EXHAUSTED.
    pub overloaded: AtomicBool,
    /// Serve another model.
    pub stranger: AtomicBool,
    /// Produce no token (requests are accepted).
    pub stalled: AtomicBool,
    /// Milliseconds a token.
    pub pace: AtomicU64,
    /// Tokens a piece, at most.
    pub batch: AtomicUsize,
    /// Tokens sent, over all requests.
    pub sent: AtomicUsize,
    /// Requests in progress.
    pub active: AtomicUsize,
    /// Requests that were given up by the caller.
    pub cancelled: AtomicUsize,
    /// Requests seen: ids to resume, and the seed.
    pub seen: Mutex<Vec<Seen>>,
    /// Conversations seen.
    pub chats: Mutex<Vec<ChatRequest>>,
    /// Say "not serving" when asked for health.
    pub unwell: AtomicBool,
    /// Times that it was asked for its health.
    pub questions: AtomicUsize,
    /// With `overloaded`: the estimate of when there will be room, in milliseconds; 0: none.
    pub room_after: AtomicU64,
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub request_id: String,
    pub resume: Vec<u32>,
    pub seed: Option<u64>,
    pub timeout: Option<u64>,
}

impl Script {
    pub fn next_fault(&self) -> Option<Fault> {
        self.faults.lock().unwrap().pop_front()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn chats(&self) -> Vec<ChatRequest> {
        self.chats.lock().unwrap().clone()
    }
}

/// Log-probability of the token at a place of the text, and of the likeliest ones there.
pub fn logprob(place: usize, rank: u32) -> f32 {
    -0.5 - f32::from(u16::try_from(place).unwrap()) - f32::from(u16::try_from(rank).unwrap()) / 4.0
}

/// Id of the call that an answer makes: any worker gives it the same.
pub fn call_id(answer: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    answer.hash(&mut hasher);
    format!("call_{:016x}", hasher.finish())
}

/// The bytes of an answer; each is one token, whose id is byte + 1000.
pub fn answer(prompt: &str, seed: u64, length: usize) -> Vec<u8> {
    let alphabet: Vec<char> = "ab é€ß😀漢\"\n".chars().collect();
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let mut hasher = DefaultHasher::new();
        (prompt, seed, bytes.len()).hash(&mut hasher);
        let character = alphabet[usize::try_from(hasher.finish() % 10).unwrap()];
        bytes.extend_from_slice(character.to_string().as_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Text that is certain once these bytes are produced: up to the last complete character; all of it at the end,
/// an incomplete character as U+FFFD.
pub fn certain(bytes: &[u8], is_end: bool) -> String {
    if is_end {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let valid = match std::str::from_utf8(bytes) {
        Ok(text) => text.len(),
        Err(error) => error.valid_up_to(),
    };
    String::from_utf8(bytes[..valid].to_vec()).unwrap()
}

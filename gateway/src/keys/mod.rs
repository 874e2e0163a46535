//! API keys: who may ask, for which models, and how much. Off unless a file of keys is named.
mod auth;
mod bucket;
mod file;
mod key;
mod ring;
mod watch;

pub use auth::authenticate;
pub use bucket::Bucket;
pub use file::{Entry, FileError, read};
pub use key::{Key, Limits, Reason, Refusal, Ticket};
pub use ring::Keyring;
pub use watch::watch;

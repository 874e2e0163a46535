//! A request's life: translated once, served by as many workers as it takes, seen by the client as one answer.
mod call;
mod dispatcher;
mod failure;
mod generation;
mod hold;
mod verdict;

pub use call::Call;
pub use dispatcher::{Dispatcher, Limits};
pub use failure::Failure;
pub use generation::Generation;
pub use hold::{Patience, WaitingRoom};
pub use verdict::{Verdict, lost_with_request, verdict};

//! A request's life: translated once, served by as many workers as it takes, seen by the client as one answer.
mod call;
mod caller;
mod choices;
mod dispatcher;
mod failure;
mod generation;
mod hold;
mod prefix;
mod tokens;
mod verdict;

pub use call::Call;
pub use caller::{Caller, SESSION};
pub use choices::{Choices, MOST_ANSWERS};
pub use dispatcher::{Dispatcher, Limits, Purpose};
pub use failure::{Failure, whole_seconds};
use generation::Generation;
pub use hold::{Patience, WaitingRoom};
pub use prefix::prefix;
pub use verdict::{Verdict, lost_with_request, outcome, room_after, verdict};

//! A request's life: translated once, served by as many workers as it takes, seen by the client as one answer.
mod attempt;
mod call;
mod caller;
mod choices;
mod dispatcher;
mod eta;
mod failure;
mod generation;
mod hedge;
mod line;
mod patience;
mod prefix;
mod room;
mod tokens;
mod verdict;

pub use call::Call;
pub use caller::{Caller, REVISION, SESSION};
pub use choices::{Choices, MOST_ANSWERS};
pub use dispatcher::{Dispatcher, Limits, Purpose};
pub use failure::{Failure, whole_seconds};
use generation::Generation;
pub use line::Line;
use patience::Patience;
pub use prefix::prefix;
pub use verdict::{Verdict, lost_with_request, outcome, room_after, verdict};

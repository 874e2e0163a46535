//! What a worker's status means for the request.
use std::error::Error;

use tonic::{Code, Status};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The worker or the way to it is lost, drains or is not ready: go on elsewhere.
    Elsewhere,
    /// The worker has no room: another may have.
    Full,
    /// The worker serves another model than discovery says: avoid it.
    Stranger,
    /// The request is unsound: every worker would say so.
    Unsound,
    /// The worker failed at this request: another would as well.
    Broken,
}

/// Reads a status. One that was made on this side (connection lost, reset, silent) carries a source; one that the
/// worker sent never does.
pub fn verdict(status: &Status) -> Verdict {
    if status.source().is_some() {
        return Verdict::Elsewhere;
    }
    match status.code() {
        // a worker that is shut down cancels what it serves; a cancelled client never gets to read this
        Code::Unavailable | Code::Cancelled => Verdict::Elsewhere,
        Code::ResourceExhausted => Verdict::Full,
        Code::NotFound => Verdict::Stranger,
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => Verdict::Unsound,
        _ => Verdict::Broken,
    }
}

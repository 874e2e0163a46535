//! What a worker's status means for the request.
use std::{error::Error, time::Duration};

use tonic::{Code, ConnectError, Status};

use crate::measure::Outcome;

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
    /// The client's time for the request is over.
    Late,
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
        Code::DeadlineExceeded => Verdict::Late,
        _ => Verdict::Broken,
    }
}

/// When a full worker expects to have room: metadata `belay-retry-after-ms`.
pub fn room_after(status: &Status) -> Option<Duration> {
    let value = status.metadata().get("belay-retry-after-ms")?;
    value.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

/// How an attempt that ended with this status counts. `None`: the client's time was over, which is nobody's outcome.
pub fn outcome(status: &Status) -> Option<Outcome> {
    let retry = status.metadata().get("belay-retry").and_then(|value| value.to_str().ok());
    match verdict(status) {
        Verdict::Full => Some(Outcome::PassedOn),
        // a worker that is shut down cancels what it serves
        Verdict::Elsewhere if status.source().is_none() && status.code() == Code::Cancelled => {
            Some(Outcome::PassedOn)
        }
        Verdict::Elsewhere if matches!(retry, Some("draining" | "not-ready")) => Some(Outcome::PassedOn),
        Verdict::Elsewhere | Verdict::Stranger | Verdict::Broken => Some(Outcome::Failed),
        Verdict::Unsound => Some(Outcome::Rejected),
        Verdict::Late => None,
    }
}

/// Whether a worker was lost while it may have had the request, which may be why. Not so when it could not be
/// reached at all, or asked for the request to be sent again (a drain, a lost step).
pub fn lost_with_request(status: &Status) -> bool {
    let asked_for_it = status.metadata().contains_key("belay-retry");
    verdict(status) == Verdict::Elsewhere && !asked_for_it && !is_unreachable(status)
}

fn is_unreachable(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn of_this_side(code: Code, source: impl Error + Send + Sync + 'static) -> Status {
        let mut status = Status::new(code, "");
        status.set_source(Arc::new(source));
        status
    }

    #[test]
    fn codes_of_workers() {
        for (code, expected) in [
            (Code::Unavailable, Verdict::Elsewhere),
            (Code::Cancelled, Verdict::Elsewhere),
            (Code::ResourceExhausted, Verdict::Full),
            (Code::NotFound, Verdict::Stranger),
            (Code::InvalidArgument, Verdict::Unsound),
            (Code::DeadlineExceeded, Verdict::Late),
            (Code::Internal, Verdict::Broken),
            (Code::Unknown, Verdict::Broken),
            (Code::Unimplemented, Verdict::Broken),
        ] {
            assert_eq!(verdict(&Status::new(code, "")), expected, "{code:?}");
        }
    }

    #[test]
    fn a_full_worker_says_when_it_has_room() {
        let mut status = Status::resource_exhausted("");
        assert_eq!(room_after(&status), None);
        status.metadata_mut().insert("belay-retry-after-ms", "1500".parse().unwrap());
        assert_eq!(room_after(&status), Some(Duration::from_millis(1500)));
        status.metadata_mut().insert("belay-retry-after-ms", "soon".parse().unwrap());
        assert_eq!(room_after(&status), None);
    }

    #[test]
    fn a_broken_connection_is_never_the_request_s_fault() {
        for code in [Code::Internal, Code::Unknown, Code::ResourceExhausted, Code::Cancelled] {
            assert_eq!(verdict(&of_this_side(code, std::io::Error::other("reset"))), Verdict::Elsewhere);
        }
    }

    #[test]
    fn only_a_worker_that_may_have_had_the_request_counts_as_lost_with_it() {
        assert!(lost_with_request(&of_this_side(Code::Unknown, std::io::Error::other("reset"))));
        assert!(!lost_with_request(&of_this_side(Code::Unavailable, ConnectError("refused".into()))));
        assert!(!lost_with_request(&Status::internal("")));
        let mut draining = Status::unavailable("");
        draining
            .metadata_mut()
            .insert("belay-retry", tonic::metadata::MetadataValue::from_static("draining"));
        assert!(!lost_with_request(&draining));
    }
}

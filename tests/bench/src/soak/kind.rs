//! Kinds of requests, and how each of them may end.

use super::ask::Outcome;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// Streamed chat, read to the end.
    Chat,
    /// Chat in one piece: with stop strings, several answers and their probabilities, or an answer that must be JSON.
    Whole,
    /// Streamed Anthropic message, read to the end.
    Message,
    /// Streamed completion, given as token ids.
    Completion,
    /// A stream that the client leaves after some events.
    Left,
    /// A request that the client leaves before or just after the answer begins.
    LeftEarly,
    /// A request that can't be served.
    Invalid,
    /// By gRPC straight to the worker, cancelled after some pieces.
    GrpcCancelled,
    /// By gRPC straight to the worker, with little time.
    GrpcDeadline,
}

impl Kind {
    /// One of them: the share of each is out of a hundred.
    #[must_use]
    pub fn pick(percent: u32) -> Self {
        match percent {
            0..15 => Self::Chat,
            15..20 => Self::Message,
            20..30 => Self::Whole,
            30..40 => Self::Completion,
            40..60 => Self::Left,
            60..70 => Self::LeftEarly,
            70..85 => Self::Invalid,
            85..93 => Self::GrpcCancelled,
            _ => Self::GrpcDeadline,
        }
    }

    /// Whether a request of this kind may end so.
    #[must_use]
    pub fn may(self, outcome: Outcome) -> bool {
        match self {
            Self::Chat | Self::Whole | Self::Message | Self::Completion => outcome == Outcome::Answered,
            // an answer can be over before the client leaves
            Self::Left | Self::LeftEarly | Self::GrpcCancelled => {
                matches!(outcome, Outcome::Left | Outcome::Answered)
            }
            Self::Invalid => outcome == Outcome::Refused,
            Self::GrpcDeadline => matches!(outcome, Outcome::OutOfTime | Outcome::Answered),
        }
    }
}

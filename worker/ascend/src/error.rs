//! What a failed call means: which code, which kind, what is broken and what to do about it.

use std::time::Duration;

use crate::LibraryError;

/// Result of an operation on a device.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An argument was refused.
    Invalid,
    /// The thread has no context.
    NoContext,
    /// A wait ended before what it waited for. The work may still finish.
    Timeout,
    /// No memory on the device or on the host.
    OutOfMemory,
    /// The work of a stream or of the device was aborted.
    Aborted,
    /// A kernel did not end in its time. For a kernel that communicates, a peer may be gone.
    KernelTimeout,
    /// A kernel failed.
    KernelException,
    /// The device does not answer.
    DeviceLost,
    /// The device's memory has an error that could not be corrected.
    MemoryFault,
    /// A link between devices failed.
    Link,
    /// A peer probably died.
    RemoteSuspect,
    /// An operator could not be planned, or the library has no kernel for it.
    Operator,
    /// An inner failure of the runtime, which the message may explain.
    Runtime,
    /// A code that this page does not know.
    Unknown,
}

/// How much is broken after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Broken {
    /// The call alone: it had no effect or may be tried again.
    Call,
    /// What is queued on the stream: abort it and queue anew.
    Stream,
    /// The communicator: abort, and build it anew without the rank that failed.
    Communicator,
    /// The device: nothing more can be expected of it in this process.
    Device,
}

/// Codes of the runtime and of the operator libraries that are worth a branch, ascending.
const CODES: &[(i32, Kind)] = &[
    (100_000, Kind::Invalid),
    (107_002, Kind::NoContext),
    (107_019, Kind::Timeout),
    (107_020, Kind::Timeout),
    (107_022, Kind::Aborted),
    (107_023, Kind::Aborted),
    (161_001, Kind::Invalid),
    (161_002, Kind::Invalid),
    (207_001, Kind::OutOfMemory),
    (207_018, Kind::OutOfMemory),
    (361_001, Kind::Runtime),
    (507_010, Kind::DeviceLost),
    (507_014, Kind::KernelTimeout),
    (507_015, Kind::KernelException),
    (507_034, Kind::KernelTimeout),
    (507_035, Kind::KernelException),
    (507_046, Kind::Timeout),
    (507_047, Kind::Timeout),
    (507_053, Kind::MemoryFault),
    (507_054, Kind::MemoryFault),
    (507_056, Kind::Link),
    (507_057, Kind::RemoteSuspect),
    (507_901, Kind::DeviceLost),
    (507_904, Kind::Link),
];

impl Kind {
    /// The kind of a code other than 0.
    pub fn of_code(code: i32) -> Self {
        if let Ok(index) = CODES.binary_search_by_key(&code, |(known, _)| *known) {
            return CODES[index].1;
        }
        match code {
            100_000..=199_999 => Self::Invalid, // codes that begin with 1 are documented as the caller's mistakes
            561_000..=561_199 => Self::Operator,
            507_000..=507_999 => Self::Runtime, // inner failures of the runtime and of the device
            _ => Self::Unknown,
        }
    }

    /// The kind of a code of HCCL other than 0.
    pub fn of_hccl(code: i32) -> Self {
        match code {
            1 | 2 => Self::Invalid,
            5 => Self::Operator,
            // a collective that did not come about in its time: a peer is slow, or gone
            9 | 21 => Self::RemoteSuspect,
            11 | 19 => Self::Link,
            15 => Self::Runtime,
            22 => Self::Aborted,
            24 => Self::OutOfMemory,
            _ => Self::Unknown,
        }
    }

    /// What is broken after a failure of this kind.
    pub fn broken(self) -> Broken {
        match self {
            Self::Invalid
            | Self::NoContext
            | Self::Timeout
            | Self::OutOfMemory
            | Self::Operator
            | Self::Unknown => Broken::Call,
            // an unknown failure inside the runtime may have taken queued work with it
            Self::Aborted | Self::KernelTimeout | Self::Runtime => Broken::Stream,
            Self::Link | Self::RemoteSuspect => Broken::Communicator,
            // after an exception the documentation asks for a reset of the device
            Self::KernelException | Self::DeviceLost | Self::MemoryFault => Broken::Device,
        }
    }

    /// What a person may do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Invalid => {
                "an argument is refused: see the message, and whether the CANN version fits the chip"
            }
            Self::NoContext => "bind a context to the thread",
            Self::Timeout => "the device is slow or stuck: wait again, or abort the stream",
            Self::OutOfMemory => "reserve less for the cache, or look for another process on this device",
            Self::Aborted => "the work was aborted: queue it anew",
            Self::KernelTimeout => {
                "abort the stream; if the kernel communicates, look for a peer that is gone"
            }
            Self::KernelException => "replace the rank; the device log under ~/ascend/log names the kernel",
            Self::DeviceLost => "replace the rank; check npu-smi and the driver's log",
            Self::MemoryFault => "replace the rank; the card has a memory error",
            Self::Link => "rebuild the communicator; check the links with hccn_tool",
            Self::RemoteSuspect => "a peer is probably gone: rebuild the communicator without it",
            Self::Operator => "the library cannot do this operator with these shapes: see the message",
            Self::Runtime => "see the message; if it comes again, replace the rank",
            Self::Unknown => "see the message and the error codes of this CANN version",
        }
    }
}

/// A call of CANN that failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{call} failed{}{}; {advice}", coded(*code, *kind), said(message))]
pub struct AscendError {
    /// The symbol that was called.
    pub call: &'static str,
    /// The code that it returned; `None` if it should have given an object and gave none.
    pub code: Option<i32>,
    /// What kind of failure that is.
    pub kind: Kind,
    /// What the library said about it; often names the argument or the device. May be empty.
    pub message: String,
    /// What a person may do about it.
    pub advice: &'static str,
}

fn coded(code: Option<i32>, kind: Kind) -> String {
    match code {
        Some(code) => format!(" with {code} ({kind:?})"),
        None => " and gave no object".to_owned(),
    }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl AscendError {
    pub(crate) fn of_code(call: &'static str, code: i32, message: String) -> Self {
        let kind = Kind::of_code(code);
        Self { call, code: Some(code), kind, message, advice: kind.advice() }
    }

    /// Of a function of HCCL, whose codes are its own.
    pub(crate) fn of_hccl(call: &'static str, code: i32, message: String) -> Self {
        let kind = Kind::of_hccl(code);
        Self { call, code: Some(code), kind, message, advice: kind.advice() }
    }

    pub(crate) fn no_object(call: &'static str, message: String) -> Self {
        let kind = Kind::Invalid;
        Self { call, code: None, kind, message, advice: kind.advice() }
    }

    /// How much is broken.
    pub fn broken(&self) -> Broken {
        self.kind.broken()
    }
}

/// Why something on a device could not be done.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The libraries cannot be used.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// A call failed.
    #[error(transparent)]
    Call(#[from] AscendError),
    /// The device has no room.
    #[error("out of device memory: {bytes} bytes were asked for, {free} are free: {cause}")]
    OutOfDeviceMemory {
        /// Bytes that were asked for.
        bytes: usize,
        /// Bytes that the device said were free right after; 0 if it did not say.
        free: usize,
        /// The call that failed.
        cause: AscendError,
    },
    /// Another library is in use in this process.
    #[error("this process already uses CANN from another library")]
    OtherLibrary,
    /// The thread works with another context.
    #[error("{call}: this thread is bound to another context than what it uses")]
    WrongContext {
        /// What was to be done.
        call: &'static str,
    },
    /// The chip is none that Belay knows.
    #[error("{soc:?} is none of the chips that are supported ({known})")]
    UnknownChip {
        /// Name that the runtime gave.
        soc: String,
        /// Prefixes of the names that are known.
        known: String,
    },
    /// The installation lacks an optional symbol that this needs.
    #[error("this CANN has no {symbol}")]
    Absent {
        /// The symbol.
        symbol: &'static str,
    },
    /// A part of a buffer that is not inside it.
    #[error("{what} needs {needed} bytes, there are {available}")]
    TooSmall {
        /// The buffer.
        what: &'static str,
        /// Bytes that are needed.
        needed: usize,
        /// Bytes that there are.
        available: usize,
    },
    /// Shapes or types that do not fit.
    #[error("{operation}: {cause}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// What does not fit.
        cause: String,
    },
    /// The chip cannot do what is asked for.
    #[error("{soc} cannot compute {what}: {cause}")]
    Unsupported {
        /// Name that the runtime gave.
        soc: String,
        /// What was asked for.
        what: &'static str,
        /// What the chip lacks.
        cause: &'static str,
    },
    /// The stream was aborted before this was known to be done.
    #[error("the stream was aborted")]
    StreamAborted,
}

impl Error {
    /// The kind, where a call of CANN failed.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Call(error) | Self::OutOfDeviceMemory { cause: error, .. } => Some(error.kind),
            Self::StreamAborted => Some(Kind::Aborted),
            _ => None,
        }
    }

    /// How much is broken.
    pub fn broken(&self) -> Broken {
        self.kind().map_or(Broken::Call, Kind::broken)
    }
}

/// Milliseconds for a wait of the runtime: at least 1, and never −1, which would be without an end.
pub(crate) fn milliseconds(limit: Duration) -> i32 {
    i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_ascending_so_that_each_is_found() {
        assert!(CODES.is_sorted_by(|(a, _), (b, _)| a < b));
        for (code, kind) in CODES {
            assert_eq!(Kind::of_code(*code), *kind, "{code}");
        }
    }

    #[test]
    fn codes_of_no_entry_have_the_kind_of_their_range() {
        let kinds = [107_000, 145_000, 561_103, 507_999, 207_000, 7, -1].map(Kind::of_code);
        let expected = [
            Kind::Invalid,
            Kind::Invalid,
            Kind::Operator,
            Kind::Runtime,
            Kind::Unknown,
            Kind::Unknown,
            Kind::Unknown,
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn codes_of_hccl_are_its_own() {
        assert_eq!([9, 21].map(Kind::of_hccl), [Kind::RemoteSuspect; 2]);
        assert_eq!([11, 19].map(|code| Kind::of_hccl(code).broken()), [Broken::Communicator; 2]);
        assert_eq!(Kind::of_hccl(24), Kind::OutOfMemory);
        assert_eq!(Kind::of_hccl(1234), Kind::Unknown);
    }

    #[test]
    fn what_is_broken_follows_from_the_code() {
        let broken = |code| Kind::of_code(code).broken();
        assert_eq!([100_000, 107_002, 107_020, 207_018, 507_046, 561_003].map(broken), [Broken::Call; 6]);
        assert_eq!([107_022, 107_023, 507_014, 507_034].map(broken), [Broken::Stream; 4]);
        assert_eq!([507_056, 507_057, 507_904].map(broken), [Broken::Communicator; 3]);
        assert_eq!([507_010, 507_015, 507_035, 507_053, 507_054, 507_901].map(broken), [Broken::Device; 6]);
    }

    #[test]
    fn a_message_names_the_call_the_code_what_was_said_and_what_to_do() {
        let error = AscendError::of_code("aclrtMalloc", 207_018, "hbm is used up".into());
        assert_eq!(
            error.to_string(),
            "aclrtMalloc failed with 207018 (OutOfMemory): hbm is used up; reserve less for the cache, or look for \
             another process on this device"
        );
        let error = AscendError::no_object("aclCreateTensor", String::new());
        assert!(
            error.to_string().starts_with("aclCreateTensor failed and gave no object; an argument"),
            "{error}"
        );
    }

    #[test]
    fn no_limit_becomes_a_wait_without_an_end() {
        let limits = [Duration::ZERO, Duration::from_micros(1), Duration::from_millis(20), Duration::MAX];
        assert_eq!(limits.map(milliseconds), [1, 1, 20, i32::MAX]);
    }
}

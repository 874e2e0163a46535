//! Wire format of the fabric, version 2.
//!
//! A worker that needs experts of another one dials it and keeps that connection: asks go one way, answers the other
//! way, in the order of the asks, of which several may be under way. The opposite direction has a connection of its own,
//! so two workers that ask each other at the same time never wait for one another. A second connection of the same
//! kind carries pings only, which are answered at once even while an ask is computed; a third one, of workers whose
//! devices exchange rows by themselves, carries words about that, which have no answer. All numbers are little-endian.
//!
//! Every frame starts with a header of 24 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `BLYF` |
//! | 4 | 2 | protocol version |
//! | 6 | 2 | kind |
//! | 8 | 8 | id: number of an ask or a ping on its connection, repeated by its answer; 1 in a refusal that may change soon; else 0 |
//! | 16 | 4 | bytes of the body |
//! | 20 | 4 | reserved, 0 |
//!
//! | kind | sent by | body |
//! |---|---|---|
//! | 1 hello | asker, first | identity of the asker; `u32` worker and `str` uid of the worker that it means to reach; `u32` purpose (0 asks, 1 pings, 2 words about circles); 32 bytes nonce |
//! | 2 welcome | server | identity of the server; 32 bytes nonce; 32 bytes proof |
//! | 3 refuse | server | `str` reason; the connection is closed after it. The same in all versions |
//! | 4 ask | asker | `u32` layer, `u32` rows, `u32` routes, `u32` hidden; routes × { `u32` row, `u32` expert, `f32` weight }; the rows |
//! | 5 result | server | `u32` routes, `u32` hidden; a row for each route, in the order of the ask |
//! | 6 failed | server | `u32` code (1 not resident, 2 other), `u32` layer, `u32` count, count × `u32` expert, `str` reason |
//! | 7 ping | asker | empty, or now and then: `u32` count, count × { `u32` layer, `u32` expert }: orphans that the server shall load |
//! | 8 pong | server | empty, or, when it is news on this connection: `u32` count, count × { `u32` layer, `u32` expert }: what the server has adopted |
//! | 9 prove | asker | 32 bytes proof |
//! | 10 admitted | server | empty: asks, pings or words may come |
//! | 11 word | asker | `u32` which, `u64` circle; 0 offer: `u32` count, count × `u32` worker, `u32` bytes, root; 2 decline, 5 break: `str` reason; 4 ring: `u64` round; 1 agree, 3 join: nothing |
//!
//! identity = `str` group, `str` revision, `str` digest, `u32` worker, `str` uid, `u64` epoch in force, `u64` epoch of the
//! target (0 for none, both), `u32` hidden, `u32` row format (0 f32, 1 bf16, 2 fp8). `str` = `u16` bytes, then UTF-8.
//! A row is as [`crate::RowFormat`] says; one that several experts of one worker need is sent once. The top bit of a
//! route's expert says that the asker knows of no copy, and that the server shall load one. Proofs are HMAC-SHA256 with
//! the group's key: see the module `auth`. A decoder never reserves more than what has arrived plus 256 KiB.

mod exchange;
mod greeting;
mod pulse;
mod rounds;

use std::io;

pub(crate) use exchange::{ASK_PREFIX, ROUTE_BYTES, begin_result};
pub use exchange::{
    Ask, AskHead, Failure, RESULT_PREFIX, check_result, encode_ask, encode_failed, encode_result,
    parse_ask_head, parse_failed, read_ask_routes, routes_per_ask,
};
pub use greeting::{
    Hello, Purpose, Welcome, WireIdentity, encode_hello, encode_prove, encode_refuse, encode_welcome,
    parse_hello, parse_prove, parse_refuse, parse_welcome,
};
pub(crate) use greeting::{body_of, without_proof};
pub use pulse::{MAX_PAIRS, encode_pulse, parse_pulse};
pub use rounds::{Word, encode_word, parse_word};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"BLYF";
/// Protocol version of this build.
pub const VERSION: u16 = 2;
/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 24;
/// Largest body of a frame of the handshake, or of a failure.
pub const SMALL_BODY: u32 = 8 * 1024;
/// Largest body of an ask or a result; a larger exchange is split.
pub const LARGE_BODY: u32 = 64 * 1024 * 1024;
/// Id of a refusal that may change soon: the server has no placement yet.
pub const NOT_YET: u64 = 1;

const _: () = assert!(cfg!(target_endian = "little"), "rows are sent as they lie in memory");

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// First frame of an asker.
    Hello = 1,
    /// The server's answer to a hello that it accepts.
    Welcome = 2,
    /// The server's answer to what it does not accept.
    Refuse = 3,
    /// Rows and routes to compute.
    Ask = 4,
    /// One row for each route.
    Result = 5,
    /// Why an ask has no result.
    Failed = 6,
    /// Is the other side alive?
    Ping = 7,
    /// It is.
    Pong = 8,
    /// The asker's proof.
    Prove = 9,
    /// The server's last word of the handshake.
    Admitted = 10,
    /// About circles of devices.
    Word = 11,
}

impl Kind {
    fn from_code(code: u16) -> Option<Self> {
        [
            Self::Hello,
            Self::Welcome,
            Self::Refuse,
            Self::Ask,
            Self::Result,
            Self::Failed,
            Self::Ping,
            Self::Pong,
            Self::Prove,
            Self::Admitted,
            Self::Word,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == code)
    }

    fn body_limit(self) -> u32 {
        match self {
            Self::Ask | Self::Result => LARGE_BODY,
            Self::Admitted => 0,
            Self::Ping | Self::Pong => 4 + 8 * MAX_PAIRS as u32,
            _ => SMALL_BODY,
        }
    }
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The transport failed; `UnexpectedEof` when the other side closed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Somebody else's protocol.
    #[error("not a belay fabric frame: it starts with {0:02x?}")]
    Magic([u8; 4]),
    /// Another version of this protocol.
    #[error("speaks fabric protocol version {0}, this worker speaks {VERSION}")]
    Version(u16),
    /// A kind that this version does not know.
    #[error("unknown frame kind {0}")]
    Kind(u16),
    /// A body over the bound of its kind.
    #[error("{kind:?} frame of {body} bytes, the limit is {limit}")]
    TooLarge {
        /// Kind of the frame.
        kind: Kind,
        /// Its announced body.
        body: u32,
        /// The bound.
        limit: u32,
    },
    /// The body contradicts itself or the header.
    #[error("malformed {kind:?} frame: {what}")]
    Malformed {
        /// Kind of the frame.
        kind: Kind,
        /// What is wrong.
        what: String,
    },
}

/// A frame header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// See the module's table.
    pub id: u64,
    /// Bytes that follow.
    pub body: u32,
}

impl Header {
    fn malformed(&self, what: impl Into<String>) -> WireError {
        WireError::Malformed { kind: self.kind, what: what.into() }
    }

    /// The error of a frame that has no place where it came.
    pub(crate) fn unexpected(&self) -> WireError {
        self.malformed("not expected here")
    }
}

/// Checks one header.
///
/// # Errors
/// Any [`WireError`] but `Io`.
pub fn parse_header(raw: &[u8; HEADER_BYTES]) -> Result<Header, WireError> {
    let magic = [raw[0], raw[1], raw[2], raw[3]];
    if magic != MAGIC {
        return Err(WireError::Magic(magic));
    }
    let code = u16::from_le_bytes([raw[6], raw[7]]);
    let version = u16::from_le_bytes([raw[4], raw[5]]);
    if version != VERSION && code != Kind::Refuse as u16 {
        return Err(WireError::Version(version));
    }
    let kind = Kind::from_code(code).ok_or(WireError::Kind(code))?;
    let mut id = [0u8; 8];
    id.copy_from_slice(&raw[8..16]);
    let header = Header {
        kind,
        id: u64::from_le_bytes(id),
        body: u32::from_le_bytes([raw[16], raw[17], raw[18], raw[19]]),
    };
    if raw[20..24] != [0; 4] {
        return Err(header.malformed("reserved bytes are not 0"));
    }
    let limit = kind.body_limit();
    if header.body > limit {
        return Err(WireError::TooLarge { kind, body: header.body, limit });
    }
    Ok(header)
}

/// Starts a frame in `out`; [`end_frame`] fills in the length.
fn begin_frame(out: &mut Vec<u8>, kind: Kind, id: u64) {
    out.clear();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(kind as u16).to_le_bytes());
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// `more` bytes of the body are not in `out`: they are written from where they lie.
fn end_frame_with(out: &mut [u8], more: usize) {
    let body = (out.len() - HEADER_BYTES + more) as u32;
    out[16..20].copy_from_slice(&body.to_le_bytes());
}

fn end_frame(out: &mut [u8]) {
    end_frame_with(out, 0);
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Writes at most 2000 bytes of `text`, cut at a character: a reason or a name is for people and never longer.
fn put_str(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(2000);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend_from_slice(&(end as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..end]);
}

/// Encodes a frame without a body.
pub fn encode_empty(out: &mut Vec<u8>, kind: Kind, id: u64) {
    begin_frame(out, kind, id);
    end_frame(out);
}

/// Cursor over a body.
struct Fields<'a> {
    header: &'a Header,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(header: &'a Header, body: &'a [u8]) -> Self {
        Self { header, rest: body }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) =
            self.rest.split_at_checked(bytes).ok_or_else(|| self.header.malformed("body ends early"))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn str(&mut self) -> Result<String, WireError> {
        let bytes = self.array()?;
        let bytes = self.take(usize::from(u16::from_le_bytes(bytes)))?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.header.malformed("text is not UTF-8"))
    }

    fn end(&self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.header.malformed(format!("{} bytes too many", self.rest.len())))
        }
    }
}

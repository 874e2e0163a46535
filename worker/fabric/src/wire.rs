//! Wire format of the fabric, version 1.
//!
//! A worker that needs experts of another one dials it and keeps that connection: asks go one way, results the
//! other. The opposite direction has a connection of its own, so two workers that ask each other at the same time
//! never wait for one another. All numbers are little-endian; rows are f32 and keep their bits.
//!
//! Every frame starts with a header of 24 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `BLYF` |
//! | 4 | 2 | protocol version |
//! | 6 | 2 | kind |
//! | 8 | 8 | id: an ask's number on its connection, repeated by its answer; 0 elsewhere |
//! | 16 | 4 | bytes of the body |
//! | 20 | 4 | reserved, 0 |
//!
//! | kind | sent by | body |
//! |---|---|---|
//! | 1 hello | asker, first | identity of the asker, then `u32` worker and `str` uid of the worker that it means to reach |
//! | 2 welcome | server | identity of the server |
//! | 3 refuse | server | `str` reason; the connection is closed after it. The same in all versions |
//! | 4 ask | asker | `u32` layer, `u32` rows, `u32` routes, `u32` hidden; rows × hidden `f32`; routes × { `u32` row, `u32` expert, `f32` weight } |
//! | 5 result | server | `u32` routes, `u32` hidden; routes × hidden `f32`, in the order of the ask |
//! | 6 failed | server | `u32` code (1 not resident, 2 other), `u32` layer, `u32` expert, `str` reason |
//! | 7 ping, 8 pong | asker, server | empty |
//!
//! identity = `str` group, `str` revision, `str` digest, `u32` worker, `str` uid, `u64` epoch, `u32` hidden.
//! `str` = `u16` bytes, then UTF-8. A row that several experts of one worker need is sent once. A decoder never
//! reserves more than what has arrived plus one piece of 256 KiB.

use std::io::{self, Read};

use belay_backend::Route;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"BLYF";
/// Protocol version of this build.
pub const VERSION: u16 = 1;
/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 24;
/// Largest body of a frame other than ask and result.
pub const SMALL_BODY: u32 = 8 * 1024;
/// Largest body of an ask or a result; a larger exchange is split.
pub const LARGE_BODY: u32 = 64 * 1024 * 1024;

const ASK_PREFIX: usize = 16;
const RESULT_PREFIX: usize = 8;
const ROUTE_BYTES: usize = 12;
const PIECE_FLOATS: usize = 64 * 1024;

const _: () = assert!(cfg!(target_endian = "little"), "rows are sent as they lie in memory");

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// First frame of an asker.
    Hello = 1,
    /// The server's answer to a hello that it accepts.
    Welcome = 2,
    /// The server's answer to a hello that it does not accept.
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
        ]
        .into_iter()
        .find(|kind| *kind as u16 == code)
    }

    fn body_limit(self) -> u32 {
        match self {
            Self::Ask | Self::Result => LARGE_BODY,
            Self::Ping | Self::Pong => 0,
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
    /// Number of the ask, or 0.
    pub id: u64,
    /// Bytes that follow.
    pub body: u32,
}

impl Header {
    fn malformed(&self, what: impl Into<String>) -> WireError {
        WireError::Malformed { kind: self.kind, what: what.into() }
    }
}

/// Reads and checks one header.
///
/// # Errors
/// [`WireError`]; with `Io(UnexpectedEof)` if the stream ends.
pub fn read_header(reader: &mut impl Read) -> Result<Header, WireError> {
    let mut raw = [0u8; HEADER_BYTES];
    reader.read_exact(&mut raw)?;
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

fn end_frame(out: &mut [u8]) {
    let body = (out.len() - HEADER_BYTES) as u32;
    out[16..20].copy_from_slice(&body.to_le_bytes());
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

/// Who speaks, on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireIdentity {
    /// Group name.
    pub group: String,
    /// Revision of the deployment.
    pub revision: String,
    /// Digest of the checkpoint.
    pub digest: String,
    /// Worker index in the group.
    pub worker: u32,
    /// Pod UID.
    pub uid: String,
    /// Placement epoch in force.
    pub epoch: u64,
    /// Channels of a row.
    pub hidden: u32,
}

/// A hello: who asks, and whom it means to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The asker.
    pub from: WireIdentity,
    /// Index of the worker that it dialled.
    pub to_worker: u32,
    /// UID that the asker's placement has for that worker.
    pub to_uid: String,
}

fn put_identity(out: &mut Vec<u8>, identity: &WireIdentity) {
    put_str(out, &identity.group);
    put_str(out, &identity.revision);
    put_str(out, &identity.digest);
    put_u32(out, identity.worker);
    put_str(out, &identity.uid);
    out.extend_from_slice(&identity.epoch.to_le_bytes());
    put_u32(out, identity.hidden);
}

/// Encodes a hello.
pub fn encode_hello(out: &mut Vec<u8>, hello: &Hello) {
    begin_frame(out, Kind::Hello, 0);
    put_identity(out, &hello.from);
    put_u32(out, hello.to_worker);
    put_str(out, &hello.to_uid);
    end_frame(out);
}

/// Encodes a welcome.
pub fn encode_welcome(out: &mut Vec<u8>, identity: &WireIdentity) {
    begin_frame(out, Kind::Welcome, 0);
    put_identity(out, identity);
    end_frame(out);
}

/// Encodes a refusal.
pub fn encode_refuse(out: &mut Vec<u8>, reason: &str) {
    begin_frame(out, Kind::Refuse, 0);
    put_str(out, reason);
    end_frame(out);
}

/// Encodes a ping or a pong.
pub fn encode_empty(out: &mut Vec<u8>, kind: Kind) {
    begin_frame(out, kind, 0);
    end_frame(out);
}

/// Routes that fit into one ask, and one result, of rows of `hidden` channels; at least 1.
#[must_use]
pub fn routes_per_ask(hidden: usize) -> usize {
    ((LARGE_BODY as usize - ASK_PREFIX) / (4 * hidden + ROUTE_BYTES)).max(1)
}

/// Encodes an ask for the routes `picked` (indices into `routes`) over the rows of `x` `[.., hidden]`.
///
/// Each row goes once: `routes` must be ordered by row within `picked`, as the model makes them; a row that comes
/// back later is sent again, which is correct and only costs bytes. Returns the number of rows sent.
pub fn encode_ask(
    out: &mut Vec<u8>,
    id: u64,
    layer: u32,
    hidden: usize,
    x: &[f32],
    routes: &[Route],
    picked: &[u32],
) -> u32 {
    begin_frame(out, Kind::Ask, id);
    put_u32(out, layer);
    let rows_at = out.len();
    put_u32(out, 0);
    put_u32(out, picked.len() as u32);
    put_u32(out, hidden as u32);
    let mut rows = 0u32;
    let mut last = None;
    for &index in picked {
        let row = routes[index as usize].row;
        if last != Some(row) {
            let start = row as usize * hidden;
            out.extend_from_slice(bytemuck::cast_slice(&x[start..start + hidden]));
            rows += 1;
            last = Some(row);
        }
    }
    let mut position = 0u32;
    let mut last = None;
    for &index in picked {
        let route = routes[index as usize];
        if last.is_some_and(|row| row != route.row) {
            position += 1;
        }
        last = Some(route.row);
        put_u32(out, position);
        put_u32(out, route.expert);
        out.extend_from_slice(&route.weight.to_le_bytes());
    }
    out[rows_at..rows_at + 4].copy_from_slice(&rows.to_le_bytes());
    end_frame(out);
    rows
}

/// An ask as the server reads it; kept between asks so that its buffers are.
#[derive(Debug, Default)]
pub struct Ask {
    /// Layer index.
    pub layer: u32,
    /// `[rows, hidden]`.
    pub x: Vec<f32>,
    /// What to compute of them; every row is in range.
    pub routes: Vec<Route>,
}

/// Reads the body of an ask into `ask`.
///
/// # Errors
/// [`WireError`] if the sizes disagree, a row is out of range, or `hidden` is another one.
pub fn read_ask(
    reader: &mut impl Read,
    header: &Header,
    hidden: usize,
    ask: &mut Ask,
) -> Result<(), WireError> {
    if (header.body as usize) < ASK_PREFIX {
        return Err(header.malformed("shorter than its prefix"));
    }
    let [layer, rows, routes, channels] = read_words::<4>(reader)?;
    if channels as usize != hidden {
        return Err(header.malformed(format!("rows of {channels} channels, expected {hidden}")));
    }
    // u64: three u32 multiplied can't overflow it in any combination that could equal a u32 body
    let expected = ASK_PREFIX as u64
        + u64::from(rows) * 4 * u64::from(channels)
        + u64::from(routes) * ROUTE_BYTES as u64;
    if expected != u64::from(header.body) {
        return Err(
            header.malformed(format!("{rows} rows and {routes} routes do not make {} bytes", header.body))
        );
    }
    ask.layer = layer;
    read_floats(reader, rows as usize * hidden, &mut ask.x)?;
    ask.routes.clear();
    for _ in 0..routes {
        let [row, expert, weight] = read_words::<3>(reader)?;
        if row >= rows {
            return Err(header.malformed(format!("route names row {row} of {rows}")));
        }
        ask.routes.push(Route { row, expert, weight: f32::from_bits(weight) });
    }
    Ok(())
}

/// Encodes a result; `y` is `[routes, hidden]`.
pub fn encode_result(out: &mut Vec<u8>, id: u64, hidden: usize, y: &[f32]) {
    begin_frame(out, Kind::Result, id);
    put_u32(out, (y.len() / hidden) as u32);
    put_u32(out, hidden as u32);
    out.extend_from_slice(bytemuck::cast_slice(y));
    end_frame(out);
}

/// Reads the body of a result of exactly `routes` rows into `y`.
///
/// # Errors
/// [`WireError`] if its sizes are others.
pub fn read_result(
    reader: &mut impl Read,
    header: &Header,
    hidden: usize,
    routes: usize,
    y: &mut Vec<f32>,
) -> Result<(), WireError> {
    let expected = RESULT_PREFIX as u64 + routes as u64 * hidden as u64 * 4;
    if u64::from(header.body) != expected {
        return Err(header.malformed(format!("{} bytes, {routes} routes make {expected}", header.body)));
    }
    let [found_routes, found_hidden] = read_words::<2>(reader)?;
    if found_routes as usize != routes || found_hidden as usize != hidden {
        return Err(header
            .malformed(format!("result of {found_routes} x {found_hidden}, expected {routes} x {hidden}")));
    }
    read_floats(reader, routes * hidden, y)
}

/// Why an ask failed, on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The expert is not loaded at the server.
    NotResident {
        /// Layer index.
        layer: u32,
        /// Expert index.
        expert: u32,
    },
    /// Anything else, for people.
    Other(String),
}

/// Encodes a failure.
pub fn encode_failed(out: &mut Vec<u8>, id: u64, failure: &Failure) {
    begin_frame(out, Kind::Failed, id);
    let (code, layer, expert, reason) = match failure {
        Failure::NotResident { layer, expert } => (1, *layer, *expert, ""),
        Failure::Other(reason) => (2, 0, 0, reason.as_str()),
    };
    put_u32(out, code);
    put_u32(out, layer);
    put_u32(out, expert);
    put_str(out, reason);
    end_frame(out);
}

/// Reads the body of a failure.
///
/// # Errors
/// [`WireError`] if the body is malformed.
pub fn read_failed(reader: &mut impl Read, header: &Header) -> Result<Failure, WireError> {
    let body = read_small(reader, header)?;
    let mut fields = Fields { header, rest: &body };
    let (code, layer, expert) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let reason = fields.str()?;
    fields.end()?;
    Ok(if code == 1 { Failure::NotResident { layer, expert } } else { Failure::Other(reason) })
}

/// Reads the body of a hello.
///
/// # Errors
/// [`WireError`] if the body is malformed.
pub fn read_hello(reader: &mut impl Read, header: &Header) -> Result<Hello, WireError> {
    let body = read_small(reader, header)?;
    let mut fields = Fields { header, rest: &body };
    let hello = Hello { from: fields.identity()?, to_worker: fields.u32()?, to_uid: fields.str()? };
    fields.end()?;
    Ok(hello)
}

/// Reads the body of a welcome.
///
/// # Errors
/// [`WireError`] if the body is malformed.
pub fn read_welcome(reader: &mut impl Read, header: &Header) -> Result<WireIdentity, WireError> {
    let body = read_small(reader, header)?;
    let mut fields = Fields { header, rest: &body };
    let identity = fields.identity()?;
    fields.end()?;
    Ok(identity)
}

/// Reads the reason of a refusal.
///
/// # Errors
/// [`WireError`] if the body is malformed.
pub fn read_refuse(reader: &mut impl Read, header: &Header) -> Result<String, WireError> {
    let body = read_small(reader, header)?;
    let mut fields = Fields { header, rest: &body };
    let reason = fields.str()?;
    fields.end()?;
    Ok(reason)
}

fn read_small(reader: &mut impl Read, header: &Header) -> Result<Vec<u8>, WireError> {
    // the header was checked: at most SMALL_BODY, or LARGE_BODY for kinds that never come here
    let mut body = vec![0u8; header.body.min(SMALL_BODY) as usize];
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn read_words<const N: usize>(reader: &mut impl Read) -> Result<[u32; N], WireError> {
    let mut words = [0u32; N];
    reader.read_exact(bytemuck::cast_slice_mut(&mut words))?;
    Ok(words)
}

/// Grows `out` piece by piece: a header that lies about its length costs the liar the bytes, not us the memory.
fn read_floats(reader: &mut impl Read, count: usize, out: &mut Vec<f32>) -> Result<(), WireError> {
    out.clear();
    while out.len() < count {
        let start = out.len();
        out.resize(start + (count - start).min(PIECE_FLOATS), 0.0);
        reader.read_exact(bytemuck::cast_slice_mut(&mut out[start..]))?;
    }
    Ok(())
}

/// Cursor over a small body.
struct Fields<'a> {
    header: &'a Header,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) =
            self.rest.split_at_checked(bytes).ok_or_else(|| self.header.malformed("body ends early"))?;
        self.rest = rest;
        Ok(head)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        let raw = self.take(4)?;
        Ok(u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]))
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        let (low, high) = (self.u32()?, self.u32()?);
        Ok(u64::from(low) | u64::from(high) << 32)
    }

    fn str(&mut self) -> Result<String, WireError> {
        let raw = self.take(2)?;
        let bytes = self.take(usize::from(u16::from_le_bytes([raw[0], raw[1]])))?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.header.malformed("text is not UTF-8"))
    }

    fn identity(&mut self) -> Result<WireIdentity, WireError> {
        Ok(WireIdentity {
            group: self.str()?,
            revision: self.str()?,
            digest: self.str()?,
            worker: self.u32()?,
            uid: self.str()?,
            epoch: self.u64()?,
            hidden: self.u32()?,
        })
    }

    fn end(&self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.header.malformed(format!("{} bytes too many", self.rest.len())))
        }
    }
}

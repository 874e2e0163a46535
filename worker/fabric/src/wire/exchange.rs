//! Asks, results and failures.

use belay_backend::Route;

use super::{
    Fields, HEADER_BYTES, Header, Kind, LARGE_BODY, WireError, begin_frame, end_frame, end_frame_with,
    put_str, put_u32,
};
use crate::RowFormat;

/// Bytes of an ask before its routes.
pub(crate) const ASK_PREFIX: usize = 16;
/// Bytes of a result before its rows.
pub const RESULT_PREFIX: usize = 8;
/// Bytes of a route.
pub(crate) const ROUTE_BYTES: usize = 12;
/// In a route's expert: load it if it is not there.
const ADOPT: u32 = 1 << 31;
/// Experts that a failure names at most.
const MAX_NAMED: usize = 1024;

/// Routes that fit into one ask, and one result, of at most `bytes` bytes; at least 1.
#[must_use]
pub fn routes_per_ask(bytes: u32, format: RowFormat, hidden: usize) -> usize {
    let bytes = bytes.min(LARGE_BODY) as usize;
    (bytes.saturating_sub(ASK_PREFIX) / (format.row_bytes(hidden) + ROUTE_BYTES)).max(1)
}

/// Encodes an ask for the routes `picked` (indices into `routes`), all but its rows, which are left in `rows`: the rows
/// of the asker's matrix that follow, in order. `adopt` says which experts the server shall load if it lacks them.
///
/// Each row goes once if `routes` are ordered by row within `picked`, as the model makes them; a row that comes back
/// later is sent again, which is correct and only costs bytes.
pub fn encode_ask(
    out: &mut Vec<u8>,
    rows: &mut Vec<u32>,
    id: u64,
    layer: u32,
    (format, hidden): (RowFormat, usize),
    routes: &[Route],
    picked: &[u32],
    adopt: impl Fn(u32) -> bool,
) {
    begin_frame(out, Kind::Ask, id);
    rows.clear();
    out.reserve(ASK_PREFIX + picked.len() * ROUTE_BYTES);
    put_u32(out, layer);
    put_u32(out, 0);
    put_u32(out, picked.len() as u32);
    put_u32(out, hidden as u32);
    for &index in picked {
        let route = routes[index as usize];
        if rows.last() != Some(&route.row) {
            rows.push(route.row);
        }
        put_u32(out, rows.len() as u32 - 1);
        put_u32(out, if adopt(route.expert) { route.expert | ADOPT } else { route.expert });
        out.extend_from_slice(&route.weight.to_le_bytes());
    }
    out[HEADER_BYTES + 4..HEADER_BYTES + 8].copy_from_slice(&(rows.len() as u32).to_le_bytes());
    end_frame_with(out, rows.len() * format.row_bytes(hidden));
}

/// What an ask begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskHead {
    /// Layer index.
    pub layer: u32,
    /// Rows that come.
    pub rows: u32,
    /// Routes that come, before the rows.
    pub routes: u32,
}

/// An ask as the server reads it; kept between asks so that its buffers are.
#[derive(Debug, Default)]
pub struct Ask {
    /// Layer index.
    pub layer: u32,
    /// `[rows, hidden]`, and perhaps more behind it that is not of this ask.
    pub x: Vec<f32>,
    /// What to compute of them; every row is in range.
    pub routes: Vec<Route>,
    /// Experts of `routes` that shall be loaded if they are not here; ascending, each once.
    pub adopt: Vec<u32>,
}

/// Checks the first 16 bytes of an ask's body against its length.
///
/// # Errors
/// [`WireError`] if the sizes disagree, or `hidden` is another one.
pub fn parse_ask_head(
    header: &Header,
    prefix: &[u8],
    format: RowFormat,
    hidden: usize,
) -> Result<AskHead, WireError> {
    let mut fields = Fields::new(header, prefix);
    let (layer, rows, routes, channels) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    if channels as usize != hidden {
        return Err(header.malformed(format!("rows of {channels} channels, expected {hidden}")));
    }
    // u64 holds the product of any two u32
    let row_bytes = format.row_bytes(hidden) as u64;
    let expected = (u64::from(rows) * row_bytes)
        .saturating_add(u64::from(routes) * ROUTE_BYTES as u64 + ASK_PREFIX as u64);
    if expected != u64::from(header.body) {
        return Err(
            header.malformed(format!("{rows} rows and {routes} routes do not make {} bytes", header.body))
        );
    }
    Ok(AskHead { layer, rows, routes })
}

/// Appends the routes in `bytes`, whole ones, to `ask`.
///
/// # Errors
/// [`WireError`] if a row is out of range.
pub fn read_ask_routes(
    header: &Header,
    head: &AskHead,
    bytes: &[u8],
    ask: &mut Ask,
) -> Result<(), WireError> {
    for raw in bytes.as_chunks::<ROUTE_BYTES>().0 {
        let [row, expert, weight]: [u32; 3] = bytemuck::pod_read_unaligned(raw);
        if row >= head.rows {
            return Err(header.malformed(format!("route names row {row} of {}", head.rows)));
        }
        if expert & ADOPT != 0 {
            let expert = expert & !ADOPT;
            if let Err(at) = ask.adopt.binary_search(&expert) {
                ask.adopt.insert(at, expert);
            }
        }
        ask.routes.push(Route { row, expert: expert & !ADOPT, weight: f32::from_bits(weight) });
    }
    Ok(())
}

/// Starts a result of `routes` rows, which are to follow `out`: appended to it, or written from where they lie.
pub(crate) fn begin_result(out: &mut Vec<u8>, id: u64, format: RowFormat, hidden: usize, routes: usize) {
    begin_frame(out, Kind::Result, id);
    put_u32(out, routes as u32);
    put_u32(out, hidden as u32);
    end_frame_with(out, routes * format.row_bytes(hidden));
}

/// Encodes a result; `y` is `[routes, hidden]`.
pub fn encode_result(out: &mut Vec<u8>, id: u64, format: RowFormat, hidden: usize, y: &[f32]) {
    begin_result(out, id, format, hidden, y.len() / hidden);
    format.encode(y, hidden, out);
}

/// Checks the first 8 bytes of a result's body against its length and the ask.
///
/// # Errors
/// [`WireError`] if its sizes are others.
pub fn check_result(
    header: &Header,
    prefix: &[u8],
    format: RowFormat,
    hidden: usize,
    routes: usize,
) -> Result<(), WireError> {
    let expected = RESULT_PREFIX as u64 + routes as u64 * format.row_bytes(hidden) as u64;
    if u64::from(header.body) != expected {
        return Err(header.malformed(format!("{} bytes, {routes} routes make {expected}", header.body)));
    }
    let mut fields = Fields::new(header, prefix);
    let found = (fields.u32()?, fields.u32()?);
    if found != (routes as u32, hidden as u32) {
        return Err(
            header.malformed(format!("result of {} x {}, expected {routes} x {hidden}", found.0, found.1))
        );
    }
    Ok(())
}

/// Why an ask failed, on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Experts are not loaded at the server, and it could not load them.
    NotResident {
        /// Layer index.
        layer: u32,
        /// Those of the ask's experts.
        experts: Vec<u32>,
        /// For people.
        reason: String,
    },
    /// Anything else, for people.
    Other(String),
}

/// Encodes a failure; of many experts the first 1024 are named.
pub fn encode_failed(out: &mut Vec<u8>, id: u64, failure: &Failure) {
    begin_frame(out, Kind::Failed, id);
    let (code, layer, experts, reason): (_, _, &[u32], _) = match failure {
        Failure::NotResident { layer, experts, reason } => (1, *layer, experts, reason),
        Failure::Other(reason) => (2, 0, &[], reason),
    };
    let named = &experts[..experts.len().min(MAX_NAMED)];
    put_u32(out, code);
    put_u32(out, layer);
    put_u32(out, named.len() as u32);
    named.iter().for_each(|&expert| put_u32(out, expert));
    put_str(out, reason);
    end_frame(out);
}

/// Reads the body of a failure.
///
/// # Errors
/// [`WireError`] if the body is malformed.
pub fn parse_failed(header: &Header, body: &[u8]) -> Result<Failure, WireError> {
    let mut fields = Fields::new(header, body);
    let (code, layer, count) = (fields.u32()?, fields.u32()?, fields.u32()? as usize);
    // the body is small, and so is what is read of it
    let named = fields.take(count.saturating_mul(4))?;
    let experts = named.as_chunks::<4>().0.iter().map(|raw| u32::from_le_bytes(*raw)).collect();
    let reason = fields.str()?;
    fields.end()?;
    Ok(if code == 1 { Failure::NotResident { layer, experts, reason } } else { Failure::Other(reason) })
}

//! Asks, results and failures.

use std::io::Read;

use belay_backend::Route;

use super::{
    Fields, Header, Kind, LARGE_BODY, WireError, begin_frame, end_frame, put_str, put_u32, read_small,
};

const ASK_PREFIX: usize = 16;
const RESULT_PREFIX: usize = 8;
const ROUTE_BYTES: usize = 12;
const PIECE_FLOATS: usize = 64 * 1024;

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

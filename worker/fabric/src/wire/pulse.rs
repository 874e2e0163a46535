//! Pings and pongs, and what they tell.

use super::{Fields, Header, Kind, WireError, begin_frame, end_frame, put_u32};

/// Pairs that one of them tells at most.
pub const MAX_PAIRS: usize = 28_000;

/// Encodes a ping or a pong, with (layer, expert) pairs if there is something to tell. Pairs beyond [`MAX_PAIRS`] are
/// left out, which only costs an exchange a question elsewhere.
pub fn encode_pulse(out: &mut Vec<u8>, kind: Kind, id: u64, pairs: Option<&[(u32, u32)]>) {
    begin_frame(out, kind, id);
    if let Some(pairs) = pairs {
        let told = &pairs[..pairs.len().min(MAX_PAIRS)];
        put_u32(out, told.len() as u32);
        for &(layer, expert) in told {
            put_u32(out, layer);
            put_u32(out, expert);
        }
    }
    end_frame(out);
}

/// Reads the pairs of a ping or a pong; `None` if it tells nothing.
///
/// # Errors
/// [`WireError`] if the body is malformed.
pub fn parse_pulse(header: &Header, body: &[u8]) -> Result<Option<Vec<(u32, u32)>>, WireError> {
    if body.is_empty() {
        return Ok(None);
    }
    let mut fields = Fields::new(header, body);
    let count = fields.u32()? as usize;
    if fields.rest.len() != count.saturating_mul(8) {
        return Err(header.malformed(format!("{count} pairs do not make {} bytes", body.len())));
    }
    let pairs = (0..count).map(|_| Ok((fields.u32()?, fields.u32()?)));
    pairs.collect::<Result<_, _>>().map(Some)
}

//! Hello, welcome, prove, refuse.

use super::{Fields, HEADER_BYTES, Header, Kind, WireError, begin_frame, end_frame, put_str, put_u32};
use crate::auth::{NONCE_BYTES, PROOF_BYTES};

/// Who speaks, on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireIdentity {
    /// Group name.
    pub group: String,
    /// Revision of the deployment.
    pub revision: String,
    /// Digest of the checkpoint.
    pub digest: String,
    /// Worker index.
    pub worker: u32,
    /// Pod UID.
    pub uid: String,
    /// Placement epoch in force; 0 for none.
    pub epoch: u64,
    /// Epoch of the target; 0 for none.
    pub next_epoch: u64,
    /// Channels of a row.
    pub hidden: u32,
    /// Code of the row format.
    pub format: u32,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Asks.
    Asks,
    /// Pings.
    Pings,
    /// Words about circles.
    Rounds,
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
    /// What will come.
    pub purpose: Purpose,
    /// Random.
    pub nonce: [u8; NONCE_BYTES],
}

/// A welcome: who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The server.
    pub from: WireIdentity,
    /// Random.
    pub nonce: [u8; NONCE_BYTES],
    /// That the server knows the key.
    pub proof: [u8; PROOF_BYTES],
}

fn put_identity(out: &mut Vec<u8>, identity: &WireIdentity) {
    put_str(out, &identity.group);
    put_str(out, &identity.revision);
    put_str(out, &identity.digest);
    put_u32(out, identity.worker);
    put_str(out, &identity.uid);
    out.extend_from_slice(&identity.epoch.to_le_bytes());
    out.extend_from_slice(&identity.next_epoch.to_le_bytes());
    put_u32(out, identity.hidden);
    put_u32(out, identity.format);
}

/// Encodes a hello.
pub fn encode_hello(out: &mut Vec<u8>, hello: &Hello) {
    begin_frame(out, Kind::Hello, 0);
    put_identity(out, &hello.from);
    put_u32(out, hello.to_worker);
    put_str(out, &hello.to_uid);
    put_u32(out, hello.purpose as u32);
    out.extend_from_slice(&hello.nonce);
    end_frame(out);
}

/// Encodes a welcome; `prove` makes the proof from the body before it.
pub fn encode_welcome(
    out: &mut Vec<u8>,
    from: &WireIdentity,
    nonce: &[u8; NONCE_BYTES],
    prove: impl FnOnce(&[u8]) -> [u8; PROOF_BYTES],
) {
    begin_frame(out, Kind::Welcome, 0);
    put_identity(out, from);
    out.extend_from_slice(nonce);
    let proof = prove(body_of(out));
    out.extend_from_slice(&proof);
    end_frame(out);
}

/// Encodes the asker's proof.
pub fn encode_prove(out: &mut Vec<u8>, proof: &[u8; PROOF_BYTES]) {
    begin_frame(out, Kind::Prove, 0);
    out.extend_from_slice(proof);
    end_frame(out);
}

/// Encodes a refusal; `id` is [`super::NOT_YET`] or 0.
pub fn encode_refuse(out: &mut Vec<u8>, id: u64, reason: &str) {
    begin_frame(out, Kind::Refuse, id);
    put_str(out, reason);
    end_frame(out);
}

/// Body of an encoded frame.
pub(crate) fn body_of(frame: &[u8]) -> &[u8] {
    frame.get(HEADER_BYTES..).unwrap_or_default()
}

/// Body of a welcome up to its proof, which is what the proofs are about.
pub(crate) fn without_proof(welcome: &[u8]) -> &[u8] {
    welcome.get(..welcome.len().saturating_sub(PROOF_BYTES)).unwrap_or_default()
}

/// Reads the body of a hello.
///
/// # Errors
/// [`WireError`] if the body is malformed.
pub fn parse_hello(header: &Header, body: &[u8]) -> Result<Hello, WireError> {
    let mut fields = Fields::new(header, body);
    let (from, to_worker, to_uid) = (fields.identity()?, fields.u32()?, fields.str()?);
    let purpose = match fields.u32()? {
        0 => Purpose::Asks,
        1 => Purpose::Pings,
        2 => Purpose::Rounds,
        other => return Err(header.malformed(format!("unknown purpose {other}"))),
    };
    let hello = Hello { from, to_worker, to_uid, purpose, nonce: fields.array()? };
    fields.end()?;
    Ok(hello)
}

/// Reads the body of a welcome.
///
/// # Errors
/// [`WireError`] if the body is malformed.
pub fn parse_welcome(header: &Header, body: &[u8]) -> Result<Welcome, WireError> {
    let mut fields = Fields::new(header, body);
    let welcome = Welcome { from: fields.identity()?, nonce: fields.array()?, proof: fields.array()? };
    fields.end()?;
    Ok(welcome)
}

/// Reads the asker's proof.
///
/// # Errors
/// [`WireError`] if the body is malformed.
pub fn parse_prove(header: &Header, body: &[u8]) -> Result<[u8; PROOF_BYTES], WireError> {
    let mut fields = Fields::new(header, body);
    let proof = fields.array()?;
    fields.end()?;
    Ok(proof)
}

/// Reads the reason of a refusal.
///
/// # Errors
/// [`WireError`] if the body is malformed.
pub fn parse_refuse(header: &Header, body: &[u8]) -> Result<String, WireError> {
    let mut fields = Fields::new(header, body);
    let reason = fields.str()?;
    fields.end()?;
    Ok(reason)
}

impl Fields<'_> {
    fn identity(&mut self) -> Result<WireIdentity, WireError> {
        Ok(WireIdentity {
            group: self.str()?,
            revision: self.str()?,
            digest: self.str()?,
            worker: self.u32()?,
            uid: self.str()?,
            epoch: self.u64()?,
            next_epoch: self.u64()?,
            hidden: self.u32()?,
            format: self.u32()?,
        })
    }
}

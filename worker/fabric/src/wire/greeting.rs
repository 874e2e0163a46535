//! Hello, welcome, refuse.

use std::io::Read;

use super::{Fields, Header, Kind, WireError, begin_frame, end_frame, put_str, put_u32, read_small};

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

impl Fields<'_> {
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
}

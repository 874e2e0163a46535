//! Opening an admitted connection to a peer.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::auth::{Side, nonce};
use crate::health::Unreachable;
use crate::peer::Peer;
use crate::shared::Shared;
use crate::socket::{Inbox, connect, describe, prepare, read_small, write_by};
use crate::wire::{self, Hello, Kind, Purpose, WireError};

/// Dials `peer` and goes through the handshake; opening may take `within`.
pub(crate) fn dial(
    peer: &Peer,
    shared: &Shared,
    purpose: Purpose,
    within: Duration,
) -> Result<(TcpStream, Inbox), Unreachable> {
    let gone = |reason: String| Unreachable::Gone(reason);
    if peer.address.is_empty() {
        return Err(gone("its address is not known yet".into()));
    }
    let mut socket = connect(&peer.address, within).map_err(gone)?;
    prepare(&socket, shared.timeouts.tick).map_err(|error| gone(error.to_string()))?;
    let mut inbox = Inbox::default();
    let until = Instant::now() + shared.timeouts.handshake;
    match greet(peer, shared, purpose, &mut socket, &mut inbox, until) {
        Ok(Ok(())) => Ok((socket, inbox)),
        Ok(Err(refused)) => Err(refused),
        Err(error) => Err(gone(describe(&error))),
    }
}

/// The asker's side of the handshake. The inner error is a refusal, by either side.
fn greet(
    peer: &Peer,
    shared: &Shared,
    purpose: Purpose,
    socket: &mut TcpStream,
    inbox: &mut Inbox,
    until: Instant,
) -> Result<Result<(), Unreachable>, WireError> {
    let placements = shared.placements();
    let members = placements.members();
    let hello = Hello {
        from: shared.identity.on_wire(members),
        to_worker: peer.worker,
        to_uid: peer.uid.clone(),
        purpose,
        nonce: nonce(),
    };
    let mut greeting = Vec::new();
    wire::encode_hello(&mut greeting, &hello);
    write_by(socket, &greeting, until)?;

    let mut body = Vec::new();
    let header = read_small(inbox, socket, until, &mut body)?;
    let welcome = match header.kind {
        Kind::Welcome => wire::parse_welcome(&header, &body)?,
        Kind::Refuse => return Ok(Err(refusal(header.id, &wire::parse_refuse(&header, &body)?))),
        _ => return Err(header.unexpected()),
    };
    if let Err(reason) = shared.identity.believe(members, peer.worker, &peer.uid, &welcome.from) {
        return Ok(Err(Unreachable::Gone(reason)));
    }
    let (hello, welcomed) = (wire::body_of(&greeting), wire::without_proof(&body));
    if !shared.key.accepts(Side::Server, hello, welcomed, &welcome.proof) {
        return Ok(Err(Unreachable::Gone("it does not know the group's fabric key".into())));
    }
    let proof = shared.key.prove(Side::Asker, hello, welcomed);
    let mut out = Vec::new();
    wire::encode_prove(&mut out, &proof);
    write_by(socket, &out, until)?;

    let header = read_small(inbox, socket, until, &mut body)?;
    match header.kind {
        Kind::Admitted => Ok(Ok(())),
        Kind::Refuse => Ok(Err(refusal(header.id, &wire::parse_refuse(&header, &body)?))),
        _ => Err(header.unexpected()),
    }
}

fn refusal(id: u64, reason: &str) -> Unreachable {
    let reason = format!("refused: {reason}");
    if id == wire::NOT_YET { Unreachable::NotYet(reason) } else { Unreachable::Gone(reason) }
}

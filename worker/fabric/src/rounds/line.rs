//! The connection by which this worker tells another one about circles.

use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Instant;

use crate::dial::dial;
use crate::peer::Peer;
use crate::shared::Shared;
use crate::socket::write_by;
use crate::sync::lock;
use crate::wire::{self, Purpose, Word};

/// One direction: nothing is read here.
#[derive(Debug)]
pub(crate) struct Line {
    pub worker: u32,
    pub uid: String,
    /// `None` after a failure.
    open: Mutex<Option<(TcpStream, Vec<u8>)>>,
}

impl Line {
    pub(super) fn dial(peer: &Peer, shared: &Shared) -> Result<Self, String> {
        let (socket, _) = dial(peer, shared, Purpose::Rounds, shared.timeouts.redial)
            .map_err(|why| why.reason().to_owned())?;
        let open = Mutex::new(Some((socket, Vec::new())));
        Ok(Self { worker: peer.worker, uid: peer.uid.clone(), open })
    }

    pub(super) fn is_open(&self) -> bool {
        lock(&self.open).is_some()
    }

    /// Says something. After an error nothing more is said on this line: half of a word may be on its way.
    pub(super) fn say(&self, word: &Word, until: Instant) -> Result<(), String> {
        let mut open = lock(&self.open);
        let Some((socket, out)) = open.as_mut() else { return Err("the line is closed".into()) };
        wire::encode_word(out, word);
        if let Err(error) = write_by(socket, out, until) {
            *open = None;
            return Err(error.to_string());
        }
        Ok(())
    }
}

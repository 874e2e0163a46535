//! Sockets: how they are opened and set, and reading of frames that can be interrupted at any byte.

use std::io::{self, IoSliceMut, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use crate::wire::{self, HEADER_BYTES, Header, Kind, WireError};

/// Bytes that are read at once, and reserved before they have arrived.
pub(crate) const INBOX_BYTES: usize = 256 * 1024;
/// Bytes that are read at once of what is not yet known: a whole small frame, or little of one whose rows are better read
/// to where they belong.
pub(crate) const HEAD_BYTES: usize = 4 * 1024;

/// Opens a connection.
pub(crate) fn connect(address: &str, within: Duration) -> Result<TcpStream, String> {
    let mut last = "it resolves to no address".to_string();
    let resolved =
        address.to_socket_addrs().map_err(|error| format!("cannot resolve {address:?}: {error}"))?;
    for candidate in resolved {
        match TcpStream::connect_timeout(&candidate, within) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("cannot connect to {address}: {last}"))
}

/// Sets what holds for the life of a connection: reads and writes return every `tick`, so that they can look around.
pub(crate) fn prepare(socket: &TcpStream, tick: Duration) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(tick))?;
    socket.set_write_timeout(Some(tick))?;
    // an idle connection whose other host is gone ends by this
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// Makes the connection end when the other host acknowledges nothing for `within`.
pub(crate) fn end_when_unacknowledged(socket: &TcpStream, within: Duration) -> io::Result<()> {
    SockRef::from(socket).set_tcp_user_timeout(Some(within))
}

/// Whether an error only says that a tick is over.
pub(crate) fn is_tick(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Whether an error says that the other host is gone: it acknowledged nothing, or is not on the network.
pub(crate) fn is_vanished(error: &WireError) -> bool {
    let WireError::Io(error) = error else { return false };
    let kind = error.kind();
    let unreachable = matches!(kind, io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable);
    // a deadline of our own has the same kind, but is no error of the system's
    unreachable || (kind == io::ErrorKind::TimedOut && error.raw_os_error().is_some())
}

/// Bytes that have arrived and are not used yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// The first `count` bytes, if they are here.
    pub(crate) fn peek(&self, count: usize) -> Option<&[u8]> {
        self.buffer[self.start..self.end].get(..count)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes that are here, at most `most`.
    pub(crate) fn some(&self, most: usize) -> &[u8] {
        let all = &self.buffer[self.start..self.end];
        &all[..all.len().min(most)]
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// One read. Makes room for `need` bytes in a row, which must be bounded by the caller.
    ///
    /// # Errors
    /// `UnexpectedEof` at the end of the stream, else what the socket says; see [`is_tick`].
    pub(crate) fn fill(&mut self, reader: &mut impl Read, need: usize) -> io::Result<()> {
        self.fill_at_most(reader, need, INBOX_BYTES)
    }

    /// As [`Self::fill`], but when it has read, no more than `most` bytes are here, unless `need` is more.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub(crate) fn fill_at_most(
        &mut self,
        reader: &mut impl Read,
        need: usize,
        most: usize,
    ) -> io::Result<()> {
        self.reserve(need);
        let end = (self.start + most.max(need)).min(self.buffer.len());
        match reader.read(&mut self.buffer[self.end..end.max(self.end + 1)])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.end += count;
                Ok(())
            }
        }
    }

    /// Makes room for `need` bytes in a row, and for at least one more than there are.
    fn reserve(&mut self, need: usize) {
        let capacity = need.max(INBOX_BYTES);
        if self.buffer.len() < capacity {
            self.buffer.resize(capacity, 0);
        }
        if self.start + need > self.buffer.len() || self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// One read into the first `used` of `pieces`, and, if `further` and another piece is left, beyond them into the inbox,
    /// which must be empty. Returns how many bytes are in the pieces.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub(crate) fn read_beyond<'a, const N: usize>(
        &'a mut self,
        reader: &mut impl Read,
        mut pieces: [IoSliceMut<'a>; N],
        mut used: usize,
        further: bool,
    ) -> io::Result<usize> {
        self.reserve(HEAD_BYTES);
        let wanted: usize = pieces[..used].iter().map(|piece| piece.len()).sum();
        if further && used < N {
            pieces[used] = IoSliceMut::new(&mut self.buffer[..HEAD_BYTES]);
            used += 1;
        }
        match reader.read_vectored(&mut pieces[..used])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                (self.start, self.end) = (0, count.saturating_sub(wanted));
                Ok(count.min(wanted))
            }
        }
    }

    /// The header that comes next, if it is here; stays until it is consumed.
    pub(crate) fn header(&self) -> Result<Option<Header>, WireError> {
        let raw = self.some(HEADER_BYTES);
        match <&[u8; HEADER_BYTES]>::try_from(raw) {
            Ok(raw) => wire::parse_header(raw).map(Some),
            Err(_) => Ok(None),
        }
    }
}

/// Reads one frame of the handshake, by `until`; leaves its body in `body`.
pub(crate) fn read_small(
    inbox: &mut Inbox,
    socket: &mut impl Read,
    until: Instant,
    body: &mut Vec<u8>,
) -> Result<Header, WireError> {
    loop {
        if let Some(header) = inbox.header()? {
            if matches!(header.kind, Kind::Ask | Kind::Result | Kind::Ping | Kind::Pong) {
                return Err(header.unexpected());
            }
            if let Some(frame) = inbox.peek(HEADER_BYTES + header.body as usize) {
                body.clear();
                body.extend_from_slice(&frame[HEADER_BYTES..]);
                inbox.consume(HEADER_BYTES + header.body as usize);
                return Ok(header);
            }
        }
        if Instant::now() >= until {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        match inbox.fill(socket, HEADER_BYTES + wire::SMALL_BODY as usize) {
            Err(error) if !is_tick(&error) => return Err(error.into()),
            _ => {}
        }
    }
}

/// Writes everything, by `until`.
pub(crate) fn write_by(socket: &mut impl Write, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if is_tick(&error) => {
                if Instant::now() >= until {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What an error says, for people.
pub(crate) fn describe(error: &WireError) -> String {
    match error {
        error if is_vanished(error) => "its host acknowledges nothing".into(),
        WireError::Io(io) if io.kind() == io::ErrorKind::TimedOut => "no answer in time".into(),
        WireError::Io(io) if io.kind() == io::ErrorKind::UnexpectedEof => {
            "connection closed by the peer".into()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte at a time, with a tick before each.
    struct Trickle<'a>(&'a [u8], bool);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            buffer[0] = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    #[test]
    fn frames_come_out_whole_however_they_trickle_in() {
        let mut frames = Vec::new();
        let mut frame = Vec::new();
        for text in ["first", "second"] {
            wire::encode_refuse(&mut frame, 0, text);
            frames.extend_from_slice(&frame);
        }
        let (mut inbox, mut body) = (Inbox::default(), Vec::new());
        let mut trickle = Trickle(&frames, false);
        let until = Instant::now() + Duration::from_secs(60);
        for text in ["first", "second"] {
            let header = read_small(&mut inbox, &mut trickle, until, &mut body).unwrap();
            assert_eq!(wire::parse_refuse(&header, &body).unwrap(), text);
        }
        let end = read_small(&mut inbox, &mut trickle, until, &mut body);
        assert_eq!(describe(&end.unwrap_err()), "connection closed by the peer");
        let late = read_small(&mut inbox, &mut Trickle(&frames, false), Instant::now(), &mut body);
        assert_eq!(describe(&late.unwrap_err()), "no answer in time");
    }

    #[test]
    fn an_inbox_keeps_what_is_not_consumed_when_it_makes_room() {
        let bytes: Vec<u8> = (0..INBOX_BYTES * 3).map(|i| (i / 7) as u8).collect();
        let (mut inbox, mut reader, mut seen) = (Inbox::default(), bytes.as_slice(), Vec::new());
        while seen.len() < bytes.len() {
            let piece = 1000.min(bytes.len() - seen.len());
            match inbox.peek(piece) {
                Some(found) => {
                    seen.extend_from_slice(found);
                    inbox.consume(piece);
                }
                None => inbox.fill(&mut reader, piece).unwrap(),
            }
        }
        assert_eq!(seen, bytes);
        assert_eq!(inbox.buffer.len(), INBOX_BYTES);
    }
}

//! A socket whose reads and writes end by a point in time, however slowly the other side trickles.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A stream with one deadline for everything done until it is set anew.
#[derive(Debug)]
pub(crate) struct DeadlineStream {
    stream: TcpStream,
    until: Instant,
}

impl DeadlineStream {
    pub(crate) fn new(stream: TcpStream, within: Duration) -> Self {
        Self { stream, until: Instant::now() + within }
    }

    pub(crate) fn set(&mut self, within: Duration) {
        self.until = Instant::now() + within;
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream
    }

    fn remaining(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.remaining()?))?;
        self.stream.read(buffer)
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.remaining()?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Whether an error is a deadline that passed: the kernel says `WouldBlock` or `TimedOut`.
pub(crate) fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

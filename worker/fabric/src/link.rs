//! A connection over which this worker asks one peer.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::net::TcpStream;

use belay_backend::Route;

use crate::RowFormat;
use crate::landing::Landing;
use crate::socket::{Inbox, is_tick};
use crate::wire::{self, Failure, HEADER_BYTES, Header, Kind, RESULT_PREFIX, WireError};

/// Pieces of one vectored write.
const SLICES: usize = 64;

/// An open, admitted connection. Several asks may be under way; they are answered in order.
#[derive(Debug)]
pub(crate) struct Link {
    socket: TcpStream,
    inbox: Inbox,
    format: RowFormat,
    hidden: usize,
    head: Vec<u8>,
    rows: Vec<u32>,
    last_id: u64,
    awaited: VecDeque<Awaited>,
    /// The result that is being read: bytes of its rows so far.
    reading: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Awaited {
    id: u64,
    routes: usize,
}

/// How far reading has come.
#[derive(Debug)]
pub(crate) enum Step {
    /// A tick is over.
    Nothing,
    /// The oldest ask has its result, of this many bytes; every row was handed on.
    Result(usize),
    /// The oldest ask failed.
    Failed(Failure),
}

/// How sending ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// `(rows, bytes)` of the ask, which is now awaited.
    All(usize, usize),
    /// Given up in the middle: the link is of no more use.
    GivenUp,
}

/// What an ask is about.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub layer: u32,
    /// `[rows, hidden]`.
    pub x: &'a [f32],
    pub routes: &'a [Route],
    /// Indices into `routes`.
    pub picked: &'a [u32],
}

impl Link {
    pub(crate) fn new(socket: TcpStream, inbox: Inbox, format: RowFormat, hidden: usize) -> Self {
        Self {
            socket,
            inbox,
            format,
            hidden,
            head: Vec::new(),
            rows: Vec::new(),
            last_id: 0,
            awaited: VecDeque::new(),
            reading: None,
        }
    }

    /// Whether answers are on their way.
    pub(crate) fn is_awaiting(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Sends an ask. `stalled` is called when the peer has taken nothing for a tick, and says whether to go on; it
    /// should read what has come, since the peer may wait for that.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(crate) fn send(
        &mut self,
        question: Question<'_>,
        adopt: impl Fn(u32) -> bool,
        stalled: &mut dyn FnMut(&mut Self) -> Result<bool, WireError>,
    ) -> Result<Sent, WireError> {
        let Question { layer, x, routes, picked } = question;
        let (format, hidden) = (self.format, self.hidden);
        let id = self.last_id + 1;
        let mut head = std::mem::take(&mut self.head);
        let mut rows = std::mem::take(&mut self.rows);
        wire::encode_ask(&mut head, &mut rows, id, layer, (format, hidden), routes, picked, adopt);
        let bytes = head.len() + if format == RowFormat::F32 { rows.len() * 4 * hidden } else { 0 };
        let sent = match format {
            RowFormat::F32 => self.send_in_place(&head, &rows, x, stalled),
            _ => {
                for &row in &rows {
                    format.encode(&x[row as usize * hidden..][..hidden], hidden, &mut head);
                }
                self.write_all(&mut [IoSlice::new(&head)], stalled)
            }
        };
        let outcome = match sent? {
            true => {
                self.last_id = id;
                self.awaited.push_back(Awaited { id, routes: picked.len() });
                Sent::All(rows.len(), bytes.max(head.len()))
            }
            false => Sent::GivenUp,
        };
        (self.head, self.rows) = (head, rows);
        Ok(outcome)
    }

    /// Head and rows from where they lie; rows that follow one another are one piece.
    fn send_in_place(
        &mut self,
        head: &[u8],
        rows: &[u32],
        x: &[f32],
        stalled: &mut dyn FnMut(&mut Self) -> Result<bool, WireError>,
    ) -> Result<bool, WireError> {
        let mut runs = rows.chunk_by(|&a, &b| b == a + 1);
        let mut first = Some(head);
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            if let Some(head) = first.take() {
                slices[0] = IoSlice::new(head);
                used = 1;
            }
            for (slice, run) in slices[used..].iter_mut().zip(&mut runs) {
                let start = run[0] as usize * self.hidden;
                *slice = IoSlice::new(bytemuck::cast_slice(&x[start..start + run.len() * self.hidden]));
                used += 1;
            }
            if used == 0 {
                return Ok(true);
            }
            if !self.write_all(&mut slices[..used], stalled)? {
                return Ok(false);
            }
        }
    }

    fn write_all(
        &mut self,
        mut slices: &mut [IoSlice<'_>],
        stalled: &mut dyn FnMut(&mut Self) -> Result<bool, WireError>,
    ) -> Result<bool, WireError> {
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match (&self.socket).write_vectored(slices) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(count) => IoSlice::advance_slices(&mut slices, count),
                Err(error) if is_tick(&error) => {
                    if !stalled(self)? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Reads on, until an ask is answered or a tick is over. The rows go to `landing`; without one they are dropped.
    ///
    /// # Errors
    /// If the connection is lost or can't be trusted any more.
    pub(crate) fn step(&mut self, mut landing: Option<Landing<'_>>) -> Result<Step, WireError> {
        loop {
            let Some(&awaited) = self.awaited.front() else { return Ok(Step::Nothing) };
            let read = match self.reading {
                Some(done) => {
                    let end = awaited.routes * self.format.row_bytes(self.hidden);
                    let taken = match &mut landing {
                        Some(landing) => landing.take(&mut self.inbox, done, end),
                        None => {
                            let here = self.inbox.some(end - done).len();
                            self.inbox.consume(here);
                            here
                        }
                    };
                    let done = done + taken;
                    if done == end {
                        self.reading = None;
                        self.awaited.pop_front();
                        return Ok(Step::Result(HEADER_BYTES + RESULT_PREFIX + end));
                    }
                    self.reading = Some(done);
                    let read = match &mut landing {
                        Some(landing) => landing.read(&mut self.inbox, &mut &self.socket, done, end),
                        None => self.inbox.fill(&mut &self.socket, 1).map(|()| 0),
                    };
                    read.map(|count| self.reading = Some(done + count))
                }
                None => match self.begin(awaited)? {
                    Begun::Result => {
                        self.reading = Some(0);
                        continue;
                    }
                    Begun::Failed(failure) => {
                        self.awaited.pop_front();
                        return Ok(Step::Failed(failure));
                    }
                    Begun::Needs(need) => {
                        let most = self.format.read_ahead();
                        self.inbox.fill_at_most(&mut &self.socket, need, most)
                    }
                },
            };
            match read {
                Ok(()) => {}
                Err(error) if is_tick(&error) => return Ok(Step::Nothing),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn begin(&mut self, awaited: Awaited) -> Result<Begun, WireError> {
        let Some(header) = self.inbox.header()? else { return Ok(Begun::Needs(HEADER_BYTES)) };
        if header.id != awaited.id {
            return Err(out_of_step(&header, awaited.id));
        }
        match header.kind {
            Kind::Result => {
                let need = HEADER_BYTES + RESULT_PREFIX;
                let Some(frame) = self.inbox.peek(need) else { return Ok(Begun::Needs(need)) };
                wire::check_result(
                    &header,
                    &frame[HEADER_BYTES..],
                    self.format,
                    self.hidden,
                    awaited.routes,
                )?;
                self.inbox.consume(need);
                Ok(Begun::Result)
            }
            Kind::Failed => {
                let need = HEADER_BYTES + header.body as usize;
                let Some(frame) = self.inbox.peek(need) else { return Ok(Begun::Needs(need)) };
                let failure = wire::parse_failed(&header, &frame[HEADER_BYTES..])?;
                self.inbox.consume(need);
                Ok(Begun::Failed(failure))
            }
            _ => Err(header.unexpected()),
        }
    }
}

enum Begun {
    Result,
    Failed(Failure),
    Needs(usize),
}

fn out_of_step(header: &Header, expected: u64) -> WireError {
    let what = format!("answers ask {} instead of {expected}", header.id);
    WireError::Malformed { kind: header.kind, what }
}

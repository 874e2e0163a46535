//! Answers to asks: whatever any local rank holds, whichever placement says so.

use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use belay_backend::{ExpertCompute, FabricError, Route};

use crate::RowFormat;
use crate::landing::Landing;
use crate::ranks::{RankScratch, compute_at};
use crate::server::Connection;
use crate::shared::Shared;
use crate::socket::{INBOX_BYTES, Inbox, is_tick, write_by};
use crate::wire::{self, Ask, Failure, HEADER_BYTES, Header, WireError};

/// Buffers of a connection's asks.
#[derive(Default)]
pub(crate) struct Answerer {
    ask: Ask,
    /// Rows of the ask; the buffer may be larger.
    rows: usize,
    y: Vec<f32>,
    by_rank: Vec<Vec<u32>>,
    missing: Vec<u32>,
    scratch: RankScratch,
}

impl Answerer {
    /// Reads an ask and answers it; an error means that the stream can't be trusted any more.
    pub(crate) fn answer(
        &mut self,
        connection: &mut Connection<'_>,
        header: &Header,
    ) -> Result<(), WireError> {
        let shared = connection.shared;
        let (format, hidden) = (shared.identity.format, shared.identity.hidden as usize);
        if let Err(error) = self.read(connection, header, format, hidden) {
            if !matches!(error, WireError::Io(_)) {
                wire::encode_failed(&mut connection.out, header.id, &Failure::Other(error.to_string()));
                let until = Instant::now() + shared.timeouts.handshake;
                write_by(&mut connection.socket, &connection.out, until)?;
            }
            return Err(error);
        }
        connection.hold();
        let results = self.ask.routes.len() * hidden;
        if self.y.len() < results {
            self.y.resize(results, 0.0);
        }
        let failure = match catch_unwind(AssertUnwindSafe(|| self.compute(shared, hidden))) {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some(Failure::Other(format!("computing experts of layer {} panicked", self.ask.layer))),
        };
        shared.faults.delay_answer();
        connection.hold();
        let until = Instant::now() + shared.timeouts.ask;
        match failure {
            Some(failure) => {
                wire::encode_failed(&mut connection.out, header.id, &failure);
                write_by(&mut connection.socket, &connection.out, until)?;
            }
            None => {
                shared.stats.served(self.ask.routes.len());
                self.write_result(connection, header.id, format, hidden, until)?;
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        connection: &mut Connection<'_>,
        header: &Header,
        format: RowFormat,
        hidden: usize,
    ) -> Result<(), WireError> {
        let shared = connection.shared;
        let until = Instant::now() + shared.timeouts.ask;
        let Connection { socket, inbox, .. } = connection;
        let wait = |error: io::Error| {
            if !is_tick(&error) {
                return Err(error);
            }
            if Instant::now() >= until || shared.connections.is_stopping() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(())
        };
        let fill = |inbox: &mut Inbox, socket: &mut TcpStream, need: usize| {
            inbox.fill_at_most(socket, need, format.read_ahead()).or_else(wait)
        };
        let ask = &mut self.ask;
        let start = HEADER_BYTES + wire::ASK_PREFIX;
        let head = loop {
            match inbox.peek(start) {
                Some(frame) => break wire::parse_ask_head(header, &frame[HEADER_BYTES..], format, hidden)?,
                None if (header.body as usize) < wire::ASK_PREFIX => return Err(header.unexpected()),
                None => fill(inbox, socket, start)?,
            }
        };
        inbox.consume(start);
        ask.layer = head.layer;
        ask.routes.clear();
        ask.adopt.clear();
        let mut left = head.routes as usize * wire::ROUTE_BYTES;
        while left > 0 {
            let here = inbox.some(left);
            let whole = here.len() - here.len() % wire::ROUTE_BYTES;
            if whole == 0 {
                fill(inbox, socket, wire::ROUTE_BYTES)?;
                continue;
            }
            wire::read_ask_routes(header, &head, &here[..whole], ask)?;
            inbox.consume(whole);
            left -= whole;
        }
        let row_bytes = format.row_bytes(hidden);
        let (mut done, end) = (0, head.rows as usize * row_bytes);
        while done < end {
            // grows by what has arrived, and a little: a length that lies costs the liar the bytes, not us the memory
            let room = (done / row_bytes + INBOX_BYTES.div_ceil(row_bytes)).min(head.rows as usize);
            if ask.x.len() < room * hidden {
                ask.x.resize(room * hidden, 0.0);
            }
            let mut landing = Landing { format, hidden, to: &mut ask.x, places: None };
            let piece = room * row_bytes;
            done += landing.take(inbox, done, piece);
            if done == piece {
                continue;
            }
            match landing.read(inbox, socket, done, piece) {
                Ok(count) => done += count,
                Err(error) => wait(error)?,
            }
        }
        self.rows = head.rows as usize;
        Ok(())
    }

    fn compute(&mut self, shared: &Shared, hidden: usize) -> Result<(), Failure> {
        let placements = shared.placements();
        let ranks = &placements.ranks;
        let layer = self.ask.layer;
        let reason = self.adopt(shared, ranks);
        self.find(ranks);
        if !self.missing.is_empty() {
            return Err(Failure::NotResident { layer, experts: self.missing.clone(), reason });
        }
        let Self { ask, rows, y, by_rank, scratch, .. } = self;
        let (x, y) = (&ask.x[..*rows * hidden], &mut y[..ask.routes.len() * hidden]);
        match compute_at(ranks, by_rank, layer, hidden, x, &ask.routes, y, scratch) {
            Ok(()) => Ok(()),
            Err((_, FabricError::NotResident { layer, expert })) => Err(Failure::NotResident {
                layer,
                experts: vec![expert],
                reason: "it was just dropped".into(),
            }),
            Err((_, error)) => Err(Failure::Other(error.to_string())),
        }
    }

    /// Loads what the asker wants to be loaded; says why it could not be.
    fn adopt(&mut self, shared: &Shared, ranks: &[Arc<dyn ExpertCompute>]) -> String {
        let (layer, now) = (self.ask.layer, Instant::now());
        let (mut loaded, mut reason) = (false, String::new());
        for &expert in &self.ask.adopt {
            let adopted = shared.adoption.rank_of(layer, expert);
            if adopted.is_none() && ranks.iter().any(|rank| rank.holds(layer, expert)) {
                continue;
            }
            let rank = adopted.unwrap_or_else(|| shared.rank_for(layer, expert));
            match shared.adoption.adopt(rank, &[(layer, expert)], now) {
                Ok(any) => loaded |= any,
                Err(refused) => reason = refused.reason,
            }
        }
        if loaded {
            shared.refresh();
        }
        reason
    }

    /// Finds a rank for each route, or else that its expert is missing.
    fn find(&mut self, ranks: &[Arc<dyn ExpertCompute>]) {
        let Self { ask, by_rank, missing, .. } = self;
        by_rank.resize_with(ranks.len(), Vec::new);
        by_rank.iter_mut().for_each(Vec::clear);
        missing.clear();
        let mut last: Option<(u32, Option<usize>)> = None;
        for (index, &Route { expert, .. }) in (0u32..).zip(&ask.routes) {
            let rank = match last {
                Some((same, rank)) if same == expert => rank,
                _ => ranks.iter().position(|rank| rank.holds(ask.layer, expert)),
            };
            last = Some((expert, rank));
            match rank {
                Some(rank) => by_rank[rank].push(index),
                None if missing.contains(&expert) => {}
                None => missing.push(expert),
            }
        }
    }

    fn write_result(
        &self,
        connection: &mut Connection<'_>,
        id: u64,
        format: RowFormat,
        hidden: usize,
        until: Instant,
    ) -> Result<(), WireError> {
        let Connection { socket, out, .. } = connection;
        let y = &self.y[..self.ask.routes.len() * hidden];
        if format != RowFormat::F32 {
            wire::encode_result(out, id, format, hidden, y);
            return Ok(write_by(socket, out, until)?);
        }
        wire::begin_result(out, id, format, hidden, self.ask.routes.len());
        let rows: &[u8] = bytemuck::cast_slice(y);
        let sent = socket.write_vectored(&[IoSlice::new(out), IoSlice::new(rows)]);
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) if is_tick(&error) => 0,
            Err(error) => return Err(error.into()),
        };
        write_by(socket, &out[sent.min(out.len())..], until)?;
        Ok(write_by(socket, &rows[sent.saturating_sub(out.len())..], until)?)
    }
}

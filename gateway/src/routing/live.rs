//! A live worker: what discovery found, joined with what this gateway knows of it (channel, load, circuit).
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tonic::transport::{Channel, Endpoint};

use crate::{discovery::Worker, measure::Load};

use super::{Circuit, hash};

/// Bytes of one answer that a worker may send ahead of its reader.
const STREAM_WINDOW: u32 = 64 << 10;

/// Bytes of all answers of a worker. So large that readers who have stopped reading cannot use it up: the others share
/// the connection with them.
const CONNECTION_WINDOW: u32 = 1 << 30;

/// How to connect to workers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectOptions {
    /// Longest time to connect.
    pub connect: Duration,
    /// Interval of HTTP/2 pings, and how long an answer may take.
    pub keep_alive: Duration,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) info: Worker,
    /// Hash of its id.
    pub(super) identity: u64,
    pub(super) channel: Channel,
    /// Requests of this gateway that it has.
    pub(super) load: Arc<Load>,
    circuit: Mutex<Circuit>,
}

impl Live {
    pub(super) fn new(info: Worker, options: ConnectOptions) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", info.address))?
            .connect_timeout(options.connect)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(options.keep_alive)
            .keep_alive_timeout(options.keep_alive)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        Ok(Self {
            identity: hash::of(&[info.id.as_bytes()]),
            info,
            channel: endpoint.connect_lazy(),
            load: Arc::default(),
            circuit: Mutex::default(),
        })
    }

    pub(super) fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

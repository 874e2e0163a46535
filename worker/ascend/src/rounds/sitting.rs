use std::sync::Arc;
use std::time::{Duration, Instant};

use belay_backend::{
    Backend, BackendError, DeviceExperts, FabricError, RoundAnswer, RoundAsk, Seat, Sitting,
};

use super::parcel::{HEADER, Incoming, Outgoing, ROUTE};
use super::port::Port;
use super::told;
use crate::event::EventUse;
use crate::memory::Staging;
use crate::tensor::DataType;
use crate::{
    AscendBackend, AscendBuffer, Communicator, CommunicatorOptions, Current, DeviceBuffer, Error, Event,
    Kind, Pages, Region, Result, RootInfo, Stream,
};

/// After each of these a wait looks whether it makes sense to go on.
const SLICE: Duration = Duration::from_millis(20);
/// Pinned bytes by way of which results come to the host.
const STAGING: usize = 1 << 20;

/// A rank in a circle: its device, and what its rounds need there.
pub(super) struct Rank {
    backend: Arc<AscendBackend>,
    experts: Arc<dyn DeviceExperts<AscendBackend>>,
    hidden: usize,
    rows: DataType,
    limit: Duration,
    /// Declared before the context's guard: dropped while it is current.
    communicator: Communicator,
    stream: Stream,
    /// What the backend has queued so far.
    ready: Event,
    headers: [Port; 2],
    routes: [Port; 2],
    missing: [Port; 2],
    /// Rows that are sent, and those that come.
    sent: Channel,
    come: Channel,
    /// Results that are sent back, and those that come.
    made: Channel,
    back: Channel,
    /// The asker's rows.
    x: Option<AscendBuffer>,
    staging: Staging,
    current: Current,
}

/// Rows on the device: as the model computes with them, and, if that is something else, as they travel.
#[derive(Default)]
struct Channel {
    floats: Option<AscendBuffer>,
    packed: Option<DeviceBuffer>,
}

/// Why a round could not be done.
enum Failure {
    Device(Error),
    Other(FabricError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Device(error)
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self::Other(FabricError::Local(error.to_string()))
    }
}

impl From<FabricError> for Failure {
    fn from(error: FabricError) -> Self {
        Self::Other(error)
    }
}

impl Rank {
    pub(super) fn join(
        backend: &Arc<AscendBackend>,
        experts: &Arc<dyn DeviceExperts<AscendBackend>>,
        seat: &Seat,
        hidden: usize,
        rows: DataType,
    ) -> Result<Self> {
        let current = backend.context().bind()?;
        let stream = Stream::new(&current)?;
        let ready = Event::new(&current, EventUse::Order)?;
        let staging = Staging::new(&current, STAGING)?;
        let root = RootInfo::from_bytes(&seat.root)?;
        let options = CommunicatorOptions::default();
        let communicator = Communicator::join(&current, &root, seat.ranks, seat.rank, &options)?;
        Ok(Self {
            backend: Arc::clone(backend),
            experts: Arc::clone(experts),
            hidden,
            rows,
            limit: backend.limit(),
            communicator,
            stream,
            ready,
            headers: Default::default(),
            routes: Default::default(),
            missing: Default::default(),
            sent: Channel::default(),
            come: Channel::default(),
            made: Channel::default(),
            back: Channel::default(),
            x: None,
            staging,
            current,
        })
    }

    fn try_round(
        &mut self,
        ask: Option<&RoundAsk>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<RoundAnswer>, Failure> {
        let outgoing = Outgoing::of(ask, self.communicator.ranks() as usize);
        let incoming = self.announce(&outgoing, goes_on)?;
        if !incoming.is_any() {
            return Ok(None);
        }
        let numbers = self.dispatch(ask, &outgoing, &incoming, goes_on)?;
        let missing = self.compute(&incoming, &numbers)?;
        self.combine(ask, &outgoing, &incoming, &missing, goes_on)
    }

    /// Tells everybody what will come, and hears it of everybody.
    fn announce(&mut self, outgoing: &Outgoing, goes_on: &dyn Fn() -> bool) -> Result<Incoming, Failure> {
        let Self { current, stream, communicator, headers: [to, from], .. } = self;
        let count = outgoing.headers.len();
        let send = to.put(current, stream, &outgoing.headers)?;
        let receive = from.room(current, count)?;
        communicator.all_to_all(current, stream, DataType::I32, &send, &receive)?;
        from.fetch(current, stream, &receive)?;
        self.wait(goes_on)?;
        let headers = self.headers[1].numbers(count)?;
        Ok(Incoming::of(&headers[..headers.len() / HEADER * HEADER])?)
    }

    /// Sends routes and rows; gives the routes that have come. Their rows are on the device then.
    fn dispatch(
        &mut self,
        ask: Option<&RoundAsk>,
        outgoing: &Outgoing,
        incoming: &Incoming,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Vec<i32>, Failure> {
        let (hidden, dtype) = (self.hidden, self.rows);
        let backend = Arc::clone(&self.backend);
        let (sent, come) = (outgoing.rows.len(), incoming.rows());
        let send = self.sent.room(&backend, &self.current, dtype, sent * hidden)?;
        let receive = self.come.room(&backend, &self.current, dtype, come * hidden)?;
        if let (Some(ask), true) = (ask, sent > 0) {
            let x = room(&backend, &mut self.x, ask.x.len())?;
            backend.write(x, 0, &ask.x)?;
            let rows = room(&backend, &mut self.sent.floats, sent * hidden)?;
            backend.gather(x, hidden, &outgoing.rows, rows)?;
            self.sent.pack(&backend, sent * hidden)?;
        }
        self.follow_backend()?;
        let Self { current, stream, communicator, routes: [to, from], .. } = self;
        let numbers = incoming.routes() * ROUTE;
        let times = |counts: &[u64], by: usize| -> Vec<u64> {
            counts.iter().map(|count| count * by as u64).collect()
        };
        let routes = to.put(current, stream, &outgoing.routes)?;
        let arrived = from.room(current, numbers)?;
        communicator.all_to_all_v(
            current,
            stream,
            DataType::I32,
            (&routes, &times(&outgoing.route_counts, ROUTE)),
            (&arrived, &incoming.counts(|parcel| parcel.routes, ROUTE)),
        )?;
        communicator.all_to_all_v(
            current,
            stream,
            dtype,
            (&send, &times(&outgoing.row_counts, hidden)),
            (&receive, &incoming.counts(|parcel| parcel.rows, hidden)),
        )?;
        from.fetch(current, stream, &arrived)?;
        self.wait(goes_on)?;
        Ok(self.routes[1].numbers(numbers)?)
    }

    /// Queues what has come; gives the first expert that each sender wants and that is not here.
    fn compute(&mut self, incoming: &Incoming, numbers: &[i32]) -> Result<Vec<Option<u32>>, Failure> {
        let (hidden, dtype) = (self.hidden, self.rows);
        let backend = Arc::clone(&self.backend);
        let (layers, missing) = incoming.work(numbers, |layer, expert| self.experts.holds(layer, expert))?;
        self.made.room(&backend, &self.current, dtype, incoming.routes() * hidden)?;
        if !layers.is_empty() {
            self.come.unpack(&backend, incoming.rows() * hidden)?;
            let (Some(x), Some(y)) = (&self.come.floats, &mut self.made.floats) else { return Ok(missing) };
            for (layer, routes) in &layers {
                self.experts.compute_on_device(*layer, x, routes, y)?;
            }
            self.made.pack(&backend, incoming.routes() * hidden)?;
        }
        Ok(missing)
    }

    /// Sends the results back, and takes those of the own ask.
    fn combine(
        &mut self,
        ask: Option<&RoundAsk>,
        outgoing: &Outgoing,
        incoming: &Incoming,
        missing: &[Option<u32>],
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<RoundAnswer>, Failure> {
        let (hidden, dtype) = (self.hidden, self.rows);
        let backend = Arc::clone(&self.backend);
        let asked: u64 = outgoing.route_counts.iter().sum();
        let count = asked as usize * hidden;
        let send = self.made.room(&backend, &self.current, dtype, incoming.routes() * hidden)?;
        let receive = self.back.room(&backend, &self.current, dtype, count)?;
        self.follow_backend()?;
        let Self { current, stream, communicator, missing: [to, from], .. } = self;
        let lacks: Vec<i32> =
            missing.iter().map(|expert| expert.map_or(-1, |expert| expert as i32)).collect();
        let told = to.put(current, stream, &lacks)?;
        let heard = from.room(current, lacks.len())?;
        communicator.all_to_all(current, stream, DataType::I32, &told, &heard)?;
        let wanted: Vec<u64> = outgoing.route_counts.iter().map(|count| count * hidden as u64).collect();
        communicator.all_to_all_v(
            current,
            stream,
            dtype,
            (&send, &incoming.counts(|parcel| parcel.routes, hidden)),
            (&receive, &wanted),
        )?;
        from.fetch(current, stream, &heard)?;
        self.wait(goes_on)?;
        let heard = self.missing[1].numbers(lacks.len())?;
        if ask.is_none() {
            return Ok(None);
        }
        let y = self.read(&receive, count)?;
        let missing = heard.iter().map(|expert| u32::try_from(*expert).ok()).collect();
        Ok(Some(RoundAnswer { y, missing }))
    }

    fn read(&mut self, from: &Region, count: usize) -> Result<Vec<f32>> {
        let Self { current, stream, staging, limit, .. } = self;
        let mut y = vec![0f32; count];
        if self.rows == DataType::F32 {
            staging.read(current, stream, from, bytemuck::cast_slice_mut(&mut y), *limit)?;
            return Ok(y);
        }
        let mut halves = vec![0u16; count];
        staging.read(current, stream, from, bytemuck::cast_slice_mut(&mut halves), *limit)?;
        for (wide, half) in y.iter_mut().zip(halves) {
            *wide = f32::from_bits(u32::from(half) << 16);
        }
        Ok(y)
    }

    /// What is queued here from now on begins when the backend has done what it was given so far.
    fn follow_backend(&self) -> Result<()> {
        self.backend.record(&self.current, &self.ready)?;
        self.stream.wait_event(&self.current, &self.ready)
    }

    /// Waits for the stream as long as it makes sense.
    fn wait(&self, goes_on: &dyn Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            match self.stream.synchronize(&self.current, SLICE) {
                Err(error) if error.kind() == Some(Kind::Timeout) && started.elapsed() < self.limit => {
                    if !goes_on() {
                        return Err(Error::StreamAborted);
                    }
                }
                done => return done,
            }
        }
    }
}

impl Sitting for Rank {
    fn round(
        &mut self,
        ask: Option<&RoundAsk>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<RoundAnswer>, FabricError> {
        self.try_round(ask, goes_on).map_err(|failure| {
            // what is left of the round waits for ranks that will not come
            if let Err(error) = self.stream.abort(&self.current) {
                self.backend.note(&error);
            }
            match failure {
                Failure::Device(error) => told(&self.backend, &error),
                Failure::Other(error) => error,
            }
        })
    }
}

impl Channel {
    /// Room for `count` numbers; gives the region that travels.
    fn room(
        &mut self,
        backend: &AscendBackend,
        current: &Current,
        dtype: DataType,
        count: usize,
    ) -> Result<Region, Failure> {
        let floats = room(backend, &mut self.floats, count)?;
        if dtype == DataType::F32 {
            return Ok(floats.region().part(0..count * size_of::<f32>())?);
        }
        let bytes = count * dtype.bytes();
        if self.packed.as_ref().is_none_or(|packed| packed.region().len() < bytes) {
            let bytes = bytes.max(64).next_power_of_two();
            self.packed = Some(DeviceBuffer::new(current, bytes, Pages::default())?);
        }
        let packed = self.packed.as_ref().ok_or(Error::StreamAborted)?;
        Ok(packed.region().part(0..bytes)?)
    }

    /// Queues making what travels of what is computed with.
    fn pack(&self, backend: &AscendBackend, count: usize) -> Result<(), Failure> {
        match (&self.floats, &self.packed) {
            (Some(floats), Some(packed)) => Ok(backend.pack(floats, count, packed.region())?),
            _ => Ok(()),
        }
    }

    /// The reverse.
    fn unpack(&self, backend: &AscendBackend, count: usize) -> Result<(), Failure> {
        match (&self.floats, &self.packed) {
            (Some(floats), Some(packed)) => Ok(backend.unpack(packed.region(), floats, count)?),
            _ => Ok(()),
        }
    }
}

/// A buffer of at least `count` numbers.
fn room<'a>(
    backend: &AscendBackend,
    buffer: &'a mut Option<AscendBuffer>,
    count: usize,
) -> Result<&'a mut AscendBuffer, BackendError> {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < count) {
        *buffer = None;
    }
    match buffer {
        Some(buffer) => Ok(buffer),
        None => Ok(buffer.insert(backend.alloc(count.max(64).next_power_of_two())?)),
    }
}

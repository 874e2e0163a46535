use std::sync::Arc;
use std::time::{Duration, Instant};

use belay_backend::{
    Backend, BackendError, DeviceExperts, FabricError, RoundAnswer, RoundAsk, Seat, Sitting,
};

use super::parcel::{HEADER, Incoming, Outgoing, ROUTE};
use super::port::Port;
use super::told;
use crate::memory::Staging;
use crate::tensor::DataType;
use crate::{
    AscendBackend, AscendBuffer, Communicator, CommunicatorOptions, Context, Current, Error, Kind, Region,
    Result, RootInfo, Stream,
};

/// After each of these a wait looks whether it makes sense to go on.
const SLICE: Duration = Duration::from_millis(20);
/// Pinned bytes by way of which results come to the host.
const STAGING: usize = 1 << 20;

/// A rank in a circle: its device, and what its rounds need there.
pub(super) struct Rank {
    work: Work,
    experts: Arc<dyn DeviceExperts<AscendBackend>>,
    hidden: usize,
    rows: DataType,
    limit: Duration,
    /// A context of its own: a collective that fails stops all work of its context.
    context: Context,
    communicator: Communicator,
    stream: Stream,
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
}

/// Rows on the device: as the model computes with them, and, if that is something else, as they travel.
#[derive(Default)]
struct Channel {
    floats: Option<AscendBuffer>,
    packed: Option<Region>,
}

/// The backend of the rank, and whether it was given something that is not known to be done.
struct Work {
    backend: Arc<AscendBackend>,
    is_open: bool,
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
        let context = Context::new(backend.context().device())?;
        let current = context.bind()?;
        let stream = Stream::new(&current)?;
        let staging = Staging::new(&current, STAGING)?;
        let root = RootInfo::from_bytes(&seat.root)?;
        let options = CommunicatorOptions::default();
        let communicator = Communicator::join(&current, &root, seat.ranks, seat.rank, &options)?;
        drop(current);
        Ok(Self {
            work: Work { backend: Arc::clone(backend), is_open: false },
            experts: Arc::clone(experts),
            hidden,
            rows,
            limit: backend.limit(),
            context,
            communicator,
            stream,
            headers: Default::default(),
            routes: Default::default(),
            missing: Default::default(),
            sent: Channel::default(),
            come: Channel::default(),
            made: Channel::default(),
            back: Channel::default(),
            x: None,
            staging,
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
        let current = &self.context.bind()?;
        let Self { stream, communicator, headers: [to, from], .. } = self;
        let count = outgoing.headers.len();
        let send = to.put(current, stream, &outgoing.headers)?;
        let receive = from.room(current, count)?;
        communicator.all_to_all(current, stream, DataType::I32, &send, &receive)?;
        from.fetch(current, stream, &receive)?;
        self.wait(current, goes_on)?;
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
        let (sent, come) = (outgoing.rows.len(), incoming.rows());
        let send = self.sent.room(&mut self.work, dtype, sent * hidden)?;
        let receive = self.come.room(&mut self.work, dtype, come * hidden)?;
        if let (Some(ask), true) = (ask, sent > 0) {
            self.work.room(&mut self.x, ask.x.len())?;
            let backend = self.work.open();
            if let (Some(x), Some(rows)) = (&mut self.x, &mut self.sent.floats) {
                backend.write(x, 0, &ask.x)?;
                backend.gather(x, hidden, &outgoing.rows, rows)?;
            }
            self.sent.pack(backend, sent * hidden)?;
        }
        self.work.finish(self.limit)?;
        let current = &self.context.bind()?;
        let Self { stream, communicator, routes: [to, from], .. } = self;
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
        self.wait(current, goes_on)?;
        Ok(self.routes[1].numbers(numbers)?)
    }

    /// Queues what has come; gives the first expert that each sender wants and that is not here.
    fn compute(&mut self, incoming: &Incoming, numbers: &[i32]) -> Result<Vec<Option<u32>>, Failure> {
        let (hidden, dtype) = (self.hidden, self.rows);
        let (layers, missing) = incoming.work(numbers, |layer, expert| self.experts.holds(layer, expert))?;
        self.made.room(&mut self.work, dtype, incoming.routes() * hidden)?;
        if !layers.is_empty() {
            let backend = self.work.open();
            self.come.unpack(backend, incoming.rows() * hidden)?;
            let (Some(x), Some(y)) = (&self.come.floats, &mut self.made.floats) else { return Ok(missing) };
            for (layer, routes) in &layers {
                self.experts.compute_on_device(*layer, x, routes, y)?;
            }
            self.made.pack(backend, incoming.routes() * hidden)?;
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
        let asked: u64 = outgoing.route_counts.iter().sum();
        let count = asked as usize * hidden;
        let send = self.made.room(&mut self.work, dtype, incoming.routes() * hidden)?;
        let receive = self.back.room(&mut self.work, dtype, count)?;
        self.work.finish(self.limit)?;
        let current = &self.context.bind()?;
        let Self { stream, communicator, missing: [to, from], .. } = self;
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
        self.wait(current, goes_on)?;
        let heard = self.missing[1].numbers(lacks.len())?;
        if ask.is_none() {
            return Ok(None);
        }
        let y = self.read(current, &receive, count)?;
        let missing = heard.iter().map(|expert| u32::try_from(*expert).ok()).collect();
        Ok(Some(RoundAnswer { y, missing }))
    }

    fn read(&mut self, current: &Current, from: &Region, count: usize) -> Result<Vec<f32>> {
        let Self { stream, staging, limit, .. } = self;
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

    /// Waits for the stream as long as it makes sense.
    fn wait(&self, current: &Current, goes_on: &dyn Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            match self.stream.synchronize(current, SLICE) {
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
            let abort = || self.stream.abort(&self.context.bind()?);
            if let Err(error) = abort() {
                self.work.backend.note(&error);
            }
            match failure {
                Failure::Device(error) => told(&self.work.backend, &error),
                Failure::Other(error) => error,
            }
        })
    }
}

impl Work {
    /// The backend, about to be given something to do.
    fn open(&mut self) -> &AscendBackend {
        self.is_open = true;
        &self.backend
    }

    /// Waits until what it was given is done: a stream of another context cannot wait for it. What the model has queued since
    /// is not waited for.
    fn finish(&mut self, limit: Duration) -> Result<()> {
        if std::mem::take(&mut self.is_open) {
            self.backend.fence()?.wait(limit)?;
        }
        Ok(())
    }

    /// Makes a buffer hold at least `count` numbers.
    fn room(&mut self, buffer: &mut Option<AscendBuffer>, count: usize) -> Result<(), BackendError> {
        if buffer.as_ref().is_none_or(|buffer| buffer.len() < count) {
            *buffer = None;
            *buffer = Some(self.open().alloc(count.max(64).next_power_of_two())?);
        }
        Ok(())
    }
}

impl Channel {
    /// Room for `count` numbers; gives the region that travels.
    fn room(&mut self, work: &mut Work, dtype: DataType, count: usize) -> Result<Region, Failure> {
        work.room(&mut self.floats, count)?;
        let bytes = count * dtype.bytes();
        if dtype != DataType::F32 && self.packed.as_ref().is_none_or(|packed| packed.len() < bytes) {
            self.packed = None;
            self.packed = Some(work.open().zeros(bytes.max(64).next_power_of_two())?);
        }
        let region = self.packed.as_ref().or(self.floats.as_ref().map(AscendBuffer::region));
        Ok(region.ok_or(Error::StreamAborted)?.part(0..bytes)?)
    }

    /// Queues making what travels of what is computed with.
    fn pack(&self, backend: &AscendBackend, count: usize) -> Result<(), Failure> {
        match (&self.floats, &self.packed) {
            (Some(floats), Some(packed)) => Ok(backend.pack(floats, count, packed)?),
            _ => Ok(()),
        }
    }

    /// The reverse.
    fn unpack(&self, backend: &AscendBackend, count: usize) -> Result<(), Failure> {
        match (&self.floats, &self.packed) {
            (Some(floats), Some(packed)) => Ok(backend.unpack(packed, floats, count)?),
            _ => Ok(()),
        }
    }
}

//! The collectives, each as the bytes that go between the ranks and what becomes of them.

use std::ops::Range;
use std::sync::Arc;

use crate::codes as rt;
use crate::failure::{Failure, Outcome, fail};
use crate::hccl::codes;
use crate::hccl::comm::{Comm, Fault};
use crate::hccl::element::{Element, Reduce};
use crate::hccl::exchange::{COLLECTIVE, Call, Leg, Op};
use crate::heap::device_of;
use crate::lock;
use crate::stream::{Running, Stream, Task};

/// Bytes of device memory.
#[derive(Debug, Clone, Copy)]
struct Span {
    address: u64,
    len: u64,
}

fn bytes(count: u64, element: Element) -> Outcome<u64> {
    match count.checked_mul(element.size()).filter(|bytes| i64::try_from(*bytes).is_ok()) {
        Some(bytes) => Ok(bytes),
        None => fail(codes::PARA, format!("{count} elements")),
    }
}

impl Span {
    /// The memory at an address, which must be of the communicator's device and in one allocation.
    fn new(comm: &Comm, address: u64, len: u64, what: &str) -> Outcome<Self> {
        if len > 0 && address == 0 {
            return fail(codes::PTR, format!("{what} is null"));
        }
        if len > 0 && device_of(address) != Some(comm.device.id) {
            let text = format!("{what} {address:#x} is not memory of device {}", comm.device.id);
            return fail(codes::PARA, text);
        }
        if len > 0 {
            let heap = lock(&comm.device.heap);
            heap.bytes(address, len).map_err(|failure| Failure {
                code: codes::PARA,
                text: format!("{what}: {}", failure.text),
            })?;
        }
        Ok(Self { address, len })
    }
}

fn aligned(address: u64, element: Element, what: &str) -> Outcome {
    if address.is_multiple_of(element.size()) {
        return Ok(());
    }
    fail(codes::PARA, format!("{what} {address:#x} is not aligned for {element:?}"))
}

// what was good at the call and is not when it runs
fn on_device(failure: Failure) -> Failure {
    match failure.code {
        rt::RT_PARAM_INVALID => Failure { code: rt::RT_SYS_DMA, ..failure },
        _ => failure,
    }
}

/// What becomes of the bytes that came.
#[derive(Debug)]
enum Finish {
    /// They go to these addresses, one for each leg; and this part of the own data to that one.
    Place(Vec<u64>, Option<(Range<usize>, u64)>),
    /// They are reduced, with this part of the own data, and go to that address.
    Reduce(Reduce, Element, Range<usize>, u64),
}

/// A checked collective.
#[derive(Debug)]
pub struct Plan {
    call: Call,
    data: Span,
    legs: Vec<Leg>,
    finish: Finish,
}

fn call(op: Op, element: Element, count: u64) -> Call {
    Call { op, element: element as i32, reduce: -1, root: 0, count }
}

fn legs(comm: &Comm, leg: impl Fn(usize) -> (Range<usize>, u64)) -> Vec<Leg> {
    let peers = (0..comm.size()).filter(|peer| *peer != comm.rank);
    peers
        .map(|peer| {
            let (gives, expects) = leg(peer);
            Leg { peer, channel: COLLECTIVE, gives, expects: Some(expects) }
        })
        .collect()
}

fn part(index: usize, len: u64) -> Range<usize> {
    index * len as usize..(index + 1) * len as usize
}

/// A place of a peer's data in a buffer, in elements.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Elements.
    pub count: u64,
    /// The first.
    pub first: u64,
}

impl Plan {
    /// `HcclAllReduce`.
    pub fn all_reduce(comm: &Comm, send: u64, recv: u64, count: u64, dtype: i32, op: i32) -> Outcome<Self> {
        let element = Element::reduced(dtype, comm.machine.chip)?;
        let reduce = Reduce::of(op, element)?;
        let len = bytes(count, element)?;
        let data = Span::new(comm, send, len, "sendBuf")?;
        let to = Span::new(comm, recv, len, "recvBuf")?.address;
        aligned(send, element, "sendBuf")?;
        aligned(recv, element, "recvBuf")?;
        let call = Call { reduce: op, ..call(Op::AllReduce, element, count) };
        let legs = legs(comm, |_| (part(0, len), len));
        Ok(Self { call, data, legs, finish: Finish::Reduce(reduce, element, part(0, len), to) })
    }

    /// `HcclReduceScatter`.
    pub fn reduce_scatter(
        comm: &Comm,
        send: u64,
        recv: u64,
        count: u64,
        dtype: i32,
        op: i32,
    ) -> Outcome<Self> {
        let element = Element::reduced(dtype, comm.machine.chip)?;
        let reduce = Reduce::of(op, element)?;
        let len = bytes(count, element)?;
        let whole = bytes(count.saturating_mul(comm.size() as u64), element)?;
        let data = Span::new(comm, send, whole, "sendBuf")?;
        let to = Span::new(comm, recv, len, "recvBuf")?.address;
        aligned(send, element, "sendBuf")?;
        aligned(recv, element, "recvBuf")?;
        let call = Call { reduce: op, ..call(Op::ReduceScatter, element, count) };
        let legs = legs(comm, |peer| (part(peer, len), len));
        Ok(Self { call, data, legs, finish: Finish::Reduce(reduce, element, part(comm.rank, len), to) })
    }

    /// `HcclAllGather`.
    pub fn all_gather(comm: &Comm, send: u64, recv: u64, count: u64, dtype: i32) -> Outcome<Self> {
        let element = Element::moved(dtype, comm.machine.chip)?;
        let len = bytes(count, element)?;
        let whole = bytes(count.saturating_mul(comm.size() as u64), element)?;
        let data = Span::new(comm, send, len, "sendBuf")?;
        let to = Span::new(comm, recv, whole, "recvBuf")?.address;
        let legs = legs(comm, |_| (part(0, len), len));
        let places = legs.iter().map(|leg| to + leg.peer as u64 * len).collect();
        let own = Some((part(0, len), to + comm.rank as u64 * len));
        Ok(Self { call: call(Op::AllGather, element, count), data, legs, finish: Finish::Place(places, own) })
    }

    /// `HcclBroadcast`.
    pub fn broadcast(comm: &Comm, buffer: u64, count: u64, dtype: i32, root: u32) -> Outcome<Self> {
        let element = Element::moved(dtype, comm.machine.chip)?;
        if root as usize >= comm.size() {
            return fail(codes::PARA, format!("root {root} of {} ranks", comm.size()));
        }
        let len = bytes(count, element)?;
        let span = Span::new(comm, buffer, len, "buf")?;
        let is_root = comm.rank == root as usize;
        let legs = legs(comm, |peer| {
            (part(0, if is_root { len } else { 0 }), if peer == root as usize { len } else { 0 })
        });
        let places = vec![buffer; legs.len()];
        let call = Call { root, ..call(Op::Broadcast, element, count) };
        let data = if is_root { span } else { Span { address: 0, len: 0 } };
        Ok(Self { call, data, legs, finish: Finish::Place(places, None) })
    }

    /// `HcclSend`, or `HcclRecv`.
    pub fn pair(comm: &Comm, buffer: u64, count: u64, dtype: i32, peer: u32, sends: bool) -> Outcome<Self> {
        let element = Element::moved(dtype, comm.machine.chip)?;
        let peer = peer as usize;
        if peer >= comm.size() || peer == comm.rank {
            return fail(codes::PARA, format!("rank {peer} as the peer of rank {}", comm.rank));
        }
        let len = bytes(count, element)?;
        let span = Span::new(comm, buffer, len, if sends { "sendBuf" } else { "recvBuf" })?;
        let upwards = (comm.rank < peer) == sends;
        let leg = Leg {
            peer,
            channel: if upwards { 1 } else { 2 },
            gives: part(0, if sends { len } else { 0 }),
            expects: Some(if sends { 0 } else { len }),
        };
        let data = if sends { span } else { Span { address: 0, len: 0 } };
        let call = call(Op::SendRecv, element, count);
        Ok(Self { call, data, legs: vec![leg], finish: Finish::Place(vec![buffer], None) })
    }

    /// `HcclBarrier`.
    pub fn barrier(comm: &Comm) -> Self {
        let legs = legs(comm, |_| (0..0, 0));
        let finish = Finish::Place(vec![0; legs.len()], None);
        Self { call: call(Op::Barrier, Element::U8, 0), data: Span { address: 0, len: 0 }, legs, finish }
    }

    /// `HcclAlltoAll`.
    pub fn all_to_all(comm: &Comm, send: u64, recv: u64, count: u64, dtype: i32) -> Outcome<Self> {
        let place = |rank: usize| Place { count, first: (rank as u64).saturating_mul(count) };
        let places: Vec<Place> = (0..comm.size()).map(place).collect();
        let plan = Self::all_to_all_v(comm, send, &places, recv, &places, dtype)?;
        Ok(Self { call: Call { op: Op::AlltoAll, count, ..plan.call }, ..plan })
    }

    /// `HcclAlltoAllV`: where each rank's data is on the side that sends and on the one that receives.
    pub fn all_to_all_v(
        comm: &Comm,
        send: u64,
        sends: &[Place],
        recv: u64,
        recvs: &[Place],
        dtype: i32,
    ) -> Outcome<Self> {
        let element = Element::moved(dtype, comm.machine.chip)?;
        if send == recv && send != 0 {
            return fail(codes::PARA, "sendBuf and recvBuf are the same");
        }
        let range = |place: &Place| -> Outcome<Range<u64>> {
            let first = bytes(place.first, element)?;
            Ok(first..bytes(place.first.saturating_add(place.count), element)?)
        };
        // an empty part has no place
        let whole = |places: &[Place]| -> Outcome<(Vec<Range<u64>>, u64)> {
            let ranges = places.iter().map(range).collect::<Outcome<Vec<_>>>()?;
            let end = ranges.iter().filter(|range| !range.is_empty()).map(|range| range.end).max();
            Ok((ranges, end.unwrap_or(0)))
        };
        let ((gives, reach), (takes, room)) = (whole(sends)?, whole(recvs)?);
        let data = Span::new(comm, send, reach, "sendBuf")?;
        Span::new(comm, recv, room, "recvBuf")?;
        let given = |peer: usize| gives[peer].start as usize..gives[peer].end as usize;
        let taken = |peer: usize| takes[peer].end - takes[peer].start;
        if taken(comm.rank) != given(comm.rank).len() as u64 {
            return fail(codes::PARA, "a rank gives itself another number than it takes");
        }
        let legs = legs(comm, |peer| (given(peer), taken(peer)));
        let places = legs.iter().map(|leg| recv + takes[leg.peer].start).collect();
        let own = (taken(comm.rank) > 0).then(|| (given(comm.rank), recv + takes[comm.rank].start));
        Ok(Self { call: call(Op::AlltoAllV, element, 0), data, legs, finish: Finish::Place(places, own) })
    }

    /// Puts the collective on a stream.
    pub fn launch(self, comm: &Arc<Comm>, stream: &Stream) -> Outcome {
        let plan = Arc::new(self);
        let (comm, broken) = (comm.clone(), comm.clone());
        let mut task = Task::new(move |running| comm.during(running, || plan.run(&comm, running)));
        // one that never ran, or failed before it began: the other ranks can't go on without it
        task.dropped = Some(Arc::new(move |failure: &Failure| broken.give_up(failure.clone(), None)));
        codes::runtime(stream.submit(task))?;
        Ok(())
    }

    fn run(&self, comm: &Comm, running: &Running<'_>) -> Result<(), Fault> {
        let data = match self.data.len {
            0 => Vec::new(),
            len => {
                let heap = lock(&comm.device.heap);
                heap.bytes(self.data.address, len).map(<[u8]>::to_vec).map_err(on_device)?
            }
        };
        let came = comm.exchange(running, self.call, &data, &self.legs)?;
        let mut heap = lock(&comm.device.heap);
        let mut write = |address: u64, bytes: &[u8]| -> Outcome {
            if !bytes.is_empty() {
                let room = heap.bytes_mut(address, bytes.len() as u64).map_err(on_device)?;
                room.copy_from_slice(bytes);
            }
            Ok(())
        };
        match &self.finish {
            Finish::Place(places, own) => {
                if let Some((part, address)) = own {
                    write(*address, &data[part.clone()])?;
                }
                came.iter().zip(places).try_for_each(|(bytes, address)| write(*address, bytes))?;
            }
            Finish::Reduce(reduce, element, own, address) => {
                let mut ranks: Vec<&[u8]> = came.iter().map(Vec::as_slice).collect();
                ranks.insert(comm.rank, &data[own.clone()]);
                write(*address, &reduce.apply(*element, &ranks))?;
            }
        }
        Ok(())
    }
}

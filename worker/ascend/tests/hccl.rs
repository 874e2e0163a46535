//! Communicators against the simulator: what collectives give, a peer that is lost, and every call failing once.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::sync::Barrier;

use belay_ascend::{
    Broken, Communicator, CommunicatorOptions, Current, DataType, DeviceBuffer, Error, Kind, Pages, RootInfo,
    Staging, Stream,
};
use common::{LIMIT, Rig, Sim, bytes_of, floats_of, library, some_values};

const RANKS: u32 = 4;

/// A rank at work: its thread is bound to its device.
struct Rank<'a> {
    current: &'a Current,
    stream: Stream,
    staging: Staging,
    communicator: Communicator,
}

impl Rank<'_> {
    fn put(&mut self, values: &[f32]) -> Result<DeviceBuffer, Error> {
        let buffer = DeviceBuffer::new(self.current, 4 * values.len(), Pages::default())?;
        self.staging.write(self.current, &self.stream, &bytes_of(values), buffer.region(), LIMIT)?;
        Ok(buffer)
    }

    fn room(&self, count: usize) -> Result<DeviceBuffer, Error> {
        DeviceBuffer::new(self.current, 4 * count, Pages::default())
    }

    fn get(&mut self, buffer: &DeviceBuffer) -> Result<Vec<f32>, Error> {
        let mut bytes = vec![0; buffer.region().len()];
        self.staging.read(self.current, &self.stream, buffer.region(), &mut bytes, LIMIT)?;
        Ok(floats_of(&bytes))
    }
}

/// Runs `work` on every one of `devices`, which are the ranks of a communicator.
fn on_ranks<R: Send>(
    devices: &[u32],
    work: impl Fn(&mut Rank<'_>) -> Result<R, Error> + Sync,
) -> Vec<Result<R, Error>> {
    let rigs: Vec<Rig> = devices.iter().map(|device| Rig::on(*device)).collect();
    let root = {
        let current = rigs[0].context.bind().unwrap();
        RootInfo::new(&current).map(|root| RootInfo::from_bytes(root.as_bytes()).unwrap())
    };
    let root = match root {
        Ok(root) => root,
        Err(error) => return vec![Err(error)],
    };
    let ranks = rigs.len() as u32;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(&rigs)
            .map(|(rank, rig)| {
                let (root, work) = (&root, &work);
                scope.spawn(move || {
                    let current = rig.context.bind()?;
                    let stream = Stream::new(&current)?;
                    let staging = Staging::new(&current, 4096)?;
                    let options =
                        CommunicatorOptions { buffer_mb: Some(1), ..CommunicatorOptions::default() };
                    let communicator = Communicator::join(&current, root, ranks, rank, &options)?;
                    work(&mut Rank { current: &current, stream, staging, communicator })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Elements that `from` sends to `to`.
fn count(from: u32, to: u32) -> u64 {
    u64::from((3 * from + 5 * to) % 7 * 40)
}

/// Every collective once; gives what rank received.
fn collectives(rank: &mut Rank<'_>) -> Result<(), Error> {
    let me = rank.communicator.rank();
    let all = 0..RANKS;
    let mine = |rank: u32| some_values(64, rank + 1);
    let (send, receive) = (rank.put(&mine(me))?, rank.room(64 * RANKS as usize)?);
    let f32s = DataType::F32;
    rank.communicator.all_gather(rank.current, &rank.stream, f32s, send.region(), receive.region())?;
    assert_eq!(rank.get(&receive)?, all.clone().flat_map(mine).collect::<Vec<_>>());

    let receive = rank.room(64)?;
    rank.communicator.all_to_all(rank.current, &rank.stream, f32s, send.region(), receive.region())?;
    let part = 64 / RANKS as usize;
    let expected = all.clone().flat_map(|from| mine(from)[part * me as usize..][..part].to_vec());
    assert_eq!(rank.get(&receive)?, expected.collect::<Vec<_>>());

    let sent = |from: u32, to: u32| some_values(count(from, to) as usize, 10 * from + to);
    let to: Vec<u64> = all.clone().map(|other| count(me, other)).collect();
    let from: Vec<u64> = all.clone().map(|other| count(other, me)).collect();
    let send = rank.put(&all.clone().flat_map(|other| sent(me, other)).collect::<Vec<_>>())?;
    let receive = rank.room(from.iter().sum::<u64>() as usize)?;
    let (send, parts) = ((send.region(), &to[..]), (receive.region(), &from[..]));
    rank.communicator.all_to_all_v(rank.current, &rank.stream, f32s, send, parts)?;
    assert_eq!(rank.get(&receive)?, all.flat_map(|other| sent(other, me)).collect::<Vec<_>>());
    rank.communicator.check(rank.current)
}

#[test]
fn everybody_gets_what_the_others_send() {
    let sim = Sim::take();
    let before = sim.live_all();
    let done = on_ranks(&[0, 1, 2, 3], |rank| {
        assert_eq!((rank.communicator.ranks(), rank.communicator.name().is_empty()), (RANKS, false));
        collectives(rank)
    });
    assert_eq!(done, [const { Ok(()) }; RANKS as usize]);
    assert_eq!(sim.live_all(), before);
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_queued() {
    let _sim = Sim::take();
    let done = on_ranks(&[0, 1], |rank| {
        let (small, large) = (rank.room(8)?, rank.room(16)?);
        let (current, stream) = (rank.current, &rank.stream);
        let communicator = &rank.communicator;
        let f32s = DataType::F32;
        let refused = communicator.all_gather(current, stream, f32s, large.region(), large.region());
        assert!(matches!(refused, Err(Error::TooSmall { .. })), "{refused:?}");
        let counts = [4, 8];
        let parts = (small.region(), &counts[..]);
        let refused = communicator.all_to_all_v(current, stream, f32s, parts, (large.region(), &counts));
        assert!(matches!(refused, Err(Error::TooSmall { .. })), "{refused:?}");
        let parts = (large.region(), &counts[..1]);
        let refused = communicator.all_to_all_v(current, stream, f32s, parts, (large.region(), &counts));
        assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
        let fp8 = DataType::F8E4m3;
        let refused = communicator.all_gather(current, stream, fp8, small.region(), large.region());
        assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
        communicator.check(current)
    });
    assert_eq!(done, [Ok(()), Ok(())]);
    assert!(matches!(RootInfo::from_bytes(&[0; 12]), Err(Error::Shape { .. })));
}

#[test]
fn a_lost_peer_breaks_the_communicator_and_the_others_make_a_new_one() {
    let sim = Sim::take();
    let before = sim.live_all();
    let ready = Barrier::new(RANKS as usize);
    let done = on_ranks(&[0, 1, 2, 3], |rank| {
        collectives(rank)?;
        ready.wait();
        if rank.communicator.rank() == 3 {
            sim.lose(3, 507_901);
        }
        ready.wait();
        let (send, receive) = (rank.room(8), rank.room(32));
        let (send, receive) = (send?, receive?);
        let (current, stream) = (rank.current, &rank.stream);
        rank.communicator.all_gather(current, stream, DataType::F32, send.region(), receive.region())?;
        stream.synchronize(current, LIMIT)?;
        Ok(())
    });
    for survivor in &done[..3] {
        let error = survivor.as_ref().unwrap_err();
        assert_eq!(error.kind(), Some(Kind::RemoteSuspect), "{error}");
        assert_eq!(error.broken(), Broken::Communicator);
    }
    assert_eq!(done[3].as_ref().unwrap_err().broken(), Broken::Device);
    let again = on_ranks(&[0, 1, 2], |rank| {
        let (send, receive) = (rank.put(&[rank.communicator.rank() as f32])?, rank.room(3)?);
        let (current, stream) = (rank.current, &rank.stream);
        rank.communicator.all_gather(current, stream, DataType::F32, send.region(), receive.region())?;
        rank.get(&receive)
    });
    assert!(again.iter().all(|found| *found == Ok(vec![0.0, 1.0, 2.0])), "{again:?}");
    assert_eq!(sim.live_all(), before);
}

#[test]
fn every_call_fails_once() {
    let sim = Sim::take();
    let symbols: Vec<String> =
        sim.symbols().into_iter().filter(|symbol| symbol.starts_with("Hccl")).collect();
    let used: Vec<&str> = library()
        .report()
        .symbols
        .iter()
        .map(|found| found.symbol)
        .filter(|symbol| symbol.starts_with("Hccl"))
        // asked for only when something went wrong, or where the other one is missing
        .filter(|symbol| !["HcclGetErrorString", "HcclCommInitRootInfo"].contains(symbol))
        .collect();
    let before = sim.live_all();
    for symbol in used {
        assert!(symbols.iter().any(|known| known == symbol), "{symbol} is not simulated");
        // alone, nobody waits for who has failed
        sim.fail(symbol, 1, 9);
        let outcome = on_ranks(&[0], |rank| {
            let (send, receive) = (rank.put(&[1.0, 2.0])?, rank.room(2)?);
            let (current, stream, f32s) = (rank.current, &rank.stream, DataType::F32);
            let communicator = &rank.communicator;
            communicator.all_gather(current, stream, f32s, send.region(), receive.region())?;
            communicator.all_to_all(current, stream, f32s, send.region(), receive.region())?;
            let counts = [2];
            let parts = (send.region(), &counts[..]);
            communicator.all_to_all_v(current, stream, f32s, parts, (receive.region(), &counts))?;
            communicator.check(current)?;
            rank.get(&receive)
        });
        sim.clear();
        let mut after = sim.live_all();
        if symbol == "HcclCommDestroy" {
            assert_eq!(outcome, [Ok(vec![1.0, 2.0])]);
            after[common::KINDS.len() - 1] -= 1;
        } else {
            let error = outcome[0].as_ref().unwrap_err();
            assert!(error.to_string().starts_with(symbol), "{symbol}: {error}");
            assert_eq!(error.broken(), Broken::Communicator, "{error}");
        }
        assert_eq!(after, before, "{symbol}");
    }
}

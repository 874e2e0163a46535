//! Streams, events, memory and copies against the simulator.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use belay_ascend::{
    Arena, Broken, Context, Device, DeviceBuffer, DeviceLimits, Error, Event, EventUse, Generation,
    HostBuffer, Kind, Pages, Runtime, Staging, Stream,
};
use common::{LIMIT, Rig, Sim, library};

/// Long enough for a hang to be noticed, short enough to wait for.
const HANG: Duration = Duration::from_millis(800);

#[test]
fn a_device_says_what_it_is() {
    let _sim = Sim::take();
    let rig = Rig::on(3);
    assert_eq!(rig.runtime.device_count().unwrap(), 8);
    assert_eq!((rig.device.index(), rig.device.soc()), (3, "Ascend910B3"));
    assert_eq!(rig.device.chip().generation, Generation::A2);
    let current = rig.context.bind().unwrap();
    let before = rig.device.memory(&current).unwrap();
    assert_eq!(before.total, 1 << 30);
    let buffer = DeviceBuffer::new(&current, 1 << 20, Pages::default()).unwrap();
    let after = rig.device.memory(&current).unwrap();
    assert!(before.free - after.free >= 1 << 20);
    drop(buffer);
    assert_eq!(rig.device.memory(&current).unwrap(), before);
}

#[test]
fn a_device_that_there_is_not_is_refused() {
    let _sim = Sim::take();
    let runtime = Runtime::start(library()).unwrap();
    let error = Device::open(&runtime, 8, DeviceLimits::default()).unwrap_err();
    let Error::Call(call) = &error else { panic!("{error}") };
    assert_eq!(call.call, "aclrtSetDevice");
    assert_eq!(error.broken(), Broken::Call);
}

#[test]
fn bytes_survive_the_way_there_and_back() {
    let sim = Sim::take();
    let before = sim.live_all();
    let rig = Rig::on(0);
    {
        let current = rig.context.bind().unwrap();
        let stream = Stream::new(&current).unwrap();
        let mut arena = Arena::new(&current, 1 << 16, Pages::default()).unwrap();
        let (first, second) = (arena.take(5000).unwrap(), arena.take(5000).unwrap());
        let mut host = HostBuffer::new(&current, 5000).unwrap();
        host.iter_mut().zip(0u32..).for_each(|(byte, at)| *byte = (at * 7 % 251) as u8);
        let sent = host.to_vec();

        let up = stream.upload(&current, host, &first).unwrap();
        stream.copy(&current, &first, &second).unwrap();
        let down = stream.download(&current, &second, HostBuffer::new(&current, 5000).unwrap()).unwrap();
        down.wait(&current, LIMIT).unwrap();
        assert_eq!(&*down.into_buffer().unwrap(), &sent[..]);
        assert_eq!(&*up.into_buffer().unwrap(), &sent[..], "one wait is enough for both");

        // in pieces, through a staging buffer that does not divide the size
        let mut staging = Staging::new(&current, 768).unwrap();
        let mut back = vec![0; 5000];
        stream.fill(&current, &second, 0).unwrap();
        staging.write(&current, &stream, &sent, &second, LIMIT).unwrap();
        staging.read(&current, &stream, &second, &mut back, LIMIT).unwrap();
        assert_eq!(back, sent);

        stream.fill(&current, &second.part(512..1024).unwrap(), 0xab).unwrap();
        staging.read(&current, &stream, &second, &mut back, LIMIT).unwrap();
        assert!(back[512..1024].iter().all(|byte| *byte == 0xab) && back[1024..] == sent[1024..]);
    }
    assert_eq!(rig.runtime.unreleased(), 0);
    drop(rig);
    assert_eq!(sim.live_all(), before);
}

#[test]
fn sizes_that_do_not_fit_are_refused_before_anything_is_called() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let buffer = DeviceBuffer::new(&current, 1000, Pages::default()).unwrap();
    let calls = sim.calls("aclrtMemcpyAsync");
    let small = || HostBuffer::new(&current, 10).unwrap();
    assert!(matches!(stream.upload(&current, small(), buffer.region()), Err(Error::TooSmall { .. })));
    assert!(matches!(stream.download(&current, buffer.region(), small()), Err(Error::TooSmall { .. })));
    let part = buffer.region().part(0..999).unwrap();
    assert!(matches!(stream.copy(&current, buffer.region(), &part), Err(Error::TooSmall { .. })));
    assert!(matches!(buffer.region().part(10..1001), Err(Error::TooSmall { .. })));
    let mut arena = Arena::new(&current, 1024, Pages::default()).unwrap();
    assert!(matches!(arena.take(4096), Err(Error::TooSmall { needed: 4096, .. })));
    assert_eq!(sim.calls("aclrtMemcpyAsync"), calls);
}

#[test]
fn work_is_queued_and_not_waited_for() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let buffer = DeviceBuffer::new(&current, 4096, Pages::default()).unwrap();
    let host = HostBuffer::new(&current, 4096).unwrap();
    sim.hang(0, HANG);
    let begin = Instant::now();
    let pending = stream.upload(&current, host, buffer.region()).unwrap();
    let event = Event::new(&current, EventUse::Order).unwrap();
    event.record(&current, &stream).unwrap();
    assert!(begin.elapsed() < HANG / 2, "queueing took {:?}", begin.elapsed());
    assert!(!stream.is_idle(&current).unwrap() && !event.is_complete(&current).unwrap());
    let Err(pending) = pending.into_buffer() else { panic!("the buffer is still in use") };
    pending.wait(&current, LIMIT).unwrap();
    assert!(begin.elapsed() >= HANG / 2);
    assert!(event.is_complete(&current).unwrap() && stream.is_idle(&current).unwrap());
    assert_eq!(pending.into_buffer().unwrap().len(), 4096);
}

#[test]
fn every_wait_ends() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let buffer = DeviceBuffer::new(&current, 4096, Pages::default()).unwrap();
    let event = Event::new(&current, EventUse::Order).unwrap();
    sim.hang(0, HANG);
    let begin = Instant::now();
    stream.fill(&current, buffer.region(), 1).unwrap();
    event.record(&current, &stream).unwrap();
    let host = HostBuffer::new(&current, 4096).unwrap();
    let pending = stream.download(&current, buffer.region(), host).unwrap();
    let short = Duration::from_millis(20);
    let errors = [
        stream.synchronize(&current, short).unwrap_err(),
        event.synchronize(&current, short).unwrap_err(),
        pending.wait(&current, short).unwrap_err(),
    ];
    assert!(begin.elapsed() < HANG, "{:?}", begin.elapsed());
    for error in errors {
        assert_eq!((error.kind(), error.broken()), (Some(Kind::Timeout), Broken::Call), "{error}");
    }
    // a wait that ended says nothing about the work, which is done later
    pending.wait(&current, LIMIT).unwrap();
    assert!(pending.into_buffer().unwrap().iter().all(|byte| *byte == 1));
}

#[test]
fn a_staging_buffer_is_usable_again_after_a_wait_that_ended() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let buffer = DeviceBuffer::new(&current, 64, Pages::default()).unwrap();
    let mut staging = Staging::new(&current, 64).unwrap();
    sim.hang(0, HANG);
    let error =
        staging.write(&current, &stream, &[1; 64], buffer.region(), Duration::from_millis(10)).unwrap_err();
    assert_eq!(error.kind(), Some(Kind::Timeout));
    // the first copy may still read its buffer: another one is used
    let mut back = [0; 64];
    staging.write(&current, &stream, &[2; 64], buffer.region(), LIMIT).unwrap();
    staging.read(&current, &stream, buffer.region(), &mut back, LIMIT).unwrap();
    assert_eq!(back, [2; 64]);
}

#[test]
fn memory_outlives_the_work_that_uses_it() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let before = ["device_memory", "host_memory"].map(|kind| sim.live(kind));
    let buffer = DeviceBuffer::new(&current, 1 << 16, Pages::default()).unwrap();
    let host = HostBuffer::new(&current, 1 << 16).unwrap();
    sim.hang(0, HANG);
    let pending = stream.upload(&current, host, buffer.region()).unwrap();
    drop((pending, buffer));
    assert_eq!(["device_memory", "host_memory"].map(|kind| sim.live(kind)), before.map(|count| count + 1));
    stream.synchronize(&current, LIMIT).unwrap();
    assert_eq!(["device_memory", "host_memory"].map(|kind| sim.live(kind)), before);
}

#[test]
fn streams_are_ordered_by_events() {
    let _sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let (writer, reader) = (Stream::new(&current).unwrap(), Stream::new(&current).unwrap());
    let buffer = DeviceBuffer::new(&current, 1 << 20, Pages::default()).unwrap();
    let written = Event::new(&current, EventUse::Order).unwrap();
    for round in 1..20u8 {
        writer.fill(&current, buffer.region(), round).unwrap();
        written.record(&current, &writer).unwrap();
        reader.wait_event(&current, &written).unwrap();
        let host = HostBuffer::new(&current, 1 << 20).unwrap();
        let pending = reader.download(&current, buffer.region(), host).unwrap();
        pending.wait(&current, LIMIT).unwrap();
        assert!(pending.into_buffer().unwrap().iter().all(|byte| *byte == round));
    }
    written.synchronize(&current, LIMIT).unwrap();
}

#[test]
fn events_measure_time() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let [start, end] = [(); 2].map(|()| Event::new(&current, EventUse::Time).unwrap());
    start.record(&current, &stream).unwrap();
    stream.synchronize(&current, LIMIT).unwrap();
    sim.hang(0, HANG);
    let buffer = DeviceBuffer::new(&current, 64, Pages::default()).unwrap();
    stream.fill(&current, buffer.region(), 0).unwrap();
    end.record(&current, &stream).unwrap();
    end.synchronize(&current, LIMIT).unwrap();
    let elapsed = end.elapsed_since(&current, &start).unwrap();
    assert!(elapsed > HANG / 2 && elapsed < LIMIT, "{elapsed:?}");
}

#[test]
fn an_aborted_stream_loses_its_work_and_can_be_used_again() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let buffer = DeviceBuffer::new(&current, 64, Pages::default()).unwrap();
    sim.hang(0, LIMIT);
    let host = HostBuffer::new(&current, 64).unwrap();
    let pending = stream.download(&current, buffer.region(), host).unwrap();
    let begin = Instant::now();
    stream.abort(&current).unwrap();
    assert!(begin.elapsed() < LIMIT / 2);
    assert_eq!(pending.wait(&current, LIMIT), Err(Error::StreamAborted));
    assert!(pending.into_buffer().is_err(), "what it holds is undefined");
    sim.heal(0);
    stream.fill(&current, buffer.region(), 9).unwrap();
    stream.synchronize(&current, LIMIT).unwrap();
}

#[test]
fn a_lost_device_and_a_lost_peer_are_told_apart() {
    let sim = Sim::take();
    for (code, kind, broken) in [
        (507_901, Kind::DeviceLost, Broken::Device),
        (507_010, Kind::DeviceLost, Broken::Device),
        (507_053, Kind::MemoryFault, Broken::Device),
        (507_057, Kind::RemoteSuspect, Broken::Communicator),
    ] {
        let rig = Rig::on(5);
        let current = rig.context.bind().unwrap();
        let stream = Stream::new(&current).unwrap();
        let buffer = DeviceBuffer::new(&current, 64, Pages::default()).unwrap();
        sim.lose(5, code);
        let queued = stream.fill(&current, buffer.region(), 1);
        let error = queued.and_then(|()| stream.synchronize(&current, LIMIT)).unwrap_err();
        assert_eq!((error.kind(), error.broken()), (Some(kind), broken), "{error}");
        assert!(error.to_string().contains(&code.to_string()), "{error}");
        sim.heal(5);
    }
}

#[test]
fn more_memory_than_there_is_gives_a_clear_refusal() {
    let sim = Sim::take();
    let rig = Rig::on(0);
    let current = rig.context.bind().unwrap();
    let live = sim.live("device_memory");
    let error = DeviceBuffer::new(&current, 2 << 30, Pages::default()).unwrap_err();
    let Error::OutOfDeviceMemory { bytes, free, .. } = &error else { panic!("{error}") };
    assert_eq!((*bytes, *free), (2 << 30, 1 << 30));
    assert_eq!((error.kind(), error.broken()), (Some(Kind::OutOfMemory), Broken::Call));
    assert_eq!(sim.live("device_memory"), live);
    // and there is room again afterwards
    DeviceBuffer::new(&current, 1 << 20, Pages::HugeOnly).unwrap();
}

#[test]
fn a_thread_works_with_the_context_it_is_bound_to() {
    let _sim = Sim::take();
    let (first, second) = (Rig::on(0), Rig::on(1));
    let current = first.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    assert!(matches!(second.context.bind(), Err(Error::WrongContext { .. })), "one context at a time");
    let nested = first.context.bind().unwrap();
    drop(nested);
    stream.synchronize(&current, LIMIT).unwrap();
    drop(current);

    let other = second.context.bind().unwrap();
    let buffer = DeviceBuffer::new(&other, 64, Pages::default()).unwrap();
    assert!(matches!(stream.synchronize(&other, LIMIT), Err(Error::WrongContext { .. })));
    assert!(matches!(stream.fill(&other, buffer.region(), 0), Err(Error::WrongContext { .. })));
    assert!(matches!(first.device.memory(&other), Err(Error::WrongContext { .. })));

    // making and releasing things of the other device leaves this thread's context as it is
    let third = Rig::on(2);
    drop(Context::new(&third.device).unwrap());
    drop(third);
    drop(stream);
    drop(first);
    Stream::new(&other).unwrap().fill(&other, buffer.region(), 0).unwrap();
    assert_eq!(second.runtime.unreleased(), 0);
}

#[test]
fn threads_share_a_context_and_things_may_be_dropped_anywhere() {
    let sim = Sim::take();
    let before = sim.live_all();
    {
        let rig = Rig::on(0);
        let work = |seed: u8| {
            let current = rig.context.bind().unwrap();
            let stream = Stream::new(&current).unwrap();
            let buffer = DeviceBuffer::new(&current, 10_000, Pages::default()).unwrap();
            let mut host = HostBuffer::new(&current, 10_000).unwrap();
            for round in 0..20 {
                stream.fill(&current, buffer.region(), seed + round).unwrap();
                let pending = stream.download(&current, buffer.region(), host).unwrap();
                pending.wait(&current, LIMIT).unwrap();
                host = pending.into_buffer().unwrap();
                assert!(host.iter().all(|byte| *byte == seed + round));
            }
            stream.fill(&current, buffer.region(), 0).unwrap();
            (stream, buffer, host)
        };
        let made: Vec<_> = std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || work(thread * 50))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // this thread was never bound
        drop(made);
        assert_eq!(rig.runtime.unreleased(), 0);
    }
    assert_eq!(sim.live_all(), before);
}

#[test]
fn cann_is_initialised_once_and_finalised_with_the_last_user() {
    let sim = Sim::take();
    let calls = || ["aclInit", "aclFinalize"].map(|symbol| sim.calls(symbol));
    let [init, finalize] = calls();
    let library = library();
    let first = Runtime::start(library.clone()).unwrap();
    let second = Runtime::start(library.clone()).unwrap();
    drop(first);
    let third = second.clone();
    drop(second);
    assert_eq!(calls(), [init + 1, finalize]);
    assert!(matches!(Runtime::start(common::open_library()), Err(Error::OtherLibrary)));
    drop(third);
    assert_eq!(calls(), [init + 1, finalize + 1]);

    // somebody else in the process initialised it: fine, and not ours to finalise
    sim.fail("aclInit", 1, 100_002);
    drop(Runtime::start(library).unwrap());
    assert_eq!(calls(), [init + 2, finalize + 1]);
}

#[test]
fn a_thread_that_lost_its_context_gets_it_back_before_the_next_use() {
    let sim = Sim::take();
    let (first, second) = (Rig::on(0), Rig::on(1));
    let stream = Stream::new(&first.context.bind().unwrap()).unwrap();
    let current = second.context.bind().unwrap();
    let buffer = DeviceBuffer::new(&current, 64, Pages::default()).unwrap();
    // the release enters the first context; the way back fails
    sim.fail("aclrtSetCurrentContext", 2, 500_999);
    drop(stream);
    let stream = Stream::new(&current).unwrap();
    stream.fill(&current, buffer.region(), 0).unwrap();
    stream.synchronize(&current, LIMIT).unwrap();
    let before = second.device.memory(&current).unwrap();
    let more = DeviceBuffer::new(&current, 1 << 20, Pages::default()).unwrap();
    assert!(second.device.memory(&current).unwrap().free < before.free, "it is on the second device");
    drop((more, stream, buffer));
    assert_eq!([&first, &second].map(|rig| rig.runtime.unreleased()), [0, 0]);
}

#[test]
fn a_stream_with_work_that_does_not_end_is_aborted_when_it_is_dropped() {
    let sim = Sim::take();
    let before = sim.live_all();
    {
        let rig = Rig::on(0);
        let current = rig.context.bind().unwrap();
        let stream = Stream::new(&current).unwrap();
        let buffer = DeviceBuffer::new(&current, 64, Pages::default()).unwrap();
        sim.hang(0, 4 * LIMIT);
        let host = HostBuffer::new(&current, 64).unwrap();
        let pending = stream.download(&current, buffer.region(), host).unwrap();
        let begin = Instant::now();
        drop((pending, buffer, stream));
        assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
        assert_eq!(rig.runtime.unreleased(), 0);
        sim.heal(0);
    }
    assert_eq!(sim.live_all(), before);
}

#[test]
fn memory_that_a_lost_device_may_still_write_is_left_and_counted() {
    let sim = Sim::take();
    let rig = Rig::on(6);
    let current = rig.context.bind().unwrap();
    let stream = Stream::new(&current).unwrap();
    let buffer = DeviceBuffer::new(&current, 64, Pages::default()).unwrap();
    let live = sim.live("device_memory");
    sim.hang(6, LIMIT);
    stream.fill(&current, buffer.region(), 1).unwrap();
    // neither a wait nor an abort can show that the work is over
    sim.fail("aclrtSynchronizeStreamWithTimeout", 1, 507_901);
    sim.fail("aclrtStreamAbort", 1, 507_901);
    drop((stream, buffer));
    assert_eq!(sim.live("device_memory"), live);
    assert!(rig.runtime.unreleased() > 0);
    sim.heal(6);
}

/// What a child process prints about its device; see the next test.
#[test]
#[ignore = "run by the next test with other settings of the simulator"]
fn device_of_this_process() {
    let runtime = Runtime::start(library()).unwrap();
    match Device::open(&runtime, 0, DeviceLimits::default()) {
        Ok(device) => println!("found {:?} of {}", device.chip().generation, device.soc()),
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
fn the_chip_follows_from_the_name_that_the_runtime_gives() {
    let says = |soc: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "device_of_this_process", "--ignored", "--nocapture"]);
        child.env("BELAY_ASCEND_SIM", format!(r#"{{"soc":"{soc}","devices":1}}"#));
        String::from_utf8(child.output().unwrap().stdout).unwrap()
    };
    for (soc, generation) in [
        ("Ascend910B2", Generation::A2),
        ("Ascend910_9391", Generation::A3),
        ("Ascend950PR_9589", Generation::A950Pr),
        ("Ascend950DT_9591", Generation::A950Dt),
    ] {
        let said = says(soc);
        assert!(said.contains(&format!("found {generation:?} of {soc}\n")), "{said}");
    }
}

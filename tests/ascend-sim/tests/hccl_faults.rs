//! What is refused, what fails, and that nothing hangs.

mod common;

use std::time::{Duration, Instant};

use common::ranks::*;
use common::*;

const MACHINE: &str = r#"{"devices":8,"memory_bytes":4194304}"#;

const PARA: i32 = 1;
const PTR: i32 = 2;
const NOT_SUPPORT: i32 = 5;
const REMOTE: i32 = 21;

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

fn destroy(comm: Handle) {
    // SAFETY: handles are looked up.
    ok(unsafe { HcclCommDestroy(comm) });
}

#[test]
fn arguments_are_checked() {
    let _sim = sim(MACHINE);
    group(2, |rank| {
        let (comm, stream) = (rank.comm, rank.stream);
        let (from, to) = (Memory::new::<f32>(8), Memory::new::<f32>(8));
        let (send, recv) = (from.pointer, to.pointer);
        // SAFETY: handles are looked up, nothing here gets as far as a peer.
        unsafe {
            assert_eq!(HcclAllReduce(NULL, recv, 8, 4, 0, comm, stream), PTR);
            assert_eq!(HcclAllReduce(send, NULL, 8, 4, 0, comm, stream), PTR);
            assert_eq!(HcclAllReduce(send, recv, 8, 4, 0, NULL, stream), PTR);
            assert_eq!(HcclAllReduce(send, recv, 8, 4, 0, comm, NULL), PTR);
            assert_eq!(HcclAllReduce(send, recv, 9, 4, 0, comm, stream), PARA, "one too many");
            assert_eq!(HcclAllReduce(send, recv, u64::MAX, 4, 0, comm, stream), PARA);
            assert_eq!(HcclAllReduce(send.wrapping_byte_add(2), recv, 1, 4, 0, comm, stream), PARA);
            assert_eq!(HcclAllReduce(send, recv, 8, 4, 4, comm, stream), PARA, "no such reduction");
            assert_eq!(HcclAllReduce(send, recv, 8, 255, 0, comm, stream), PARA, "no such type");
            assert_eq!(HcclAllReduce(send, recv, 8, 13, 0, comm, stream), PARA);
            assert_eq!(HcclAllReduce(send, recv, 2, 6, 0, comm, stream), NOT_SUPPORT, "uint64 on A2");
            assert_eq!(HcclAllReduce(send, recv, 8, 11, 1, comm, stream), NOT_SUPPORT, "products of bfp16");
            assert_eq!(HcclAllGather(send, recv, 8, 4, comm, stream), PARA, "no room for two");
            assert_eq!(HcclAllGather(send, recv, 4, 15, comm, stream), NOT_SUPPORT, "FP8 on A2");
            assert_eq!(HcclAllGather(send, recv, 1, 12, comm, stream), NOT_SUPPORT);
            assert_eq!(HcclReduceScatter(send, recv, 5, 4, 0, comm, stream), PARA, "ten are not there");
            assert_eq!(HcclBroadcast(send, 8, 4, 2, comm, stream), PARA, "no such root");
            assert_eq!(HcclSend(send, 8, 4, rank.rank as u32, comm, stream), PARA, "to itself");
            assert_eq!(HcclRecv(recv, 8, 4, 2, comm, stream), PARA);
            assert_eq!(HcclAlltoAll(send, 4, 4, send, 4, 4, comm, stream), PARA, "the same buffer");
            assert_eq!(HcclAlltoAll(send, 4, 4, recv, 3, 4, comm, stream), PARA);
            let n = [4u64, 4].as_ptr().cast();
            let first = [0u64, 5].as_ptr().cast();
            assert_eq!(HcclAlltoAllV(send, n, first, 4, recv, n, n, 4, comm, stream), PARA, "sent beyond");
            assert_eq!(HcclAlltoAllV(send, n, n, 4, recv, n, first, 4, comm, stream), PARA, "taken beyond");
            assert_eq!(HcclAlltoAllV(send, n, n, 4, recv, n, n, 2, comm, stream), PARA, "two types");
            assert_eq!(HcclAlltoAllV(send, n, NULL, 4, recv, n, n, 4, comm, stream), PTR);
            assert_eq!(HcclBarrier(comm, NULL), PTR);
            let host = (&raw const n).cast_mut().cast();
            assert_eq!(HcclBroadcast(host, 1, 0, 0, comm, stream), PARA, "memory of the host");
            assert_eq!(HcclGetRankSize(comm, std::ptr::null_mut()), PTR);
            assert_eq!(HcclGetCommName(comm, std::ptr::null_mut()), PTR);
            assert_eq!(HcclCommDestroy(stream), PARA, "a stream is no communicator");
        }
        assert_eq!(rank.sum(1), Ok(2), "nothing of this has hurt it");
    });
}

#[test]
fn streams_and_memory_of_another_device() {
    let _sim = sim(MACHINE);
    group(2, |rank| {
        let mine = Memory::new::<f32>(8);
        // SAFETY: takes a number.
        ok(unsafe { aclrtSetDevice(7) });
        let (theirs, elsewhere) = (Memory::new::<f32>(8), stream());
        // SAFETY: handles are looked up.
        unsafe {
            assert_eq!(HcclBroadcast(mine.pointer, 8, 4, 0, rank.comm, elsewhere), PARA);
            assert_eq!(HcclBroadcast(mine.pointer, 8, 4, 0, rank.comm, rank.stream), 15, "another context");
            ok(aclrtDestroyStream(elsewhere));
            ok(aclrtSetDevice(rank.rank as i32));
            assert_eq!(HcclBroadcast(theirs.pointer, 8, 4, 0, rank.comm, rank.stream), PARA);
        }
        assert_eq!(rank.sum(1), Ok(2));
    });
}

#[test]
fn what_a_950_has_and_has_not() {
    let _sim = sim(r#"{"devices":2,"soc":"Ascend950DT_9571"}"#);
    group(2, |rank| {
        let (from, to) = (Memory::of(&[1.5f32; 8]), Memory::new::<f32>(8));
        let mut error = 0;
        // SAFETY: handles are looked up.
        unsafe {
            ok(HcclAllGather(from.pointer, to.pointer, 16, 15, rank.comm, rank.stream));
            ok(rank.sync());
            assert_eq!(HcclGetCommAsyncError(rank.comm, &mut error), NOT_SUPPORT);
            assert_eq!(HcclCommSuspend(rank.comm), NOT_SUPPORT);
        }
        assert_eq!(to.values::<f32>(), [1.5; 8]);
    });
}

#[test]
fn work_is_queued_and_memory_must_stay() {
    let _sim = sim(MACHINE);
    let codes = group(2, |rank| {
        let memory = Memory::of(&[1i32; 4]);
        if rank.rank == 1 {
            pause(100);
        }
        // SAFETY: handles are looked up.
        ok(unsafe { HcclBroadcast(memory.pointer, 4, 2, 1, rank.comm, rank.stream) });
        // rank 0's is freed while it waits for the other rank
        if rank.rank == 0 {
            drop(memory);
        }
        rank.sync()
    });
    assert_eq!(codes, [507_013, 0], "the root has given its data before the other found no room");
}

/// One of the ways in which rank 1 does not do what the others do.
fn disagree(way: usize, rank: &Rank, from: Handle, to: Handle) -> i32 {
    let odd = rank.rank == 1;
    let (comm, stream) = (rank.comm, rank.stream);
    let (gives, firsts) = ([2u64; 3], [0u64, 8, 16]);
    let takes = if odd { [3, 2, 2] } else { gives };
    // SAFETY: handles are looked up, the arrays have one number for each rank.
    unsafe {
        match way {
            0 => HcclAllReduce(from, to, if odd { 5 } else { 4 }, 2, 0, comm, stream),
            1 => HcclAllReduce(from, to, 4, 2, i32::from(odd), comm, stream),
            2 => HcclBroadcast(from, u64::from(odd), 2, 0, comm, stream),
            3 if odd => HcclAllGather(from, to, 4, 2, comm, stream),
            3 => HcclAllReduce(from, to, 4, 2, 0, comm, stream),
            _ => HcclAlltoAllV(
                from,
                gives.as_ptr().cast(),
                firsts.as_ptr().cast(),
                2,
                to,
                takes.as_ptr().cast(),
                firsts.as_ptr().cast(),
                2,
                comm,
                stream,
            ),
        }
    }
}

#[test]
fn disagreement_is_noticed() {
    let _sim = sim(MACHINE);
    let start = Instant::now();
    for way in 0..5 {
        let codes = group(3, |rank| {
            let (from, to) = (Memory::new::<i32>(64), Memory::new::<i32>(64));
            ok(disagree(way, rank, from.pointer, to.pointer));
            let code = rank.sync();
            // nothing goes on from there, and nothing hangs
            let again = rank.sum(1).unwrap_err();
            (code, again)
        });
        for (rank, (code, again)) in codes.iter().enumerate() {
            // who is not concerned itself may be through before the others find out
            let through = way == 4 && rank == 2 && *code == 0;
            assert!(*code == 107_020 || through, "{way}: {codes:?}");
            assert_eq!(*again, 107_020, "{way}: {codes:?}");
        }
    }
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_lost_device_is_noticed_and_the_others_go_on() {
    let _sim = sim(MACHINE);
    for round in 0..3 {
        let (first, second) = (root(), root());
        let start = Instant::now();
        devices(4, |rank| {
            let comm = join(4, &first, rank).unwrap();
            let rank = Rank { rank, size: 4, comm, stream: stream() };
            assert_eq!(rank.sum(1), Ok(4));
            if rank.rank == 3 {
                pause(50);
                // in the second round it is lost in the middle of a collective of its own
                let memory = Memory::of(&[1i32]);
                if round == 1 {
                    belaySimHcclDelay(100_000);
                    // SAFETY: handles are looked up.
                    ok(unsafe {
                        HcclAllReduce(memory.pointer, memory.pointer, 1, 2, 0, rank.comm, rank.stream)
                    });
                }
                assert_eq!(belaySimLoseDevice(3, 507_053), 0);
                assert_eq!(rank.sync(), 507_053);
                belaySimHcclDelay(0);
            } else {
                assert_eq!(rank.sum(1), Err(507_057));
                assert_eq!(rank.async_error(), REMOTE);
                assert_eq!(rank.sum(1), Err(507_057), "for good");
                let comm = join(3, &second, rank.rank).unwrap();
                assert_eq!(sum_on(comm, rank.stream, 2), Ok(6));
                destroy(comm);
            }
            destroy(rank.comm);
            // SAFETY: handles are looked up.
            ok(unsafe { aclrtDestroyStreamForce(rank.stream) });
            if rank.rank == 3 {
                assert_eq!(belaySimHealDevice(3), 0);
            }
        });
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(live("comm"), 0);
}

#[test]
fn a_rank_that_does_not_come() {
    let _sim = sim(MACHINE);
    let _variables = Variables::set(&[("HCCL_EXEC_TIMEOUT", "0.3")]);
    let barrier = std::sync::Barrier::new(3);
    let codes = group(3, |rank| {
        let start = Instant::now();
        let code = if rank.rank == 2 { Ok(0) } else { rank.sum(1) };
        assert!(rank.rank == 2 || start.elapsed().as_millis() >= 250, "{:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        barrier.wait();
        assert_eq!(rank.async_error(), 0, "nobody is known to be gone");
        barrier.wait();
        code
    });
    assert_eq!(codes, [Err(107_020), Err(107_020), Ok(0)]);
}

#[test]
fn a_device_that_hangs() {
    let _sim = sim(MACHINE);
    let _variables = Variables::set(&[("HCCL_EXEC_TIMEOUT", "0.2")]);
    let codes = group(2, |rank| {
        assert_eq!(rank.sum(1), Ok(2));
        if rank.rank == 1 {
            belaySimHangDevice(1, 60_000);
            return rank.sum(1);
        }
        pause(50);
        let code = rank.sum(1);
        belaySimHealDevice(1);
        code
    });
    assert_eq!(codes[0], Err(107_020));
    assert!(codes[1].is_err(), "the other one has given up by then");
}

#[test]
fn a_collective_is_aborted() {
    let _sim = sim(MACHINE);
    let info = root();
    group(3, |rank| {
        if rank.rank == 2 {
            pause(200);
            return;
        }
        let memory = Memory::of(&[1i32]);
        // SAFETY: handles are looked up.
        ok(unsafe { HcclAllReduce(memory.pointer, memory.pointer, 1, 2, 0, rank.comm, rank.stream) });
        pause(20);
        // SAFETY: handles are looked up.
        ok(unsafe { aclrtStreamAbort(rank.stream) });
        ok(rank.sync());
        assert_eq!(rank.sum(1), Err(107_023), "the group is broken from there on");
        // the streams are not
        let comm = join(2, &info, rank.rank).unwrap();
        assert_eq!(sum_on(comm, rank.stream, 1), Ok(2));
        destroy(comm);
    });
}

#[test]
fn a_communicator_is_destroyed_while_a_collective_hangs() {
    let _sim = sim(MACHINE);
    let info = root();
    devices(2, |rank| {
        let comm = join(2, &info, rank).unwrap();
        if rank == 1 {
            pause(200);
            return destroy(comm);
        }
        let stream = stream();
        let other = join(1, &root(), 0).unwrap();
        let memory = Memory::of(&[1i32]);
        // SAFETY: handles are looked up.
        let call = || unsafe { HcclAllReduce(memory.pointer, memory.pointer, 1, 2, 0, comm, stream) };
        ok(call());
        ok(call());
        pause(20);
        destroy(comm);
        assert_eq!(sync(stream), 107_022);
        ok(sync(stream));
        assert_eq!(call(), PARA, "it is gone");
        assert_eq!(sum_on(other, stream, 5), Ok(5));
        destroy(other);
    });
    assert_eq!(live("comm"), 0);
}

#[test]
fn peers_of_a_destroyed_communicator_do_not_wait() {
    let _sim = sim(MACHINE);
    let info = root();
    let codes = devices(2, |rank| {
        let comm = join(2, &info, rank).unwrap();
        let stream = stream();
        if rank == 1 {
            pause(50);
            destroy(comm);
            return Ok(0);
        }
        let code = sum_on(comm, stream, 1);
        destroy(comm);
        code
    });
    assert_eq!(codes, [Err(507_057), Ok(0)]);
}

#[test]
fn suspended_and_resumed() {
    let _sim = sim(MACHINE);
    let barrier = std::sync::Barrier::new(3);
    group(3, |rank| {
        for round in 0..3 {
            let memory = Memory::of(&vec![1i32; 100_000]);
            let (pointer, comm) = (memory.pointer, rank.comm);
            // SAFETY: handles are looked up.
            let call = || unsafe { HcclAllReduce(pointer, pointer, 100_000, 2, 0, comm, rank.stream) };
            // one rank does not come, the others are stopped at some point in the middle
            if rank.rank != round {
                ok(call());
            }
            pause(10);
            // SAFETY: handles are looked up.
            unsafe {
                ok(HcclCommSuspend(comm));
                assert_eq!(call(), 22);
                ok(aclrtStreamAbort(rank.stream));
                barrier.wait();
                ok(HcclCommResume(comm));
                barrier.wait();
            }
            assert_eq!(rank.sum(5), Ok(15));
        }
    });
}

#[test]
fn the_end_of_the_simulator_ends_communicators() {
    let _sim = sim(r#"{"devices":2}"#);
    let info = root();
    devices(2, |rank| {
        let comm = join(2, &info, rank).unwrap();
        if rank == 0 {
            // it waits for ever: device 0 is in use by another thread, and so is not reset
            let (memory, stream) = (malloc(4), stream());
            // SAFETY: handles are looked up.
            ok(unsafe { HcclAllReduce(memory, memory, 1, 2, 0, comm, stream) });
        }
    });
    // device 1 was reset, which released its communicator
    assert_eq!(live("comm"), 2, "what was left behind counts");
    // SAFETY: null is allowed.
    unsafe {
        ok(aclFinalize());
        assert_eq!(live("comm"), 2, "as it does at the end");
        ok(aclInit(std::ptr::null()));
    }
    assert_eq!(live("comm"), 0);
}

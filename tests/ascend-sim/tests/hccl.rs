//! Collectives between the devices of one process, against plain loops.

mod common;

use common::ranks::*;
use common::*;
use half::{bf16, f16};

const MACHINE: &str = r#"{"devices":8,"memory_bytes":33554432}"#;

/// The values that a rank brings: small integers, so that sums are exact in all types.
fn brought<E: Sent>(seed: u64, rank: usize, count: usize) -> Vec<E> {
    let mut random = Random::new(seed * 100 + rank as u64 + 1);
    (0..count).map(|_| E::small(random.below(7) as i64 - 3)).collect()
}

fn reduced<E: Sent>(seed: u64, size: usize, count: usize, op: i32, as_int: fn(E) -> i64) -> Vec<E> {
    let all: Vec<Vec<E>> = (0..size).map(|rank| brought(seed, rank, count)).collect();
    (0..count)
        .map(|i| {
            let values = all.iter().map(|values| as_int(values[i]));
            E::small(match op {
                0 => values.sum(),
                1 => values.product(),
                2 => values.fold(i64::MIN, i64::max),
                _ => values.fold(i64::MAX, i64::min),
            })
        })
        .collect()
}

fn all_reduce<E: Sent>(rank: &Rank, seed: u64, count: usize, op: i32, as_int: fn(E) -> i64) {
    let (from, to) = (Memory::of(&brought::<E>(seed, rank.rank, count)), Memory::new::<E>(count));
    // SAFETY: handles are looked up.
    ok(unsafe { HcclAllReduce(from.pointer, to.pointer, count as u64, E::HCCL, op, rank.comm, rank.stream) });
    ok(rank.sync());
    assert_eq!(to.values::<E>(), reduced(seed, rank.size, count, op, as_int), "{op} of {count}");
}

fn reduce_scatter<E: Sent>(rank: &Rank, seed: u64, count: usize, op: i32, as_int: fn(E) -> i64) {
    let all = count * rank.size;
    let (from, to) = (Memory::of(&brought::<E>(seed, rank.rank, all)), Memory::new::<E>(count));
    // SAFETY: handles are looked up.
    ok(unsafe {
        HcclReduceScatter(from.pointer, to.pointer, count as u64, E::HCCL, op, rank.comm, rank.stream)
    });
    ok(rank.sync());
    let expected = reduced(seed, rank.size, all, op, as_int);
    assert_eq!(to.values::<E>(), expected[rank.rank * count..(rank.rank + 1) * count], "{op} of {count}");
}

fn all_gather<E: Sent>(rank: &Rank, seed: u64, count: usize) {
    let from = Memory::of(&brought::<E>(seed, rank.rank, count));
    let to = Memory::new::<E>(count * rank.size);
    // SAFETY: handles are looked up.
    ok(unsafe { HcclAllGather(from.pointer, to.pointer, count as u64, E::HCCL, rank.comm, rank.stream) });
    ok(rank.sync());
    let expected: Vec<E> = (0..rank.size).flat_map(|peer| brought::<E>(seed, peer, count)).collect();
    assert_eq!(to.values::<E>(), expected);
}

fn broadcast<E: Sent>(rank: &Rank, seed: u64, count: usize, root: usize) {
    let buffer = Memory::of(&brought::<E>(seed, rank.rank, count));
    // SAFETY: handles are looked up.
    ok(unsafe { HcclBroadcast(buffer.pointer, count as u64, E::HCCL, root as u32, rank.comm, rank.stream) });
    ok(rank.sync());
    assert_eq!(buffer.values::<E>(), brought::<E>(seed, root, count));
}

fn all_to_all<E: Sent>(rank: &Rank, seed: u64, count: usize) {
    let all = count * rank.size;
    let (from, to) = (Memory::of(&brought::<E>(seed, rank.rank, all)), Memory::new::<E>(all));
    let n = count as u64;
    // SAFETY: handles are looked up.
    ok(unsafe { HcclAlltoAll(from.pointer, n, E::HCCL, to.pointer, n, E::HCCL, rank.comm, rank.stream) });
    ok(rank.sync());
    let part = |peer| brought::<E>(seed, peer, all)[rank.rank * count..][..count].to_vec();
    assert_eq!(to.values::<E>(), (0..rank.size).flat_map(part).collect::<Vec<E>>());
}

/// How many elements each rank gives each other one.
fn matrix(seed: u64, size: usize) -> Vec<Vec<u64>> {
    let mut random = Random::new(seed + 77);
    let mut count = || if random.below(3) == 0 { 0 } else { random.below(500) };
    (0..size).map(|_| (0..size).map(|_| count()).collect()).collect()
}

/// Places with gaps between them, in reverse order.
fn places(counts: &[u64], gap: u64) -> (Vec<u64>, u64) {
    let mut next = 0;
    let mut firsts: Vec<u64> = counts
        .iter()
        .rev()
        .map(|count| {
            next += gap;
            next += count;
            next - count
        })
        .collect();
    firsts.reverse();
    (firsts, next)
}

fn all_to_all_v<E: Sent>(rank: &Rank, seed: u64) {
    let matrix = matrix(seed, rank.size);
    let gives = matrix[rank.rank].clone();
    let takes: Vec<u64> = matrix.iter().map(|row| row[rank.rank]).collect();
    let ((from_places, reach), (to_places, room)) = (places(&gives, 3), places(&takes, 5));
    let from = Memory::of(&brought::<E>(seed, rank.rank, reach as usize));
    let to = Memory::of(&vec![E::small(9); room as usize]);
    let mut arrays = [gives, from_places, takes.clone(), to_places.clone()];
    // SAFETY: handles are looked up, the arrays have one number for each rank.
    ok(unsafe {
        HcclAlltoAllV(
            from.pointer,
            arrays[0].as_ptr().cast(),
            arrays[1].as_ptr().cast(),
            E::HCCL,
            to.pointer,
            arrays[2].as_ptr().cast(),
            arrays[3].as_ptr().cast(),
            E::HCCL,
            rank.comm,
            rank.stream,
        )
    });
    // they are read at the call
    arrays.iter_mut().for_each(|array| array.fill(u64::MAX));
    ok(rank.sync());
    let mut expected = vec![E::small(9); room as usize];
    for (peer, row) in matrix.iter().enumerate() {
        let (firsts, reach) = places(row, 3);
        let given = &brought::<E>(seed, peer, reach as usize)[firsts[rank.rank] as usize..];
        let (first, count) = (to_places[peer] as usize, takes[peer] as usize);
        expected[first..first + count].copy_from_slice(&given[..count]);
    }
    assert_eq!(to.values::<E>(), expected);
}

fn ring<E: Sent>(rank: &Rank, seed: u64, count: usize) {
    let (next, last) = ((rank.rank + 1) % rank.size, (rank.rank + rank.size - 1) % rank.size);
    let (from, to) = (Memory::of(&brought::<E>(seed, rank.rank, count)), Memory::new::<E>(count));
    let n = count as u64;
    // SAFETY: handles are looked up.
    let send = || ok(unsafe { HcclSend(from.pointer, n, E::HCCL, next as u32, rank.comm, rank.stream) });
    // SAFETY: handles are looked up.
    let receive = || ok(unsafe { HcclRecv(to.pointer, n, E::HCCL, last as u32, rank.comm, rank.stream) });
    // a send ends when its receive has begun: the first rank has to be different
    if rank.rank == 0 {
        receive();
        send();
    } else {
        send();
        receive();
    }
    ok(rank.sync());
    assert_eq!(to.values::<E>(), brought::<E>(seed, last, count));
}

fn everything(rank: &Rank, seed: u64) {
    let mut random = Random::new(seed);
    for round in 0..4 {
        let seed = seed * 10 + round;
        let mut count = || if random.below(4) == 0 { 0 } else { random.below(1500) as usize };
        for op in 0..4 {
            all_reduce::<f32>(rank, seed, count(), op, |x| x as i64);
            all_reduce::<i32>(rank, seed, count(), op, i64::from);
            reduce_scatter::<i64>(rank, seed, count(), op, |x| x);
            reduce_scatter::<f16>(rank, seed, count(), op, |x| x.to_f32() as i64);
        }
        all_reduce::<bf16>(rank, seed, count(), 0, |x| x.to_f32() as i64);
        all_reduce::<i8>(rank, seed, count(), 2, i64::from);
        all_gather::<bf16>(rank, seed, count());
        all_gather::<u8>(rank, seed, count());
        broadcast::<f32>(rank, seed, count(), round as usize % rank.size);
        all_to_all::<i64>(rank, seed, count());
        all_to_all_v::<bf16>(rank, seed);
        all_to_all_v::<i8>(rank, seed + 1);
        if rank.size > 1 {
            ring::<f16>(rank, seed, count());
        }
        // SAFETY: handles are looked up.
        ok(unsafe { HcclBarrier(rank.comm, rank.stream) });
        ok(rank.sync());
    }
}

#[test]
fn collectives_do_what_loops_do() {
    let _sim = sim(MACHINE);
    for size in [1, 2, 3, 5, 8] {
        group(size, |rank| everything(rank, size as u64));
    }
    assert_eq!(live("comm"), 0);
}

#[test]
fn collectives_with_delays() {
    let _sim = sim(r#"{"devices":4,"memory_bytes":33554432,"op_delay_us":300}"#);
    assert_eq!(belaySimHcclDelay(500), 0);
    let start = std::time::Instant::now();
    group(4, |rank| (0..20).for_each(|i| assert_eq!(rank.sum(i), Ok(4 * i))));
    assert!(start.elapsed().as_millis() >= 10, "20 collectives of half a millisecond each");
}

#[test]
fn data_larger_than_the_buffer() {
    let _sim = sim(MACHINE);
    let info = root();
    devices(2, |rank| {
        let comm = join_with(2, &info, rank, &config(1, "narrow")).unwrap();
        let rank = Rank { rank, size: 2, comm, stream: stream() };
        assert_eq!(name(comm), "narrow");
        all_to_all::<i32>(&rank, 5, 700_000);
        all_reduce::<f32>(&rank, 6, 600_001, 0, |x| x as i64);
        // SAFETY: handles are looked up.
        unsafe {
            ok(HcclCommDestroy(comm));
            ok(aclrtDestroyStream(rank.stream));
        }
    });
}

#[test]
fn in_place() {
    let _sim = sim(MACHINE);
    group(3, |rank| {
        let memory = Memory::of(&brought::<f32>(1, rank.rank, 100));
        let pointer = memory.pointer;
        // SAFETY: handles are looked up.
        ok(unsafe { HcclAllReduce(pointer, pointer, 100, 4, 0, rank.comm, rank.stream) });
        ok(rank.sync());
        assert_eq!(memory.values::<f32>(), reduced(1, 3, 100, 0, |x: f32| x as i64));
        let mut all = vec![0i32; 30];
        all[rank.rank * 10..][..10].copy_from_slice(&brought(2, rank.rank, 10));
        let memory = Memory::of(&all);
        let own = memory.pointer.wrapping_byte_add(rank.rank * 40);
        // SAFETY: handles are looked up.
        ok(unsafe { HcclAllGather(own, memory.pointer, 10, 2, rank.comm, rank.stream) });
        ok(rank.sync());
        let expected: Vec<i32> = (0..3).flat_map(|rank| brought::<i32>(2, rank, 10)).collect();
        assert_eq!(memory.values::<i32>(), expected);
    });
}

#[test]
fn sums_are_the_same_on_all_ranks_and_in_order() {
    let _sim = sim(MACHINE);
    let values = |rank: usize| noise(333, rank as u64 + 1);
    let sums = group(5, |rank| {
        let (from, to) = (Memory::of(&values(rank.rank)), Memory::new::<f32>(333));
        // SAFETY: handles are looked up.
        ok(unsafe { HcclAllReduce(from.pointer, to.pointer, 333, 4, 0, rank.comm, rank.stream) });
        ok(rank.sync());
        to.values::<f32>()
    });
    let expected: Vec<f32> =
        (0..333).map(|i| (1..5).fold(values(0)[i], |sum, rank| sum + values(rank)[i])).collect();
    sums.iter().for_each(|sum| assert_eq!(sum, &expected));
}

#[test]
fn two_communicators_at_once() {
    let _sim = sim(MACHINE);
    let infos = [root(), root()];
    devices(4, |rank| {
        // the second has the ranks in another order
        let comms = [join(4, &infos[0], rank).unwrap(), join(4, &infos[1], 3 - rank).unwrap()];
        let streams = [stream(), stream()];
        assert_ne!(name(comms[0]), name(comms[1]));
        let ranks = [
            Rank { rank, size: 4, comm: comms[0], stream: streams[0] },
            Rank { rank: 3 - rank, size: 4, comm: comms[1], stream: streams[1] },
        ];
        for seed in 0..20 {
            let memory = ranks.each_ref().map(|rank| {
                let memory = Memory::of(&brought::<i32>(seed, rank.rank, 2000));
                let pointer = memory.pointer;
                // SAFETY: handles are looked up.
                ok(unsafe { HcclAllReduce(pointer, pointer, 2000, 2, 0, rank.comm, rank.stream) });
                memory
            });
            for (rank, memory) in ranks.iter().zip(&memory) {
                ok(rank.sync());
                assert_eq!(memory.values::<i32>(), reduced(seed, 4, 2000, 0, |x: i32| i64::from(x)));
            }
        }
        // SAFETY: handles are looked up.
        unsafe {
            comms.iter().for_each(|comm| ok(HcclCommDestroy(*comm)));
            streams.iter().for_each(|stream| ok(aclrtDestroyStream(*stream)));
        }
    });
}

#[test]
fn pairs_in_both_directions_at_once() {
    let _sim = sim(MACHINE);
    group(2, |rank| {
        let other = 1 - rank.rank as u32;
        let back = stream();
        for seed in 0..10 {
            let from = Memory::of(&brought::<i32>(seed, rank.rank, 5000));
            let to = Memory::new::<i32>(5000);
            // SAFETY: handles are looked up.
            unsafe {
                ok(HcclSend(from.pointer, 5000, 2, other, rank.comm, rank.stream));
                ok(HcclRecv(to.pointer, 5000, 2, other, rank.comm, back));
            }
            ok(rank.sync());
            ok(sync(back));
            assert_eq!(to.values::<i32>(), brought::<i32>(seed, other as usize, 5000));
        }
        // SAFETY: handles are looked up.
        ok(unsafe { aclrtDestroyStream(back) });
    });
}

#[test]
fn nothing_is_left_of_communicators() {
    let _sim = sim(MACHINE);
    let once = || {
        group(6, |rank| {
            assert_eq!(rank.sum(1), Ok(6));
            let (mut size, mut id) = (0, 0);
            // SAFETY: the pointers are writable.
            unsafe {
                ok(HcclGetRankSize(rank.comm, &mut size));
                ok(HcclGetRankId(rank.comm, &mut id));
            }
            assert_eq!((size, id), (6, rank.rank as u32));
        });
    };
    once();
    let before = settled();
    (0..10).for_each(|_| once());
    assert_eq!(live("comm"), 0);
    assert_eq!(settled(), before);
}

/// Files and threads, when those of the meetings that are over have gone.
fn settled() -> (usize, usize) {
    let mut last = resources();
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let now = resources();
        if now == last {
            return now;
        }
        last = now;
    }
    last
}

#[test]
fn one_thread_for_all_devices() {
    let _sim = sim(MACHINE);
    let mut comms = [NULL; 3];
    // SAFETY: the arrays have three places.
    unsafe {
        assert_eq!(HcclCommInitAll(3, [2, 0, 2].as_ptr(), comms.as_mut_ptr()), 1, "a device twice");
        assert_eq!(HcclCommInitAll(0, [2].as_ptr(), comms.as_mut_ptr()), 1);
        assert_eq!(HcclCommInitAll(1, [9].as_ptr(), comms.as_mut_ptr()), 15, "no such device");
        ok(HcclCommInitAll(3, [5, 0, 2].as_ptr(), comms.as_mut_ptr()));
    }
    let memory: Vec<(Memory, Handle)> = [5, 0, 2]
        .into_iter()
        .enumerate()
        .map(|(rank, device)| {
            // SAFETY: takes a number.
            ok(unsafe { aclrtSetDevice(device) });
            let (memory, stream) = (Memory::of(&[1i32 << rank]), stream());
            // SAFETY: handles are looked up.
            ok(unsafe { HcclAllReduce(memory.pointer, memory.pointer, 1, 2, 0, comms[rank], stream) });
            (memory, stream)
        })
        .collect();
    for ((memory, stream), device) in memory.iter().zip([5, 0, 2]) {
        // SAFETY: takes a number.
        ok(unsafe { aclrtSetDevice(device) });
        ok(sync(*stream));
        assert_eq!(memory.values::<i32>(), [7]);
        // SAFETY: handles are looked up.
        ok(unsafe { aclrtDestroyStream(*stream) });
    }
    // SAFETY: handles are looked up.
    comms.iter().for_each(|comm| ok(unsafe { HcclCommDestroy(*comm) }));
    assert_eq!(live("comm"), 0);
}

#[test]
fn a_communicator_is_split() {
    let _sim = sim(MACHINE);
    group(5, |rank| {
        let plain = config(u32::MAX, "");
        let chosen: [u32; 3] = [0, 2, 4];
        let mut parent = rank.comm;
        let mut sub = NULL;
        let mut split = |ranks: *const u32, id, number| {
            // SAFETY: the array has three places, the pointers are writable.
            unsafe {
                HcclCreateSubCommConfig(&mut parent, 3, ranks, id, number, plain.as_ptr().cast(), &mut sub)
            }
        };
        let Some(number) = chosen.iter().position(|chosen| *chosen as usize == rank.rank) else {
            ok(split(std::ptr::null(), 0xFFFF_FFFF, 0));
            assert_eq!(rank.sum(1), Ok(5));
            return;
        };
        assert_eq!(split([0, 4, 2].as_ptr(), 1, number as u32), 1, "not in order");
        assert_eq!(split(chosen.as_ptr(), 1, (number as u32 + 1) % 3), 1, "another rank's number");
        ok(split(chosen.as_ptr(), 1, number as u32));
        assert_eq!(name(sub), format!("{}_sub_1", name(rank.comm)));
        assert_eq!(sum_on(sub, rank.stream, 10), Ok(30));
        // both go on beside each other
        assert_eq!(rank.sum(1), Ok(5));
        assert_eq!(sum_on(sub, rank.stream, 20), Ok(60));
        // SAFETY: handles are looked up.
        ok(unsafe { HcclCommDestroy(sub) });
    });
    assert_eq!(live("comm"), 0);
}

#[test]
fn a_captured_collective_runs_again() {
    let _sim = sim(MACHINE);
    group(3, |rank| {
        let memory = Memory::of(&[1i32]);
        let mut graph = NULL;
        // SAFETY: handles are looked up, the pointer is writable.
        unsafe {
            ok(aclmdlRICaptureBegin(rank.stream, 1));
            ok(HcclAllReduce(memory.pointer, memory.pointer, 1, 2, 0, rank.comm, rank.stream));
            ok(aclmdlRICaptureEnd(rank.stream, &mut graph));
            ok(aclmdlRIExecuteAsync(graph, rank.stream));
            ok(aclmdlRIExecuteAsync(graph, rank.stream));
            ok(rank.sync());
            ok(aclmdlRIDestroy(graph));
        }
        assert_eq!(memory.values::<i32>(), [9]);
    });
}

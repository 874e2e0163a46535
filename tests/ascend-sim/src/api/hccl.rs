//! HCCL: communicators and collectives.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use crate::failure::{Outcome, fail};
use crate::hccl::codes::{self, PTR, runtime};
use crate::hccl::collective::{Place, Plan};
use crate::hccl::comm::{COMMS, Comm};
use crate::hccl::root::ROOT_INFO_BYTES;
use crate::hccl::settings::{NAME_BYTES, Settings};
use crate::hccl::setup;
use crate::out::{array, needed, put, text};
use crate::stream::of_current;
use crate::symbols::export;

/// Enters a communicator and hands out its handle.
///
/// # Safety
/// `comm` is writable.
unsafe fn give(made: Arc<Comm>, comm: *mut *mut c_void) -> Outcome {
    let handle = COMMS.insert(made)?;
    // SAFETY: promised by the caller.
    unsafe { put(comm, handle, PTR, "comm") }
}

/// # Safety
/// `info` is null or readable for the size of a root info.
unsafe fn root_info(info: *const c_void) -> Outcome<Vec<u8>> {
    // SAFETY: promised by the caller.
    unsafe { array(info.cast::<u8>(), ROOT_INFO_BYTES as u64, PTR, "rootInfo") }
}

/// # Safety
/// `path` is null or ends with a zero byte.
unsafe fn by_table(path: *const c_char, rank: u32, settings: Settings) -> Outcome<Arc<Comm>> {
    // SAFETY: promised by the caller.
    match unsafe { text(path) } {
        Ok(Some(path)) => setup::by_table(&path, rank, settings),
        Ok(None) => fail(PTR, "clusterInfo is null"),
        Err(_) => fail(codes::PARA, "clusterInfo is no text"),
    }
}

fn launch(comm: *const c_void, stream: *const c_void, plan: impl FnOnce(&Comm) -> Outcome<Plan>) -> Outcome {
    let comm = COMMS.get(comm)?;
    // not documented to mean the default stream
    needed(stream, PTR, "stream")?;
    let stream = runtime(of_current(stream))?;
    let plan = plan(&comm)?;
    comm.accept(&stream)?;
    plan.launch(&comm, &stream)
}

/// The places of an `HcclAlltoAllV` side.
///
/// # Safety
/// The arrays are null or readable for `n` elements of 64 bits.
unsafe fn places(counts: *const c_void, firsts: *const c_void, n: usize, what: &str) -> Outcome<Vec<Place>> {
    // SAFETY: promised by the caller.
    let counts = unsafe { array(counts.cast::<u64>(), n as u64, PTR, what) }?;
    // SAFETY: promised by the caller.
    let firsts = unsafe { array(firsts.cast::<u64>(), n as u64, PTR, what) }?;
    Ok(counts.into_iter().zip(firsts).map(|(count, first)| Place { count, first }).collect())
}

export! {
    /// Opens a meeting for the ranks of one communicator and writes the 4108 bytes that they come with.
    status fn HcclGetRootInfo(info: *mut c_void) {
        needed(info, PTR, "rootInfo")?;
        let bytes = setup::root_info()?;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(info.cast::<[u8; ROOT_INFO_BYTES]>(), bytes, PTR, "rootInfo") }
    }

    /// Makes a communicator of the ranks that come with the same root info; waits for all.
    status fn HcclCommInitRootInfo(ranks: u32, info: *const c_void, rank: u32, comm: *mut *mut c_void) {
        needed(comm, PTR, "comm")?;
        // SAFETY: readable, by the contract of the function.
        let info = unsafe { root_info(info) }?;
        let made = setup::by_root(ranks, &info, rank, Settings::from_env()?)?;
        // SAFETY: writable, by the contract of the function.
        unsafe { give(made, comm) }
    }

    /// The same with an `HcclCommConfig`.
    status fn HcclCommInitRootInfoConfig(
        ranks: u32, info: *const c_void, rank: u32, config: *const c_void, comm: *mut *mut c_void,
    ) {
        needed(comm, PTR, "comm")?;
        // SAFETY: readable, by the contract of the function.
        let (info, settings) = unsafe { (root_info(info)?, Settings::with_config(config)?) };
        let made = setup::by_root(ranks, &info, rank, settings)?;
        // SAFETY: writable, by the contract of the function.
        unsafe { give(made, comm) }
    }

    /// Makes a communicator of the ranks of a rank table.
    status fn HcclCommInitClusterInfo(path: *const c_char, rank: u32, comm: *mut *mut c_void) {
        needed(comm, PTR, "comm")?;
        // SAFETY: a string or null, by the contract of the function.
        let made = unsafe { by_table(path, rank, Settings::from_env()?) }?;
        // SAFETY: writable, by the contract of the function.
        unsafe { give(made, comm) }
    }

    /// The same with an `HcclCommConfig`.
    status fn HcclCommInitClusterInfoConfig(
        path: *const c_char, rank: u32, config: *const c_void, comm: *mut *mut c_void,
    ) {
        needed(comm, PTR, "comm")?;
        // SAFETY: readable, by the contract of the function.
        let made = unsafe { by_table(path, rank, Settings::with_config(config)?) }?;
        // SAFETY: writable, by the contract of the function.
        unsafe { give(made, comm) }
    }

    /// Makes the communicators of several devices of this process.
    status fn HcclCommInitAll(count: u32, devices: *const i32, comms: *mut *mut c_void) {
        needed(comms, PTR, "comms")?;
        // SAFETY: readable for the count, by the contract of the function.
        let devices = unsafe { array(devices, count.into(), PTR, "devices") }?;
        if devices.is_empty() {
            return fail(codes::PARA, "no devices");
        }
        for (at, comm) in setup::all(&devices)?.into_iter().enumerate() {
            // SAFETY: writable for the count, by the contract of the function.
            unsafe { give(comm, comms.add(at)) }?;
        }
        Ok(())
    }

    /// Splits a communicator. A rank that is not in the new one passes no ranks and 0xFFFFFFFF as number.
    status fn HcclCreateSubCommConfig(
        parent: *mut *mut c_void, count: u32, ranks: *const u32, id: u64, rank: u32, config: *const c_void,
        comm: *mut *mut c_void,
    ) {
        needed(parent, PTR, "comm")?;
        // SAFETY: readable, by the contract of the function.
        let parent = COMMS.get(unsafe { parent.read_unaligned() })?;
        if ranks.is_null() && id == 0xFFFF_FFFF {
            return Ok(());
        }
        needed(comm, PTR, "subComm")?;
        // SAFETY: readable, by the contract of the function.
        let ranks = unsafe { array(ranks, count.into(), PTR, "rankIds") }?;
        // SAFETY: as above.
        let settings = unsafe { Settings::with_config(config) }?;
        let made = setup::split(&parent, &ranks, id, rank, settings)?;
        // SAFETY: writable, by the contract of the function.
        unsafe { give(made, comm) }
    }

    /// Ends a communicator, and the collectives that run on it.
    status fn HcclCommDestroy(comm: *mut c_void) {
        COMMS.remove(comm)?.close();
        Ok(())
    }

    /// The number of ranks.
    status fn HcclGetRankSize(comm: *mut c_void, size: *mut u32) {
        let ranks = COMMS.get(comm)?.size() as u32;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(size, ranks, PTR, "rankSize") }
    }

    /// This rank.
    status fn HcclGetRankId(comm: *mut c_void, rank: *mut u32) {
        let id = COMMS.get(comm)?.rank as u32;
        // SAFETY: writable, by the contract of the function.
        unsafe { put(rank, id, PTR, "rank") }
    }

    /// The name, at most 128 bytes with its zero byte.
    status fn HcclGetCommName(comm: *mut c_void, name: *mut c_char) {
        needed(name, PTR, "commName")?;
        let given = &COMMS.get(comm)?.name;
        let mut bytes = given.as_bytes()[..given.len().min(NAME_BYTES - 1)].to_vec();
        bytes.push(0);
        for (at, byte) in bytes.into_iter().enumerate() {
            // SAFETY: writable for 128 bytes, by the contract of the function.
            unsafe { put(name.add(at), byte as c_char, PTR, "commName") }?;
        }
        Ok(())
    }

    /// 0, or 21 when a peer is gone. Documented as not supported on Ascend 950.
    status fn HcclGetCommAsyncError(comm: *mut c_void, error: *mut i32) {
        let comm = COMMS.get(comm)?;
        needed(error, PTR, "asyncError")?;
        if comm.machine.chip.is_950() {
            return fail(codes::NOT_SUPPORT, "not supported on Ascend 950");
        }
        // SAFETY: writable, by the contract of the function.
        unsafe { put(error, comm.async_error(), PTR, "asyncError") }
    }

    /// Refuses new collectives and ends those that run. Documented as not supported on Ascend 950.
    status fn HcclCommSuspend(comm: *mut c_void) {
        let comm = COMMS.get(comm)?;
        if comm.machine.chip.is_950() {
            return fail(codes::NOT_SUPPORT, "not supported on Ascend 950");
        }
        comm.suspend();
        Ok(())
    }

    /// Starts a suspended communicator anew; all its ranks have to.
    status fn HcclCommResume(comm: *mut c_void) { COMMS.get(comm)?.resume() }

    /// What a result means.
    pointer fn HcclGetErrorString(code: i32) -> *const c_char { Ok(codes::text(code).as_ptr()) }

    /// Reduces the elements of all ranks; all get the results.
    status fn HcclAllReduce(
        send: *mut c_void, recv: *mut c_void, count: u64, dtype: i32, op: i32, comm: *mut c_void,
        stream: *mut c_void,
    ) {
        launch(comm, stream, |comm| {
            Plan::all_reduce(comm, send.addr() as u64, recv.addr() as u64, count, dtype, op)
        })
    }

    /// Reduces the elements of all ranks; each gets its part of the results.
    status fn HcclReduceScatter(
        send: *mut c_void, recv: *mut c_void, count: u64, dtype: i32, op: i32, comm: *mut c_void,
        stream: *mut c_void,
    ) {
        launch(comm, stream, |comm| {
            Plan::reduce_scatter(comm, send.addr() as u64, recv.addr() as u64, count, dtype, op)
        })
    }

    /// Puts the elements of all ranks behind each other.
    status fn HcclAllGather(
        send: *mut c_void, recv: *mut c_void, count: u64, dtype: i32, comm: *mut c_void, stream: *mut c_void,
    ) {
        launch(comm, stream, |comm| {
            Plan::all_gather(comm, send.addr() as u64, recv.addr() as u64, count, dtype)
        })
    }

    /// Gives the root's elements to all ranks.
    status fn HcclBroadcast(
        buffer: *mut c_void, count: u64, dtype: i32, root: u32, comm: *mut c_void, stream: *mut c_void,
    ) {
        launch(comm, stream, |comm| Plan::broadcast(comm, buffer.addr() as u64, count, dtype, root))
    }

    /// Gives elements to one rank, which takes them with `HcclRecv`.
    status fn HcclSend(
        buffer: *mut c_void, count: u64, dtype: i32, peer: u32, comm: *mut c_void, stream: *mut c_void,
    ) {
        launch(comm, stream, |comm| Plan::pair(comm, buffer.addr() as u64, count, dtype, peer, true))
    }

    /// Takes the elements of one rank's `HcclSend`.
    status fn HcclRecv(
        buffer: *mut c_void, count: u64, dtype: i32, peer: u32, comm: *mut c_void, stream: *mut c_void,
    ) {
        launch(comm, stream, |comm| Plan::pair(comm, buffer.addr() as u64, count, dtype, peer, false))
    }

    /// Waits for all ranks.
    status fn HcclBarrier(comm: *mut c_void, stream: *mut c_void) {
        launch(comm, stream, |comm| Ok(Plan::barrier(comm)))
    }

    /// Gives each rank an equal part.
    status fn HcclAlltoAll(
        send: *const c_void, send_count: u64, send_type: i32, recv: *const c_void, recv_count: u64,
        recv_type: i32, comm: *mut c_void, stream: *mut c_void,
    ) {
        if (send_count, send_type) != (recv_count, recv_type) {
            return fail(codes::PARA, "what is sent and received differ");
        }
        launch(comm, stream, |comm| {
            Plan::all_to_all(comm, send.addr() as u64, recv.addr() as u64, send_count, send_type)
        })
    }

    /// Gives each rank a part of its own size. Counts and places are host arrays of 64 bits, in elements,
    /// read before the call returns.
    status fn HcclAlltoAllV(
        send: *const c_void, send_counts: *const c_void, send_firsts: *const c_void, send_type: i32,
        recv: *const c_void, recv_counts: *const c_void, recv_firsts: *const c_void, recv_type: i32,
        comm: *mut c_void, stream: *mut c_void,
    ) {
        // documented for HcclAlltoAll only; taken to hold here too
        if send_type != recv_type {
            return fail(codes::PARA, "the types of what is sent and received differ");
        }
        launch(comm, stream, |comm| {
            // SAFETY: readable for the number of ranks, by the contract of the function.
            let sends = unsafe { places(send_counts, send_firsts, comm.size(), "sendCounts or sdispls") }?;
            // SAFETY: as above.
            let recvs = unsafe { places(recv_counts, recv_firsts, comm.size(), "recvCounts or rdispls") }?;
            Plan::all_to_all_v(comm, send.addr() as u64, &sends, recv.addr() as u64, &recvs, send_type)
        })
    }
}

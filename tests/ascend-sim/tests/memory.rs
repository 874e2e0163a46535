//! Memory of device and host, copies and fills.

mod common;

use common::*;

const SLOW: &str = r#"{"devices":2,"memory_bytes":4096,"op_delay_us":200000}"#;
const SMALL: &str = r#"{"devices":2,"memory_bytes":4096}"#;

fn pinned(size: usize) -> *mut u8 {
    let mut pointer = NULL;
    // SAFETY: the pointer is writable.
    ok(unsafe { aclrtMallocHost(&mut pointer, size) });
    pointer.cast()
}

#[test]
fn memory_is_poisoned_bounded_and_freed_once() {
    let _sim = sim(SMALL);
    let memory = malloc(10);
    assert_eq!(memory.addr() % 64, 0);
    let bytes = download(memory, 10);
    assert_eq!(bytes[..4], belay_ascend_sim::heap::POISON);
    assert!(f32::from_le_bytes(bytes[..4].try_into().unwrap()).is_nan());
    let mut host = [0u8; 16];
    // SAFETY: host is valid for its 16 bytes, device addresses are looked up.
    unsafe {
        let to = host.as_mut_ptr().cast();
        assert_eq!(aclrtMemcpy(to, 16, memory, 11, D2H), 107_000, "one byte too far");
        assert_eq!(aclrtMemcpy(memory, 8, to, 9, H2D), 107_000, "more than destMax");
        assert_eq!(aclrtMemcpy(memory, 10, to, 10, D2H), 107_016, "the kind is wrong");
        assert_eq!(aclrtMemcpy(memory, 10, to, 10, D2D), 107_016);
        assert_eq!(aclrtMemcpy(to, 16, to, 0, H2H), 0);
        ok(aclrtMemcpy(memory, 10, to, 10, 4));
        assert_eq!(aclrtFree(memory.wrapping_byte_add(1)), 107_000, "not the start");
        assert_eq!(aclrtMemset(memory.wrapping_byte_add(1), 10, 0, 10), 107_000);
        ok(aclrtFree(memory));
        assert_eq!(aclrtFree(memory), 107_000);
        assert!(message().contains("twice"));
        assert_eq!(aclrtMemcpy(to, 16, memory, 1, D2H), 107_000);
        assert!(message().contains("freed"));
        assert_eq!(aclrtFree(to), 107_000, "host memory");
        let mut none = NULL;
        assert_eq!(aclrtMalloc(&mut none, 0, 0), 100_000);
        assert_eq!(aclrtMalloc(std::ptr::null_mut(), 1, 0), 100_000);
        assert_eq!(aclrtMalloc(&mut none, 1, 99), 100_000);
    }
    assert_eq!(live("device_memory"), 0);
}

#[test]
fn one_byte_past_a_block_is_not_the_next_block() {
    let _sim = sim(SMALL);
    let (first, second) = (malloc(64), malloc(64));
    // SAFETY: device addresses are looked up.
    unsafe {
        assert_eq!(aclrtMemset(first.wrapping_byte_add(64), 1, 0, 1), 107_000);
        ok(aclrtMemset(second.wrapping_byte_add(63), 1, 0, 1));
    }
}

#[test]
fn the_device_runs_out_of_memory() {
    let _sim = sim(SMALL);
    let mut pointer = NULL;
    let (mut free, mut total) = (0, 0);
    // SAFETY: the pointers are writable.
    unsafe {
        assert_eq!(aclrtMalloc(&mut pointer, 5000, 0), 207_001);
        // on A2 an allocation takes 32 bytes more than asked for
        let all = malloc(4096 - 32);
        ok(aclrtGetMemInfo(1, &mut free, &mut total));
        assert_eq!((free, total), (0, 4096));
        assert_eq!(aclrtMalloc(&mut pointer, 1, 0), 207_018);
        ok(aclrtFree(all));
        ok(aclrtGetMemInfo(1, &mut free, &mut total));
        assert_eq!(free, 4096);
    }
}

#[test]
fn pinned_memory_is_poisoned_and_freed_once() {
    let _sim = sim(SMALL);
    let memory = pinned(8);
    // SAFETY: 8 bytes were allocated.
    assert!(unsafe { memory.cast::<f32>().read() }.is_nan());
    let device = malloc(16);
    // SAFETY: device addresses and pinned memory are looked up.
    unsafe {
        assert_eq!(aclrtMemcpy(device, 16, memory.cast(), 9, H2D), 107_000, "leaves the pinned block");
        ok(aclrtFreeHost(memory.cast()));
        assert_eq!(aclrtFreeHost(memory.cast()), 107_000);
    }
    assert_eq!(live("host_memory"), 0);
}

#[test]
fn work_on_a_stream_is_done_later() {
    let _sim = sim(SLOW);
    let (device, host, stream) = (malloc(4), pinned(4), stream());
    let mut status = 9;
    // SAFETY: host has 4 bytes and lives until the work is done.
    unsafe {
        ok(aclrtMemsetAsync(device, 4, 7, 4, stream));
        ok(aclrtMemcpyAsync(host.cast(), 4, device, 4, D2H, stream));
        assert_ne!(host.read(), 7, "seen before a synchronisation");
        ok(aclrtStreamQuery(stream, &mut status));
        assert_eq!(status, 1);
        ok(sync(stream));
        assert_eq!(host.read(), 7);
        ok(aclrtStreamQuery(stream, &mut status));
        assert_eq!(status, 0);
        ok(aclrtFreeHost(host.cast()));
    }
}

#[test]
fn a_copy_with_unpinned_memory_returns_when_it_is_done() {
    let _sim = sim(SLOW);
    let (device, stream) = (malloc(4), stream());
    let mut host = [0u8; 4];
    // SAFETY: host has 4 bytes.
    unsafe {
        ok(aclrtMemsetAsync(device, 4, 7, 4, stream));
        ok(aclrtMemcpyAsync(host.as_mut_ptr().cast(), 4, device, 4, D2H, stream));
    }
    assert_eq!(host, [7; 4]);
}

#[test]
fn what_is_freed_too_early_fails_the_stream() {
    let _sim = sim(SLOW);
    let (device, host, stream) = (malloc(4), pinned(4), stream());
    // SAFETY: memory is looked up when the work runs.
    unsafe {
        ok(aclrtMemsetAsync(device, 4, 7, 4, stream));
        ok(aclrtFree(device));
        assert_eq!(sync(stream), 507_013);
        assert!(message().contains("freed"));
        ok(sync(stream));
        let device = malloc(4);
        ok(aclrtMemcpyAsync(host.cast(), 4, device, 4, D2H, stream));
        ok(aclrtFreeHost(host.cast()));
        assert_eq!(sync(stream), 507_013);
    }
}

#[test]
fn devices_reach_each_other_when_allowed() {
    let _sim = sim(SMALL);
    let here = malloc(4);
    let mut can = 9;
    // SAFETY: the pointers are writable, device addresses are looked up.
    unsafe {
        ok(aclrtMemset(here, 4, 9, 4));
        ok(aclrtSetDevice(1));
        let there = malloc(4);
        ok(aclrtDeviceCanAccessPeer(&mut can, 1, 0));
        assert_eq!(can, 1);
        assert_eq!(aclrtMemcpy(there, 4, here, 4, D2D), 107_016, "not enabled");
        ok(aclrtDeviceEnablePeerAccess(0, 0));
        assert_eq!(aclrtMemcpy(there, 4, here, 4, 6), 107_016, "not inside one device");
        ok(aclrtMemcpy(there, 4, here, 4, 7));
        assert_eq!(download(there, 4), [9; 4]);
        assert_eq!(aclrtDeviceEnablePeerAccess(1, 0), 107_000);
    }
}

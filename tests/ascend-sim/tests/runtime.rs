//! Devices, contexts, streams, events, notifies, graphs.

mod common;

use std::time::{Duration, Instant};

use common::*;

const SLOW: &str = r#"{"devices":2,"memory_bytes":4096,"op_delay_us":200000}"#;
const SMALL: &str = r#"{"devices":2,"memory_bytes":4096}"#;

#[test]
fn init_once_and_finalize_once() {
    let _sim = sim(SMALL);
    // SAFETY: null is allowed.
    unsafe {
        assert_eq!(aclInit(std::ptr::null()), 100_002);
        assert_eq!(aclFinalize(), 0);
        assert_eq!(aclrtSetDevice(0), 100_001);
        assert_eq!(aclFinalize(), 100_037);
        assert_eq!(aclInit(std::ptr::null()), 0);
    }
}

#[test]
fn a_bad_configuration_is_refused() {
    let _sim = sim(SMALL);
    // SAFETY: the environment is only touched under the simulator's lock; null is allowed.
    unsafe {
        aclFinalize();
        for config in [r#"{"soc":"Ascend310"}"#, r#"{"devises":1}"#, "{"] {
            std::env::set_var("BELAY_ASCEND_SIM", config);
            assert_eq!(aclInit(std::ptr::null()), 100_000, "{config}");
            assert!(message().contains("BELAY_ASCEND_SIM"));
        }
    }
}

#[test]
fn a_context_is_of_a_thread() {
    let _sim = sim(SMALL);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = NULL;
            // SAFETY: the pointers are writable.
            unsafe {
                assert_eq!(aclrtCreateStream(&mut stream), 107_002);
                assert!(message().contains("no current context"), "the text is of this thread");
                let mut memory = NULL;
                assert_eq!(aclrtMalloc(&mut memory, 8, 0), 107_002);
                ok(aclrtSetDevice(1));
                let mut device = 9;
                ok(aclrtGetDevice(&mut device));
                assert_eq!(device, 1);
            }
        });
    });
    assert_eq!(message(), "", "the other thread's failure is not this thread's");
    let mut device = 9;
    // SAFETY: the pointer is writable.
    ok(unsafe { aclrtGetDevice(&mut device) });
    assert_eq!(device, 0);
    // SAFETY: takes a number.
    assert_eq!(unsafe { aclrtSetDevice(2) }, 107_001);
}

#[test]
fn explicit_contexts_and_their_streams() {
    let _sim = sim(SMALL);
    let (mut first, mut second) = (NULL, NULL);
    let on_default = stream();
    // SAFETY: the pointers are writable, handles are looked up.
    unsafe {
        ok(aclrtGetCurrentContext(&mut first));
        assert_eq!(aclrtDestroyContext(first), 107_000, "the default context is not to be destroyed");
        ok(aclrtCreateContext(&mut second, 0));
        let mut now = NULL;
        ok(aclrtGetCurrentContext(&mut now));
        assert_eq!(now, second, "a new context becomes current");
        assert_eq!(sync(on_default), 107_003, "a stream of another context");
        assert_eq!(live("context"), 2);
        ok(aclrtDestroyContext(second));
        assert_eq!(live("context"), 1);
        assert_eq!(aclrtSynchronizeStream(NULL), 107_002, "the current context is gone");
        assert_eq!(aclrtSetCurrentContext(second), 107_017);
        ok(aclrtSetCurrentContext(first));
        ok(aclrtDestroyStream(on_default));
    }
}

#[test]
fn reset_counts_uses() {
    let _sim = sim(SMALL);
    let memory = malloc(64);
    let _stream = stream();
    // SAFETY: takes numbers; handles are looked up.
    unsafe {
        ok(aclrtSetDevice(0));
        ok(aclrtResetDevice(0));
        ok(aclrtMemset(memory, 64, 0, 64));
        ok(aclrtResetDevice(0));
        assert_eq!(aclrtResetDevice(0), 107_001);
        assert_eq!(aclrtFree(memory), 107_002, "the context is gone");
        ok(aclrtSetDevice(0));
        assert_eq!(aclrtMemset(memory, 64, 0, 64), 107_000, "the memory is gone");
        ok(aclrtSetDevice(0));
        ok(aclrtResetDeviceForce(0));
        assert_eq!(aclrtResetDeviceForce(0), 107_001);
    }
    assert_eq!(live("device_memory"), 1, "a reset does not hide a leak");
    assert_eq!(live("stream"), 1);
}

#[test]
fn waits_time_out() {
    let _sim = sim(SMALL);
    let (device, stream) = (malloc(4), stream());
    let mut event = NULL;
    assert_eq!(belaySimHangDevice(0, 100_000), 0);
    // SAFETY: the pointers are writable, handles are looked up.
    unsafe {
        ok(aclrtCreateEvent(&mut event));
        ok(aclrtMemsetAsync(device, 4, 7, 4, stream));
        ok(aclrtRecordEvent(event, stream));
        let start = Instant::now();
        assert_eq!(aclrtSynchronizeStreamWithTimeout(stream, 30), 507_046);
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert_eq!(aclrtSynchronizeEventWithTimeout(event, 30), 507_047);
        assert_eq!(aclrtSynchronizeDeviceWithTimeout(30), 507_046);
        assert_eq!(aclrtSynchronizeStreamWithTimeout(stream, 0), 107_000);
        assert_eq!(belaySimHealDevice(0), 0);
        ok(aclrtSynchronizeStreamWithTimeout(stream, 10_000));
        ok(aclrtSynchronizeEventWithTimeout(event, 10_000));
        ok(aclrtSynchronizeDeviceWithTimeout(10_000));
        // an op that the device does not end in time
        ok(aclrtSetOpExecuteTimeOut(1));
        belaySimHangDevice(0, 100_000);
        ok(aclrtMemsetAsync(device, 4, 7, 4, stream));
        assert_eq!(aclrtSynchronizeStreamWithTimeout(stream, 10_000), 507_014);
        ok(aclrtDestroyEvent(event));
    }
}

#[test]
fn events_order_streams() {
    let _sim = sim(SLOW);
    let (device, first, second) = (malloc(4), stream(), stream());
    let (mut event, mut untimed, mut status, mut time) = (NULL, NULL, 9, 0.0);
    // SAFETY: the pointers are writable, handles are looked up.
    unsafe {
        ok(aclrtCreateEventWithFlag(&mut event, 9));
        ok(aclrtCreateEventWithFlag(&mut untimed, 1));
        assert_eq!(aclrtCreateEventWithFlag(&mut time as *mut f32 as *mut Handle, 0), 107_000);
        ok(aclrtQueryEventStatus(event, &mut status));
        assert_eq!(status, 1, "an event that was never recorded is complete");
        ok(aclrtMemsetAsync(device, 4, 1, 4, first));
        ok(aclrtRecordEvent(event, first));
        ok(aclrtQueryEventStatus(event, &mut status));
        assert_eq!(status, 0);
        ok(aclrtQueryEvent(event, &mut status));
        assert_eq!(status, 1, "the old query has it the other way round");
        assert_eq!(aclrtEventElapsedTime(&mut time, event, event), 507_006);
        ok(aclrtStreamWaitEvent(second, event));
        ok(aclrtMemsetAsync(device, 4, 2, 4, second));
        ok(sync(second));
        assert_eq!(download(device, 4), [2; 4], "the second stream waited for the first");
        ok(aclrtQueryEventStatus(event, &mut status));
        assert_eq!(status, 1);
        ok(aclrtEventElapsedTime(&mut time, event, event));
        assert_eq!(time, 0.0);
        ok(aclrtRecordEvent(untimed, first));
        ok(aclrtSynchronizeEvent(untimed));
        assert_eq!(aclrtEventElapsedTime(&mut time, untimed, event), 107_006);
        ok(aclrtResetEvent(untimed, first));
        ok(sync(first));
        ok(aclrtDestroyEvent(event));
        ok(aclrtDestroyEvent(untimed));
        assert_eq!(aclrtDestroyEvent(event), 107_017);
        ok(aclrtCreateEvent(&mut event));
        assert_eq!(aclrtResetEvent(event, first), 107_000, "an event of aclrtCreateEvent takes no reset");
        ok(aclrtCreateEventWithFlag(&mut untimed, 8));
        assert_eq!(aclrtStreamWaitEvent(second, untimed), 107_000, "it does not synchronise");
        ok(aclrtDestroyEvent(event));
        ok(aclrtDestroyEvent(untimed));
    }
    assert_eq!(live("event"), 0);
}

#[test]
fn a_stream_that_waits_too_long_for_an_event() {
    let _sim = sim(SMALL);
    let (hung, waiting) = (stream(), stream());
    let (mut event, mut notify) = (NULL, NULL);
    // SAFETY: the pointers are writable, handles are looked up.
    unsafe {
        ok(aclrtCreateEvent(&mut event));
        ok(aclrtCreateNotify(&mut notify, 0));
        ok(aclrtSetOpWaitTimeout(1));
        ok(aclrtWaitAndResetNotify(notify, hung, 0));
        ok(aclrtRecordEvent(event, hung));
        ok(aclrtStreamWaitEvent(waiting, event));
        assert_eq!(aclrtSynchronizeStreamWithTimeout(waiting, 10_000), 107_019);
        ok(aclrtWaitAndResetNotify(notify, waiting, 1));
        assert_eq!(aclrtSynchronizeStreamWithTimeout(waiting, 10_000), 107_019);
        ok(aclrtRecordNotify(notify, waiting));
        ok(sync(hung));
        ok(aclrtDestroyNotify(notify));
        ok(aclrtDestroyEvent(event));
    }
    assert_eq!(live("notify"), 0);
}

#[test]
fn an_abort_drops_the_work() {
    let _sim = sim(SMALL);
    let (device, stream) = (malloc(4), stream());
    let mut event = NULL;
    belaySimHangDevice(0, 100_000);
    // SAFETY: the pointers are writable, handles are looked up.
    unsafe {
        ok(aclrtCreateEvent(&mut event));
        ok(aclrtMemset(device, 4, 1, 4));
        ok(aclrtMemsetAsync(device, 4, 2, 4, stream));
        ok(aclrtRecordEvent(event, stream));
        std::thread::scope(|scope| {
            let mut context = NULL;
            ok(aclrtGetCurrentContext(&mut context));
            let (context, handle) = (context.addr(), stream.addr());
            let waiter = scope.spawn(move || {
                let place = std::ptr::without_provenance_mut;
                ok(aclrtSetCurrentContext(place(context)));
                aclrtSynchronizeStreamWithTimeout(place(handle), 10_000)
            });
            std::thread::sleep(Duration::from_millis(50));
            ok(aclrtStreamAbort(stream));
            assert_eq!(waiter.join().unwrap(), 107_023, "who waits is told");
        });
        assert_eq!(aclrtSynchronizeEventWithTimeout(event, 10_000), 107_023);
        belaySimHealDevice(0);
        ok(sync(stream));
        assert_eq!(download(device, 4), [1; 4]);
        ok(aclrtMemsetAsync(device, 4, 3, 4, stream));
        ok(sync(stream));
        assert_eq!(download(device, 4), [3; 4], "the stream goes on");
        ok(aclrtDestroyEvent(event));
    }
}

#[test]
fn destroying_a_stream_waits_and_forcing_does_not() {
    let _sim = sim(SLOW);
    let (device, patient, forced) = (malloc(4), stream(), stream());
    // SAFETY: handles are looked up.
    unsafe {
        ok(aclrtMemsetAsync(device, 4, 1, 4, patient));
        ok(aclrtDestroyStream(patient));
        assert_eq!(download(device, 4), [1; 4]);
        assert_eq!(aclrtMemsetAsync(device, 4, 1, 4, patient), 107_017);
        ok(aclrtMemsetAsync(device, 4, 2, 4, forced));
        ok(aclrtDestroyStreamForce(forced));
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(download(device, 4), [1; 4]);
        assert_eq!(aclrtDestroyStream(NULL), 107_000);
    }
    assert_eq!(live("stream"), 0);
}

#[test]
fn a_lost_device_fails_everything_until_it_heals() {
    let _sim = sim(SMALL);
    let (device, stream) = (malloc(4), stream());
    let (mut status, mut memory) = (9, NULL);
    assert_eq!(belaySimLoseDevice(0, 507_057), 0);
    assert_eq!(belaySimLoseDevice(7, 507_057), 107_001);
    // SAFETY: the pointers are writable, handles are looked up.
    unsafe {
        ok(aclrtMemsetAsync(device, 4, 1, 4, stream));
        assert_eq!(sync(stream), 507_057);
        assert_eq!(aclrtMemset(device, 4, 1, 4), 507_057);
        assert_eq!(aclrtMalloc(&mut memory, 4, 0), 507_057);
        assert_eq!(aclrtSynchronizeDevice(), 507_057);
        ok(aclrtQueryDeviceStatus(0, &mut status));
        assert_eq!(status, 1);
        belaySimHealDevice(0);
        ok(aclrtQueryDeviceStatus(0, &mut status));
        assert_eq!(status, 0);
        // what failed while it was lost is told once
        let _ = sync(stream);
        ok(sync(stream));
        ok(aclrtMemset(device, 4, 1, 4));
        ok(aclrtFree(device));
        ok(aclrtDestroyStream(stream));
    }
}

#[test]
fn a_failure_can_stop_the_streams_of_a_context() {
    let _sim = sim(SLOW);
    let (bad, good, stream) = (malloc(4), malloc(4), stream());
    // SAFETY: handles are looked up.
    unsafe {
        assert_eq!(aclrtSetStreamFailureMode(NULL, 1), 107_000);
        for (mode, expected) in [(0, 1), (1, 2)] {
            ok(aclrtMemset(good, 4, 2, 4));
            ok(aclrtSetStreamFailureMode(stream, mode));
            let bad = if mode == 0 { bad } else { malloc(4) };
            ok(aclrtMemsetAsync(bad, 4, 1, 4, stream));
            ok(aclrtMemsetAsync(good, 4, 1, 4, stream));
            ok(aclrtFree(bad));
            assert_eq!(sync(stream), 507_013);
            assert_eq!(download(good, 4), [expected; 4], "mode {mode}");
        }
        assert_eq!(sync(stream), 507_013, "stopped until an abort");
        ok(aclrtStreamAbort(stream));
        ok(sync(stream));
    }
}

#[test]
fn a_captured_graph_runs_again() {
    let _sim = sim(SMALL);
    let (device, stream, other) = (malloc(4), stream(), stream());
    let mut graph = NULL;
    // SAFETY: the pointers are writable, handles are looked up.
    unsafe {
        assert_eq!(aclmdlRICaptureBegin(NULL, 2), 107_031);
        assert_eq!(aclmdlRICaptureEnd(stream, &mut graph), 107_029);
        ok(aclmdlRICaptureBegin(stream, 1));
        assert_eq!(aclmdlRICaptureBegin(stream, 1), 107_027);
        ok(aclrtMemsetAsync(device, 4, 5, 4, stream));
        assert_eq!(sync(other), 107_030, "the mode forbids to wait");
        ok(aclmdlRICaptureEnd(stream, &mut graph));
        ok(aclrtMemset(device, 4, 1, 4));
        ok(sync(stream));
        assert_eq!(download(device, 4), [1; 4], "captured work is not done");
        for _ in 0..2 {
            ok(aclrtMemset(device, 4, 1, 4));
            ok(aclmdlRIExecuteAsync(graph, other));
            ok(sync(other));
            assert_eq!(download(device, 4), [5; 4]);
        }
        ok(aclmdlRIDestroy(graph));
        assert_eq!(aclmdlRIExecuteAsync(graph, other), 107_017);
    }
    assert_eq!(live("graph"), 0);
}

#[test]
fn two_threads_on_two_devices() {
    let _sim = sim(r#"{"devices":2,"op_delay_us":200}"#);
    std::thread::scope(|scope| {
        for device in 0..2 {
            scope.spawn(move || {
                // SAFETY: takes a number.
                ok(unsafe { aclrtSetDevice(device) });
                let (stream, memory) = (stream(), malloc(256));
                for round in 0..40u8 {
                    let value = i32::from(round) * 2 + device;
                    // SAFETY: handles are looked up.
                    ok(unsafe { aclrtMemsetAsync(memory, 256, value, 256, stream) });
                    ok(sync(stream));
                    assert_eq!(download(memory, 256), [value as u8; 256]);
                }
            });
        }
    });
}

#[test]
fn socs_differ() {
    for (soc, arch, cores, superpod) in [
        ("Ascend910B3", 2201, 20, false),
        ("Ascend910B1", 2201, 24, false),
        ("Ascend910_9391", 2201, 20, true),
        ("Ascend950PR_9579", 3510, 28, true),
    ] {
        let _sim = sim(&format!(r#"{{"soc":"{soc}","devices":3}}"#));
        let (mut value, mut count) = (0, 0);
        // SAFETY: the pointers are writable; the name is a string.
        unsafe {
            assert_eq!(std::ffi::CStr::from_ptr(aclrtGetSocName()).to_str().unwrap(), soc);
            ok(aclrtGetDeviceInfo(0, 601, &mut value));
            assert_eq!(value, arch);
            ok(aclrtGetDeviceInfo(0, 102, &mut value));
            assert_eq!(value, cores);
            assert_eq!(aclrtGetDeviceInfo(2, 403, &mut value) == 0, superpod);
            ok(aclrtGetDeviceCount(&mut count));
            assert_eq!(count, 3);
        }
    }
}

#[test]
fn the_last_error_is_kept_until_it_is_taken() {
    let _sim = sim(SMALL);
    // SAFETY: takes numbers.
    unsafe {
        aclrtGetLastError(0);
        assert_eq!(aclrtSetDevice(9), 107_001);
        assert_eq!(aclrtPeekAtLastError(0), 107_001);
        assert_eq!(aclrtGetLastError(0), 107_001);
        assert_eq!(aclrtGetLastError(0), 0);
        assert!(message().contains("no device 9"));
        assert_eq!(message(), "", "told once");
    }
}

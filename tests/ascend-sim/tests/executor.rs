//! The two phases of an op: single use, repetition, addresses, workspace, order on a stream.

mod common;

use belay_ascend_sim::ops::arithmetic::*;
use belay_ascend_sim::ops::matmul::*;
use common::*;

const PLAIN: &str = r#"{"devices":2,"memory_bytes":1048576}"#;
const SLOW: &str = r#"{"devices":1,"memory_bytes":1048576,"op_delay_us":200000}"#;

/// The first phase of `x · y`.
fn plan(x: &Tensor, y: &Tensor, out: &Tensor) -> Handle {
    let (mut size, mut executor) = (9, NULL);
    // SAFETY: the pointers are writable, handles are looked up.
    ok(unsafe { aclnnMulGetWorkspaceSize(x.handle, y.handle, out.handle, &mut size, &mut executor) });
    assert_eq!(size, 0);
    executor
}

fn operands() -> (Tensor, Tensor, Tensor) {
    (Tensor::of(&[2], &[2.0f32, 3.0]), Tensor::of(&[2], &[5.0f32, 7.0]), Tensor::new::<f32>(&[2]))
}

#[test]
fn an_executor_runs_once() {
    let _sim = sim(PLAIN);
    let (x, y, out) = operands();
    let before = live("executor");
    let executor = plan(&x, &y, &out);
    assert_eq!(live("executor"), before + 1);
    // SAFETY: handles are looked up.
    unsafe {
        ok(aclnnMul(NULL, 0, executor, NULL));
        assert_eq!(aclnnMul(NULL, 0, executor, NULL), 161_002);
        assert!(message().contains("once"), "the text says why");
    }
    ok(sync(NULL));
    assert_eq!(out.values::<f32>(), [10.0, 21.0]);
    assert_eq!(live("executor"), before);
}

#[test]
fn a_repeatable_executor_runs_again_at_other_addresses() {
    let _sim = sim(PLAIN);
    let (x, y, out) = operands();
    let before = live("executor");
    let executor = plan(&x, &y, &out);
    let other = Tensor::of(&[2], &[1.0f32, 10.0]);
    let elsewhere = Tensor::new::<f32>(&[2]);
    // SAFETY: handles are looked up.
    unsafe {
        assert_eq!(aclSetInputTensorAddr(executor, 0, x.handle, other.memory), 161_002, "not repeatable yet");
        ok(aclSetAclOpExecutorRepeatable(executor));
        for _ in 0..2 {
            ok(aclnnMul(NULL, 0, executor, NULL));
        }
        ok(sync(NULL));
        assert_eq!(out.values::<f32>(), [10.0, 21.0]);
        // a tensor's new address is not the executor's
        ok(aclSetRawTensorAddr(x.handle, other.memory));
        ok(aclnnMul(NULL, 0, executor, NULL));
        ok(sync(NULL));
        assert_eq!(out.values::<f32>(), [10.0, 21.0]);
        ok(aclSetInputTensorAddr(executor, 0, x.handle, other.memory));
        ok(aclSetOutputTensorAddr(executor, 0, out.handle, elsewhere.memory));
        assert_eq!(aclSetInputTensorAddr(executor, 2, x.handle, other.memory), 161_002, "no such operand");
        ok(aclnnMul(NULL, 0, executor, NULL));
        ok(sync(NULL));
        assert_eq!(elsewhere.values::<f32>(), [5.0, 70.0]);
        ok(aclDestroyAclOpExecutor(executor));
        assert_eq!(aclnnMul(NULL, 0, executor, NULL), 161_002);
    }
    assert_eq!(live("executor"), before);
}

#[test]
fn an_op_is_done_later_and_in_order() {
    let _sim = sim(SLOW);
    let (x, y, out) = operands();
    let stream = stream();
    let (first, second) = (plan(&x, &y, &out), plan(&out, &y, &out));
    // SAFETY: handles are looked up.
    unsafe {
        ok(aclnnMul(NULL, 0, first, stream));
        ok(aclnnMul(NULL, 0, second, stream));
    }
    assert!(out.values::<f32>()[0].is_nan(), "seen before a synchronisation");
    ok(sync(stream));
    assert_eq!(out.values::<f32>(), [50.0, 147.0]);
}

#[test]
fn operands_must_live() {
    let _sim = sim(SLOW);
    let (x, y, out) = operands();
    let executor = plan(&x, &y, &out);
    drop(x);
    // SAFETY: handles are looked up.
    assert_eq!(unsafe { aclnnMul(NULL, 0, executor, NULL) }, 161_002, "the tensor was destroyed");
    let x = Tensor::of(&[2], &[2.0f32, 3.0]);
    let executor = plan(&x, &y, &out);
    // SAFETY: handles are looked up.
    unsafe {
        ok(aclnnMul(NULL, 0, executor, NULL));
        // the tensor may go when the second phase has returned, its memory may not
        ok(aclDestroyTensor(x.handle));
        ok(aclrtFree(x.memory));
    }
    assert_eq!(sync(NULL), 507_015);
    let text = message();
    assert!(text.contains("aclnnMul") && text.contains("freed"), "{text}");
    let freed = Tensor::of(&[2], &[2.0f32, 3.0]);
    let executor = plan(&freed, &y, &out);
    // SAFETY: handles are looked up.
    unsafe {
        ok(aclrtFree(freed.memory));
        assert_eq!(aclnnMul(NULL, 0, executor, NULL), 361_001, "freed before the second phase");
    }
}

#[test]
fn memory_of_another_device_is_refused() {
    let _sim = sim(PLAIN);
    let (x, y, out) = operands();
    // SAFETY: takes a number.
    ok(unsafe { aclrtSetDevice(1) });
    let executor = plan(&x, &y, &out);
    // SAFETY: handles are looked up.
    assert_eq!(unsafe { aclnnMul(NULL, 0, executor, NULL) }, 361_001);
    assert!(message().contains("device 1"));
}

#[test]
fn an_executor_is_of_its_op_and_needs_its_workspace() {
    let _sim = sim(PLAIN);
    let (x, y, out) = operands();
    let executor = plan(&x, &y, &out);
    // SAFETY: handles are looked up.
    assert_eq!(unsafe { aclnnDiv(NULL, 0, executor, NULL) }, 161_002);
    let (a, c) = (Tensor::of(&[1, 1], &[3.0f32]), Tensor::new::<f32>(&[1, 1]));
    let (mut size, mut executor) = (0, NULL);
    // SAFETY: the pointers are writable, handles are looked up.
    unsafe {
        ok(aclnnMmGetWorkspaceSize(a.handle, a.handle, c.handle, 0, &mut size, &mut executor));
        assert!(size > 0);
        assert_eq!(aclnnMm(NULL, size, executor, NULL), 161_002, "no workspace");
        let small = malloc(size as usize - 1);
        assert_eq!(aclnnMm(small, size - 1, executor, NULL), 161_002, "too small");
        assert_eq!(aclnnMm(small, size, executor, NULL), 361_001, "smaller than said");
        let workspace = malloc(size as usize);
        ok(aclrtMemset(workspace, size as usize, 0, size as usize));
        ok(aclnnMm(workspace, size, executor, NULL));
        ok(sync(NULL));
        assert_eq!(c.values::<f32>(), [9.0]);
        assert_eq!(download(workspace, 4), belay_ascend_sim::heap::POISON, "the workspace is used");
    }
}

#[test]
fn a_thread_without_a_context_gets_361001() {
    let _sim = sim(PLAIN);
    let (x, y, out) = operands();
    let handles = [x.handle.addr(), y.handle.addr(), out.handle.addr()];
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let [x, y, out] = handles.map(std::ptr::without_provenance_mut);
            let (mut size, mut executor) = (0, NULL);
            // SAFETY: the pointers are writable, handles are looked up.
            let code = unsafe { aclnnMulGetWorkspaceSize(x, y, out, &mut size, &mut executor) };
            assert_eq!(code, 361_001);
        });
    });
}

#[test]
fn a_captured_op_sees_what_its_memory_holds_then() {
    let _sim = sim(PLAIN);
    let (x, y, out) = operands();
    let stream = stream();
    let executor = plan(&x, &y, &out);
    let mut graph = NULL;
    // SAFETY: the pointers are writable, handles are looked up.
    unsafe {
        ok(aclmdlRICaptureBegin(stream, 2));
        ok(aclnnMul(NULL, 0, executor, stream));
        ok(aclmdlRICaptureEnd(stream, &mut graph));
        for factor in [1.0f32, 4.0] {
            upload(x.memory, &[factor.to_le_bytes(), factor.to_le_bytes()].concat());
            ok(aclmdlRIExecuteAsync(graph, stream));
            ok(sync(stream));
            assert_eq!(out.values::<f32>(), [factor * 5.0, factor * 7.0]);
        }
        ok(aclmdlRIDestroy(graph));
    }
}

#[test]
fn tensors_tell_what_they_are() {
    let _sim = sim(PLAIN);
    let x = Tensor::new::<half::bf16>(&[2, 5]);
    let (mut shape, mut rank, mut dtype) = (std::ptr::null_mut(), 0, 0);
    // SAFETY: the pointers are writable; the array has the length answered.
    unsafe {
        ok(aclGetViewShape(x.handle, &mut shape, &mut rank));
        assert_eq!(std::slice::from_raw_parts(shape, rank as usize), [2, 5]);
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(shape, rank as usize)));
        ok(aclGetDataType(x.handle, &mut dtype));
        assert_eq!(dtype, 27);
        let bad = [-1i64];
        assert!(aclCreateTensor(bad.as_ptr(), 1, 0, std::ptr::null(), 0, 2, bad.as_ptr(), 1, NULL).is_null());
        assert!(message().contains("[-1]"));
        assert!(aclCreateScalar(NULL, 0).is_null());
        ok(aclDestroyScalar(scalar(1.0f32)));
        ok(aclDestroyIntArray(ints(&[1])));
        assert_eq!(aclDestroyIntArray(NULL), 161_001);
    }
}

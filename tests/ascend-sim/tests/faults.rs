//! Every symbol can be made to fail, and does nothing then.

mod common;

use std::collections::BTreeSet;
use std::ffi::c_char;

use belay_ascend_sim::api::hccl::*;
use belay_ascend_sim::ops::{
    activation::*, arithmetic::*, distribute::*, fill::*, grouped::*, index::*, layout::*, matmul::*, moe::*,
    norm::*, quant::*, reduce::*,
};
use common::*;

/// Arguments that no function may act on.
trait Nothing {
    fn nothing() -> Self;
}

impl<T> Nothing for *mut T {
    fn nothing() -> Self {
        std::ptr::null_mut()
    }
}

impl<T> Nothing for *const T {
    fn nothing() -> Self {
        std::ptr::null()
    }
}

macro_rules! nothing {
    ($($ty:ty),*) => {$(
        impl Nothing for $ty {
            fn nothing() -> Self {
                Self::default()
            }
        }
    )*};
}
nothing!(bool, i8, i32, u32, i64, u64, usize, f64);

/// A code, or a null pointer as code −1.
trait Answer {
    fn code(self) -> i32;
}

impl Answer for i32 {
    fn code(self) -> i32 {
        self
    }
}

impl<T> Answer for *mut T {
    fn code(self) -> i32 {
        -i32::from(self.is_null())
    }
}

impl<T> Answer for *const T {
    fn code(self) -> i32 {
        -i32::from(self.is_null())
    }
}

/// A function of the C ABI that can be called with arguments that mean nothing.
trait Callable<Arguments> {
    fn call(self) -> i32;
}

macro_rules! callable {
    ($($arg:ident)*) => {
        impl<R: Answer, $($arg: Nothing),*> Callable<($($arg,)*)> for unsafe extern "C" fn($($arg),*) -> R {
            fn call(self) -> i32 {
                // SAFETY: null pointers and zeros are refused, or never looked at when a failure is injected.
                unsafe { self($($arg::nothing()),*) }.code()
            }
        }
    };
}
callable!();
callable!(A);
callable!(A B);
callable!(A B C);
callable!(A B C D);
callable!(A B C D E);
callable!(A B C D E F);
callable!(A B C D E F G);
callable!(A B C D E F G H);
callable!(A B C D E F G H I);
callable!(A B C D E F G H I J);
callable!(A B C D E F G H I J K);
callable!(A B C D E F G H I J K L M N O P Q S T);
callable!(A B C D E F G H I J K L M N O P Q S T U V W);
callable!(A B C D E F G H I J K L M N O P Q S T U V W X Y Z A2 B2 C2);
callable!(A B C D E F G H I J K L M N O P Q S T U V W X Y Z A2 B2 C2 D2 E2);

/// A function by name.
type Named = (&'static str, Box<dyn Fn() -> i32>);

/// `name: number of arguments` to a list of names and calls.
macro_rules! calls {
    ($($name:ident ($($arg:tt),*)),* $(,)?) => {
        vec![$((stringify!($name), Box::new(|| {
            let function: unsafe extern "C" fn($($arg),*) -> _ = $name;
            function.call()
        }) as Box<dyn Fn() -> i32>)),*]
    };
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn table() -> Vec<Named> {
    calls! {
        aclrtSetDevice(_),
        aclrtResetDevice(_),
        aclrtResetDeviceForce(_),
        aclrtGetDevice(_),
        aclrtGetDeviceCount(_),
        aclrtSynchronizeDevice(),
        aclrtSynchronizeDeviceWithTimeout(_),
        aclrtGetRunMode(_),
        aclrtCreateContext(_, _),
        aclrtDestroyContext(_),
        aclrtSetCurrentContext(_),
        aclrtGetCurrentContext(_),
        aclrtSetOpExecuteTimeOut(_),
        aclrtSetOpWaitTimeout(_),
        aclrtQueryDeviceStatus(_, _),
        aclrtGetDeviceInfo(_, _, _),
        aclrtDeviceCanAccessPeer(_, _, _),
        aclrtDeviceEnablePeerAccess(_, _),
        aclrtCreateEvent(_),
        aclrtCreateEventWithFlag(_, _),
        aclrtDestroyEvent(_),
        aclrtRecordEvent(_, _),
        aclrtResetEvent(_, _),
        aclrtQueryEvent(_, _),
        aclrtQueryEventStatus(_, _),
        aclrtSynchronizeEvent(_),
        aclrtSynchronizeEventWithTimeout(_, _),
        aclrtStreamWaitEvent(_, _),
        aclrtEventElapsedTime(_, _, _),
        aclrtCreateNotify(_, _),
        aclrtDestroyNotify(_),
        aclrtRecordNotify(_, _),
        aclrtWaitAndResetNotify(_, _, _),
        aclmdlRICaptureBegin(_, _),
        aclmdlRICaptureEnd(_, _),
        aclmdlRIExecuteAsync(_, _),
        aclmdlRIDestroy(_),
        aclInit(_),
        aclFinalize(),
        aclGetRecentErrMsg(),
        aclrtGetSocName(),
        aclrtGetVersion(_, _, _),
        aclsysGetVersionNum(_, _),
        aclrtMalloc(_, _, _),
        aclrtFree(_),
        aclrtMallocHost(_, _),
        aclrtFreeHost(_),
        aclrtMemcpy(_, _, _, _, _),
        aclrtMemcpyAsync(_, _, _, _, _, _),
        aclrtMemset(_, _, _, _),
        aclrtMemsetAsync(_, _, _, _, _),
        aclrtGetMemInfo(_, _, _),
        aclrtCreateStream(_),
        aclrtCreateStreamWithConfig(_, _, _),
        aclrtDestroyStream(_),
        aclrtDestroyStreamForce(_),
        aclrtSynchronizeStream(_),
        aclrtSynchronizeStreamWithTimeout(_, _),
        aclrtStreamQuery(_, _),
        aclrtStreamAbort(_),
        aclrtSetStreamFailureMode(_, _),
        aclCreateTensor(_, _, _, _, _, _, _, _, _),
        aclCreateScalar(_, _),
        aclCreateIntArray(_, _),
        aclCreateTensorList(_, _),
        aclDestroyTensor(_),
        aclDestroyScalar(_),
        aclDestroyIntArray(_),
        aclDestroyTensorList(_),
        aclGetViewShape(_, _, _),
        aclGetDataType(_, _),
        aclSetRawTensorAddr(_, _),
        aclSetAclOpExecutorRepeatable(_),
        aclDestroyAclOpExecutor(_),
        aclSetInputTensorAddr(_, _, _, _),
        aclSetOutputTensorAddr(_, _, _, _),
        aclrtPeekAtLastError(_),
        aclrtGetLastError(_),
        aclnnSiluGetWorkspaceSize(_, _, _, _),
        aclnnSilu(_, _, _, _),
        aclnnSigmoidGetWorkspaceSize(_, _, _, _),
        aclnnSigmoid(_, _, _, _),
        aclnnSoftplusGetWorkspaceSize(_, _, _, _, _, _),
        aclnnSoftplus(_, _, _, _),
        aclnnSwiGluGetWorkspaceSize(_, _, _, _, _),
        aclnnSwiGlu(_, _, _, _),
        aclnnClippedSwigluGetWorkspaceSize(_, _, _, _, _, _, _, _, _, _),
        aclnnClippedSwiglu(_, _, _, _),
        aclnnRotaryPositionEmbeddingGetWorkspaceSize(_, _, _, _, _, _, _),
        aclnnRotaryPositionEmbedding(_, _, _, _),
        aclnnAddGetWorkspaceSize(_, _, _, _, _, _),
        aclnnAdd(_, _, _, _),
        aclnnSubGetWorkspaceSize(_, _, _, _, _, _),
        aclnnSub(_, _, _, _),
        aclnnMulGetWorkspaceSize(_, _, _, _, _),
        aclnnMul(_, _, _, _),
        aclnnDivGetWorkspaceSize(_, _, _, _, _),
        aclnnDiv(_, _, _, _),
        aclnnAddsGetWorkspaceSize(_, _, _, _, _, _),
        aclnnAdds(_, _, _, _),
        aclnnMulsGetWorkspaceSize(_, _, _, _, _),
        aclnnMuls(_, _, _, _),
        aclnnSqrtGetWorkspaceSize(_, _, _, _),
        aclnnSqrt(_, _, _, _),
        aclnnRsqrtGetWorkspaceSize(_, _, _, _),
        aclnnRsqrt(_, _, _, _),
        aclnnExpGetWorkspaceSize(_, _, _, _),
        aclnnExp(_, _, _, _),
        aclnnLogGetWorkspaceSize(_, _, _, _),
        aclnnLog(_, _, _, _),
        aclnnClampGetWorkspaceSize(_, _, _, _, _, _),
        aclnnClamp(_, _, _, _),
        aclnnCastGetWorkspaceSize(_, _, _, _, _),
        aclnnCast(_, _, _, _),
        aclnnSWhereGetWorkspaceSize(_, _, _, _, _, _),
        aclnnSWhere(_, _, _, _),
        aclnnInplaceZeroGetWorkspaceSize(_, _, _),
        aclnnInplaceZero(_, _, _, _),
        aclnnInplaceFillScalarGetWorkspaceSize(_, _, _, _),
        aclnnInplaceFillScalar(_, _, _, _),
        aclnnArangeGetWorkspaceSize(_, _, _, _, _, _),
        aclnnArange(_, _, _, _),
        aclnnEmbeddingGetWorkspaceSize(_, _, _, _, _),
        aclnnEmbedding(_, _, _, _),
        aclnnIndexSelectGetWorkspaceSize(_, _, _, _, _, _),
        aclnnIndexSelect(_, _, _, _),
        aclnnGatherV2GetWorkspaceSize(_, _, _, _, _, _),
        aclnnGatherV2(_, _, _, _),
        aclnnGatherGetWorkspaceSize(_, _, _, _, _, _),
        aclnnGather(_, _, _, _),
        aclnnScatterGetWorkspaceSize(_, _, _, _, _, _, _, _),
        aclnnScatter(_, _, _, _),
        aclnnInplaceScatterUpdateGetWorkspaceSize(_, _, _, _, _, _),
        aclnnInplaceScatterUpdate(_, _, _, _),
        aclnnCatGetWorkspaceSize(_, _, _, _, _),
        aclnnCat(_, _, _, _),
        aclnnSliceGetWorkspaceSize(_, _, _, _, _, _, _, _),
        aclnnSlice(_, _, _, _),
        aclnnPermuteGetWorkspaceSize(_, _, _, _, _),
        aclnnPermute(_, _, _, _),
        aclnnInplaceCopyGetWorkspaceSize(_, _, _, _),
        aclnnInplaceCopy(_, _, _, _),
        aclnnMatmulGetWorkspaceSize(_, _, _, _, _, _),
        aclnnMatmul(_, _, _, _),
        aclnnMmGetWorkspaceSize(_, _, _, _, _, _),
        aclnnMm(_, _, _, _),
        aclnnBatchMatMulGetWorkspaceSize(_, _, _, _, _, _),
        aclnnBatchMatMul(_, _, _, _),
        aclnnGroupedMatmulV5GetWorkspaceSize(_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _),
        aclnnGroupedMatmulV5(_, _, _, _),
        aclnnMoeInitRoutingV3GetWorkspaceSize(_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _),
        aclnnMoeInitRoutingV3(_, _, _, _),
        aclnnMoeFinalizeRoutingV2GetWorkspaceSize(_, _, _, _, _, _, _, _, _, _, _),
        aclnnMoeFinalizeRoutingV2(_, _, _, _),
        aclnnRmsNormGetWorkspaceSize(_, _, _, _, _, _, _),
        aclnnRmsNorm(_, _, _, _),
        aclnnAddRmsNormGetWorkspaceSize(_, _, _, _, _, _, _, _, _),
        aclnnAddRmsNorm(_, _, _, _),
        aclnnDynamicQuantGetWorkspaceSize(_, _, _, _, _, _),
        aclnnDynamicQuant(_, _, _, _),
        aclnnReduceSumGetWorkspaceSize(_, _, _, _, _, _, _),
        aclnnReduceSum(_, _, _, _),
        aclnnMeanGetWorkspaceSize(_, _, _, _, _, _, _),
        aclnnMean(_, _, _, _),
        aclnnAmaxGetWorkspaceSize(_, _, _, _, _, _),
        aclnnAmax(_, _, _, _),
        aclnnArgMaxGetWorkspaceSize(_, _, _, _, _, _),
        aclnnArgMax(_, _, _, _),
        aclnnTopkGetWorkspaceSize(_, _, _, _, _, _, _, _, _),
        aclnnTopk(_, _, _, _),
        aclnnSoftmaxGetWorkspaceSize(_, _, _, _, _),
        aclnnSoftmax(_, _, _, _),
        aclnnMoeDistributeDispatchV2GetWorkspaceSize(
            _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _
        ),
        aclnnMoeDistributeDispatchV2(_, _, _, _),
        aclnnMoeDistributeCombineV2GetWorkspaceSize(
            _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _
        ),
        aclnnMoeDistributeCombineV2(_, _, _, _),
        HcclGetRootInfo(_),
        HcclCommInitRootInfo(_, _, _, _),
        HcclCommInitRootInfoConfig(_, _, _, _, _),
        HcclCommInitClusterInfo(_, _, _),
        HcclCommInitClusterInfoConfig(_, _, _, _),
        HcclCommInitAll(_, _, _),
        HcclCreateSubCommConfig(_, _, _, _, _, _, _),
        HcclCommDestroy(_),
        HcclGetRankSize(_, _),
        HcclGetRankId(_, _),
        HcclGetCommName(_, _),
        HcclGetCommAsyncError(_, _),
        HcclCommSuspend(_),
        HcclCommResume(_),
        HcclGetErrorString(_),
        HcclAllReduce(_, _, _, _, _, _, _),
        HcclReduceScatter(_, _, _, _, _, _, _),
        HcclAllGather(_, _, _, _, _, _),
        HcclBroadcast(_, _, _, _, _, _),
        HcclSend(_, _, _, _, _, _),
        HcclRecv(_, _, _, _, _, _),
        HcclBarrier(_, _),
        HcclAlltoAll(_, _, _, _, _, _, _, _),
        HcclAlltoAllV(_, _, _, _, _, _, _, _, _, _),
    }
}

const KINDS: [&str; 13] = [
    "context",
    "stream",
    "event",
    "notify",
    "device_memory",
    "host_memory",
    "tensor",
    "scalar",
    "int_array",
    "tensor_list",
    "executor",
    "comm",
    "graph",
];

fn symbols() -> BTreeSet<String> {
    // SAFETY: null is allowed, then the buffer has the size given.
    unsafe {
        let size = belaySimSymbols(std::ptr::null_mut(), 0);
        let mut buffer = vec![0u8; size as usize];
        assert_eq!(belaySimSymbols(buffer.as_mut_ptr().cast::<c_char>(), size), size);
        assert_eq!(buffer.pop(), Some(0), "it ends with a zero byte");
        String::from_utf8_lossy(&buffer).lines().map(str::to_owned).collect()
    }
}

#[test]
fn each_symbol_fails_when_told_to() {
    let _sim = sim(r#"{"devices":1,"memory_bytes":65536}"#);
    let table = table();
    let named: BTreeSet<String> = table.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(named, symbols(), "the table has each symbol");
    let before = KINDS.map(live);
    for (name, call) in &table {
        let counted = calls(name);
        assert_eq!(inject(name, 1, 507_057), 0, "{name}");
        assert!(matches!(call(), 507_057 | -1), "{name}");
        assert_eq!(calls(name), counted + 1, "{name}");
    }
    assert_eq!(KINDS.map(live), before, "a failed call makes and destroys nothing");
    let mut device = 9;
    // SAFETY: the pointer is writable.
    ok(unsafe { aclrtGetDevice(&mut device) });
}

#[test]
fn the_nth_call_fails_and_several_may_be_pending() {
    let _sim = sim(r#"{"devices":1}"#);
    let mut count = 0;
    // SAFETY: the pointer is writable.
    let mut call = || unsafe { aclrtGetDeviceCount(&mut count) };
    assert_eq!(inject("aclrtGetDeviceCount", 2, 507_057), 0);
    assert_eq!(inject("aclrtGetDeviceCount", 4, 507_034), 0);
    assert_eq!([call(), call(), call(), call(), call()], [0, 507_057, 0, 507_034, 0]);
    inject("aclrtGetDeviceCount", 1, 507_057);
    belaySimFailClear();
    assert_eq!(call(), 0);
    assert_eq!(inject("aclrtGetDeviceCount", 0, 1), -1);
    assert_eq!(inject("aclrtNoSuchFunction", 1, 1), -1);
    assert_eq!(live("no such kind"), u64::MAX);
    inject("aclrtGetDeviceCount", 1, 507_057);
    call();
    assert!(message().contains("aclrtGetDeviceCount"), "the text names the symbol");
}

#[test]
fn a_failed_pointer_function_answers_null() {
    let _sim = sim(r#"{"devices":1}"#);
    inject("aclCreateScalar", 1, 1);
    let mut value = 1.0f32;
    // SAFETY: the value is readable.
    unsafe {
        assert!(aclCreateScalar((&raw mut value).cast(), 0).is_null());
        let scalar = aclCreateScalar((&raw mut value).cast(), 0);
        assert!(!scalar.is_null());
        ok(aclDestroyScalar(scalar));
    }
    assert_eq!(live("scalar"), 0);
}

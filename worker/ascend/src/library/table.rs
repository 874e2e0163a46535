//! Every symbol that this crate calls, declared once.

use std::ffi::{c_char, c_void};

use super::operators::Operators;
use super::{Family, Finder};
use crate::ffi::{
    HcclStatus, RawCommConfig, RawCommunicator, RawContext, RawEvent, RawExecutor, RawIntArray, RawRootInfo,
    RawScalar, RawStream, RawTensor, RawTensorList, Status,
};

macro_rules! pointer {
    (required, $signature:ty) => { $signature };
    (optional, $signature:ty) => { Option<$signature> };
}

macro_rules! is_required {
    (required) => {
        true
    };
    (optional) => {
        false
    };
}

macro_rules! found {
    (required, $pointer:ident) => {
        $pointer?
    };
    (optional, $pointer:ident) => {
        $pointer
    };
}

macro_rules! symbols {
    ($($family:ident $need:ident fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        /// Function pointers of the libraries that were found. Fields have the names of the symbols.
        #[allow(non_snake_case)]
        pub(crate) struct Symbols {
            $(pub(crate) $name: pointer!($need, unsafe extern "C" fn($($type),*) -> $result),)*
            pub(crate) operators: Operators,
        }

        impl Symbols {
            /// Looks for every symbol; `None` if a required one is missing, which the finder then knows.
            #[allow(non_snake_case)]
            pub(crate) fn resolve(finder: &mut Finder) -> Option<Self> {
                $(
                    // SAFETY: the signature is that of the documentation of this symbol.
                    let $name: Option<unsafe extern "C" fn($($argument: $type),*) -> $result> = unsafe {
                        finder.symbol(stringify!($name), Family::$family, is_required!($need))
                    };
                )*
                let operators = Operators::resolve(finder);
                Some(Self { $($name: found!($need, $name),)* operators: operators? })
            }
        }
    };
}

pub(super) use {found, is_required, pointer};

symbols! {
    // process and device
    Runtime required fn aclInit(config: *const c_char) -> Status;
    Runtime required fn aclFinalize() -> Status;
    Runtime required fn aclGetRecentErrMsg() -> *const c_char;
    Runtime required fn aclrtGetSocName() -> *const c_char;
    Runtime required fn aclrtGetDeviceCount(count: *mut u32) -> Status;
    Runtime required fn aclrtSetDevice(device: i32) -> Status;
    Runtime required fn aclrtResetDevice(device: i32) -> Status;
    Runtime required fn aclrtGetMemInfo(attribute: i32, free: *mut usize, total: *mut usize) -> Status;
    Runtime optional fn aclrtSetOpExecuteTimeOut(seconds: u32) -> Status;
    Runtime optional fn aclrtSetOpWaitTimeout(seconds: u32) -> Status;

    // contexts
    Runtime required fn aclrtCreateContext(context: *mut RawContext, device: i32) -> Status;
    Runtime required fn aclrtDestroyContext(context: RawContext) -> Status;
    Runtime required fn aclrtSetCurrentContext(context: RawContext) -> Status;

    // streams and events
    Runtime required fn aclrtCreateStream(stream: *mut RawStream) -> Status;
    Runtime required fn aclrtDestroyStream(stream: RawStream) -> Status;
    Runtime optional fn aclrtDestroyStreamForce(stream: RawStream) -> Status;
    Runtime optional fn aclrtSetStreamFailureMode(stream: RawStream, mode: u64) -> Status;
    Runtime required fn aclrtSynchronizeStreamWithTimeout(stream: RawStream, milliseconds: i32) -> Status;
    Runtime required fn aclrtStreamQuery(stream: RawStream, status: *mut i32) -> Status;
    Runtime optional fn aclrtStreamAbort(stream: RawStream) -> Status;
    Runtime required fn aclrtStreamWaitEvent(stream: RawStream, event: RawEvent) -> Status;
    Runtime required fn aclrtCreateEventWithFlag(event: *mut RawEvent, flag: u32) -> Status;
    Runtime required fn aclrtDestroyEvent(event: RawEvent) -> Status;
    Runtime required fn aclrtRecordEvent(event: RawEvent, stream: RawStream) -> Status;
    Runtime required fn aclrtQueryEventStatus(event: RawEvent, status: *mut i32) -> Status;
    Runtime required fn aclrtSynchronizeEventWithTimeout(event: RawEvent, milliseconds: i32) -> Status;
    Runtime required fn aclrtEventElapsedTime(
        milliseconds: *mut f32,
        start: RawEvent,
        end: RawEvent,
    ) -> Status;

    // memory
    Runtime required fn aclrtMalloc(memory: *mut *mut c_void, bytes: usize, policy: i32) -> Status;
    Runtime required fn aclrtFree(memory: *mut c_void) -> Status;
    Runtime required fn aclrtMallocHost(memory: *mut *mut c_void, bytes: usize) -> Status;
    Runtime required fn aclrtFreeHost(memory: *mut c_void) -> Status;
    Runtime required fn aclrtMemcpyAsync(
        to: *mut c_void,
        room: usize,
        from: *const c_void,
        bytes: usize,
        kind: i32,
        stream: RawStream,
    ) -> Status;
    Runtime required fn aclrtMemsetAsync(
        to: *mut c_void,
        room: usize,
        value: i32,
        bytes: usize,
        stream: RawStream,
    ) -> Status;

    // communicators and collectives; a worker with one NPU needs none
    Communicators optional fn HcclGetRootInfo(root: *mut RawRootInfo) -> HcclStatus;
    Communicators optional fn HcclCommInitRootInfo(
        ranks: u32,
        root: *const RawRootInfo,
        rank: u32,
        communicator: *mut RawCommunicator,
    ) -> HcclStatus;
    Communicators optional fn HcclCommInitRootInfoConfig(
        ranks: u32,
        root: *const RawRootInfo,
        rank: u32,
        config: *const RawCommConfig,
        communicator: *mut RawCommunicator,
    ) -> HcclStatus;
    Communicators optional fn HcclCommDestroy(communicator: RawCommunicator) -> HcclStatus;
    Communicators optional fn HcclGetCommName(
        communicator: RawCommunicator,
        name: *mut c_char,
    ) -> HcclStatus;
    Communicators optional fn HcclGetCommAsyncError(
        communicator: RawCommunicator,
        error: *mut HcclStatus,
    ) -> HcclStatus;
    Communicators optional fn HcclGetErrorString(code: HcclStatus) -> *const c_char;
    Collectives optional fn HcclAllGather(
        send: *mut c_void,
        receive: *mut c_void,
        count: u64,
        dtype: i32,
        communicator: RawCommunicator,
        stream: RawStream,
    ) -> HcclStatus;
    Collectives optional fn HcclAlltoAll(
        send: *const c_void,
        send_count: u64,
        send_dtype: i32,
        receive: *const c_void,
        receive_count: u64,
        receive_dtype: i32,
        communicator: RawCommunicator,
        stream: RawStream,
    ) -> HcclStatus;
    Collectives optional fn HcclAlltoAllV(
        send: *const c_void,
        send_counts: *const c_void,
        send_displacements: *const c_void,
        send_dtype: i32,
        receive: *const c_void,
        receive_counts: *const c_void,
        receive_displacements: *const c_void,
        receive_dtype: i32,
        communicator: RawCommunicator,
        stream: RawStream,
    ) -> HcclStatus;

    // what operators take
    OpBase required fn aclCreateTensor(
        dims: *const i64,
        rank: u64,
        dtype: i32,
        strides: *const i64,
        offset: i64,
        format: i32,
        storage_dims: *const i64,
        storage_rank: u64,
        memory: *mut c_void,
    ) -> *mut RawTensor;
    OpBase required fn aclDestroyTensor(tensor: *const RawTensor) -> Status;
    OpBase required fn aclCreateScalar(value: *mut c_void, dtype: i32) -> *mut RawScalar;
    OpBase required fn aclDestroyScalar(scalar: *const RawScalar) -> Status;
    OpBase required fn aclCreateIntArray(values: *const i64, count: u64) -> *mut RawIntArray;
    OpBase required fn aclDestroyIntArray(array: *const RawIntArray) -> Status;
    OpBase required fn aclCreateTensorList(
        tensors: *const *const RawTensor,
        count: u64,
    ) -> *mut RawTensorList;
    OpBase required fn aclDestroyTensorList(list: *const RawTensorList) -> Status;
    OpBase required fn aclSetAclOpExecutorRepeatable(executor: *mut RawExecutor) -> Status;
    OpBase required fn aclDestroyAclOpExecutor(executor: *mut RawExecutor) -> Status;
    OpBase required fn aclSetInputTensorAddr(
        executor: *mut RawExecutor,
        index: usize,
        tensor: *mut RawTensor,
        memory: *mut c_void,
    ) -> Status;
    OpBase required fn aclSetOutputTensorAddr(
        executor: *mut RawExecutor,
        index: usize,
        tensor: *mut RawTensor,
        memory: *mut c_void,
    ) -> Status;
}

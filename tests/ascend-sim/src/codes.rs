//! The documented status codes that the simulator answers with.

/// A parameter check of the `acl` layer failed.
pub const INVALID_PARAM: i32 = 100_000;
/// `aclInit` was not called.
pub const UNINITIALIZED: i32 = 100_001;
/// `aclInit` was called twice.
pub const REPEAT_INITIALIZE: i32 = 100_002;
/// `aclFinalize` was called twice.
pub const REPEAT_FINALIZE: i32 = 100_037;

/// A parameter check of the runtime failed.
pub const RT_PARAM_INVALID: i32 = 107_000;
/// No such device, or it is not set.
pub const RT_INVALID_DEVICE: i32 = 107_001;
/// The calling thread has no current context.
pub const RT_CONTEXT_NULL: i32 = 107_002;
/// The stream does not belong to the current context.
pub const RT_STREAM_CONTEXT: i32 = 107_003;
/// An event has no time stamp.
pub const RT_EVENT_TIMESTAMP_INVALID: i32 = 107_006;
/// An address that must be aligned is not.
pub const RT_ADDR_UNALIGNED: i32 = 107_008;
/// A memory kind does not fit the pointer.
pub const RT_INVALID_MEMORY_TYPE: i32 = 107_016;
/// A handle that names nothing alive.
pub const RT_INVALID_HANDLE: i32 = 107_017;
/// A wait on a stream timed out.
pub const RT_WAIT_TIMEOUT: i32 = 107_019;
/// A task timed out.
pub const RT_TASK_TIMEOUT: i32 = 107_020;
/// A task was ended from outside.
pub const RT_DEVICE_TASK_ABORT: i32 = 107_022;
/// The stream's tasks were dropped by an abort.
pub const RT_STREAM_ABORT: i32 = 107_023;
/// The stream is being captured already.
pub const RT_STREAM_CAPTURED: i32 = 107_027;
/// The stream is not being captured.
pub const RT_STREAM_NOT_CAPTURED: i32 = 107_029;
/// The capture mode forbids this call.
pub const RT_CAPTURE_MODE_NOT_SUPPORT: i32 = 107_030;
/// The default stream can't be captured.
pub const RT_STREAM_CAPTURE_IMPLICIT: i32 = 107_031;
/// A capture ends on another thread than it began on.
pub const RT_STREAM_CAPTURE_WRONG_THREAD: i32 = 107_038;

/// The feature is not supported here.
pub const RT_FEATURE_NOT_SUPPORT: i32 = 207_000;
/// An allocation failed.
pub const RT_MEMORY_ALLOCATION: i32 = 207_001;
/// The device's memory is used up.
pub const RT_DEVICE_OOM: i32 = 207_018;

/// A fault of the simulator itself.
pub const INTERNAL_ERROR: i32 = 500_000;
/// An event has not completed.
pub const RT_EVENT_NOT_COMPLETE: i32 = 507_006;
/// A DMA transfer touched memory that it may not.
pub const RT_SYS_DMA: i32 = 507_013;
/// An op ran longer than the limit set.
pub const RT_AICORE_TIMEOUT: i32 = 507_014;
/// An op failed on the device, for example on a bad address.
pub const RT_AICORE_EXCEPTION: i32 = 507_015;
/// Synchronising a stream timed out.
pub const RT_STREAM_SYNC_TIMEOUT: i32 = 507_046;
/// Synchronising an event timed out.
pub const RT_EVENT_SYNC_TIMEOUT: i32 = 507_047;
/// A peer of a collective is gone, as far as can be told.
pub const RT_SUSPECT_REMOTE_ERROR: i32 = 507_057;

/// An aclnn argument that must not be null is.
pub const NN_PARAM_NULLPTR: i32 = 161_001;
/// An aclnn argument breaks a rule of the op.
pub const NN_PARAM_INVALID: i32 = 161_002;
/// The runtime refused what an op asked of it.
pub const NN_RUNTIME_ERROR: i32 = 361_001;
/// Tiling failed: a shape or attribute that the op's tiling does not take.
pub const NN_INNER_TILING: i32 = 561_002;
/// No kernel of that op for this SoC.
pub const NN_INNER_FIND_KERNEL: i32 = 561_003;

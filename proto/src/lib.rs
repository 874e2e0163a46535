//! Wire types: inference, admin, gateway, KServe open inference protocol, KEDA external scaler.
//!
//! The protos under `protos/` are the source; `inference/open_inference_grpc.proto` is vendored from the open
//! inference protocol project (Apache-2.0); marked as such, it has two methods more, which Triton's clients use.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "generated code; the protos carry the documentation")]
#![allow(
    clippy::expect_used,
    clippy::large_enum_variant,
    clippy::unwrap_used,
    unused_qualifications,
    reason = "generated code"
)]

/// `belay.inference.v1`: text generation.
pub mod inference {
    tonic::include_proto!("belay.inference.v1");
}

/// `belay.admin.v1`: what the operator asks of a worker.
pub mod admin {
    tonic::include_proto!("belay.admin.v1");
}

/// `belay.gateway.v1`: what the operator asks of a gateway.
pub mod gateway {
    tonic::include_proto!("belay.gateway.v1");
}

/// `externalscaler`: what KEDA asks of an external scaler.
pub mod externalscaler {
    tonic::include_proto!("externalscaler");
}

/// `inference`: the KServe open inference protocol (version 2).
pub mod kserve {
    tonic::include_proto!("inference");
}

/// Descriptors of every service, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

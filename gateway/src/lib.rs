//! The gateway: OpenAI HTTP and gRPC in, worker gRPC out.
//!
//! | module | what it is |
//! |---|---|
//! | [`discovery`] | which models exist and which workers serve them: Kubernetes objects or flags become a table |
//! | [`routing`] | the live workers (channel, load, circuit), and the policy that picks one |
//! | [`measure`] | what requests took, by model and revision |
//! | [`keys`] | API keys and their limits |
//! | [`life`] | a request from the first worker to the last token: hold, retry, resume |
//! | [`edge`] | what the HTTP APIs share |
//! | [`openai`] | the OpenAI HTTP API |
//! | [`anthropic`] | the Anthropic Messages API |
//! | [`grpc`] | the gRPC services on the same address |
//! | [`observe`] | metrics, request records, health |
//! | [`serve`] | listeners, connections, shutdown |
#![forbid(unsafe_code)]

pub mod anthropic;
pub mod config;
pub mod discovery;
pub mod edge;
pub mod grpc;
pub mod keys;
pub mod life;
pub mod measure;
pub mod observe;
pub mod openai;
pub mod request_id;
pub mod routing;
pub mod run;
pub mod serve;
pub mod telemetry;

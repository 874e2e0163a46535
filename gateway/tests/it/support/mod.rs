//! A gateway in this process, its clients, and workers to put behind it.
pub mod http;
pub mod kubernetes;
mod script;
mod worker;

pub use script::{Fault, Script, answer, call_id, logprob};
pub use worker::Worker;

use std::time::Duration;

use belay_gateway::{config::Config, run::Gateway};
use belay_proto::{
    gateway::{ReadRequest, ReadResponse, measurements_client::MeasurementsClient},
    inference::{
        GenerateRequest, GenerateResponse, Sampling, generate_request::Prompt,
        inference_client::InferenceClient,
    },
};
use clap::Parser;
use tonic::transport::Channel;

pub const MODEL: &str = "nano";

/// Nothing here may take this long, however busy the machine.
pub const LONG: Duration = Duration::from_secs(30);

/// A gateway in front of these workers; `flags` as on the command line.
pub async fn gateway(workers: &[&Worker], flags: &[&str]) -> Gateway {
    let mut arguments =
        ["belay-gateway", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"].map(str::to_owned).to_vec();
    if !flags.iter().any(|flag| flag.starts_with("--lame-duck-seconds")) {
        arguments.push("--lame-duck-seconds=0".to_owned());
    }
    arguments.extend(workers.iter().map(|worker| format!("--worker={MODEL}={}", worker.address)));
    arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
    Gateway::start(Config::parse_from(arguments)).await.unwrap()
}

pub async fn channel(gateway: &Gateway) -> Channel {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", gateway.api)).unwrap();
    endpoint.connect().await.unwrap()
}

/// What the operator would read.
pub async fn measured(gateway: &Gateway) -> ReadResponse {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", gateway.metrics)).unwrap();
    let mut client = MeasurementsClient::new(endpoint.connect().await.unwrap());
    client.read(ReadRequest {}).await.unwrap().into_inner()
}

pub fn request(prompt: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        model: MODEL.into(),
        prompt: Some(Prompt::Text(prompt.into())),
        sampling: Some(Sampling { seed: Some(7), max_tokens: Some(max_tokens), ..Sampling::default() }),
        ..GenerateRequest::default()
    }
}

/// A whole stream over gRPC.
pub async fn generate(
    gateway: &Gateway,
    request: GenerateRequest,
) -> Result<Vec<GenerateResponse>, tonic::Status> {
    let mut client = InferenceClient::new(channel(gateway).await);
    let reading = async {
        let mut stream = client.generate(request).await?.into_inner();
        let mut pieces = Vec::new();
        while let Some(piece) = stream.message().await? {
            pieces.push(piece);
        }
        Ok(pieces)
    };
    tokio::time::timeout(LONG, reading).await.expect("the stream must end")
}

pub fn ids(pieces: &[GenerateResponse]) -> Vec<u32> {
    pieces.iter().flat_map(|piece| piece.ids.iter().copied()).collect()
}

pub fn text(pieces: &[GenerateResponse]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

/// Waits until `holds`; for things that happen in another task.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

/// A value of the gateway's metrics page.
pub async fn metric(gateway: &Gateway, series: &str) -> f64 {
    let page = http::get(gateway.metrics, "/metrics").await.text();
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().unwrap()
}

/// Waits until a value of the gateway's metrics page is as wanted.
pub async fn metric_becomes(gateway: &Gateway, series: &str, wanted: impl Fn(f64) -> bool) {
    let waiting = async {
        while !wanted(metric(gateway, series).await) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("{series} never became as wanted"));
}

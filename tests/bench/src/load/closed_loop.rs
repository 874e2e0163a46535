//! A closed loop: so many clients, each sends its next request when its last one is answered.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use http::Method;
use tonic::transport::Channel;

use super::grpc;
use super::http::Http;
use super::mix::Request;
use super::record::Record;
use super::sse::Events;

/// Whom the clients ask.
#[derive(Clone, Debug)]
pub enum Target {
    /// OpenAI's API, streamed, over HTTP/1.1.
    OpenAi {
        /// Where.
        at: SocketAddr,
        /// Connections.
        http: Http,
    },
    /// A worker's own gRPC.
    Worker {
        /// Connection.
        channel: Channel,
        /// Served model name.
        model: String,
    },
}

/// Sends every request once, `clients` at a time, in order. The records are in the order of the requests.
///
/// # Errors
/// The first request that is not answered as it should be.
pub async fn run(target: &Target, requests: &[Request], clients: usize) -> Result<Vec<Record>> {
    let next = AtomicUsize::new(0);
    let client = async || {
        let mut records = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(request) = requests.get(number) else { return Ok::<_, anyhow::Error>(records) };
            let record = ask(target, request).await;
            records.push((number, record.with_context(|| format!("request {number}, {}", request.kind))?));
        }
    };
    let mut records: Vec<(usize, Record)> =
        try_join_all((0..clients).map(|_| client())).await?.into_iter().flatten().collect();
    records.sort_by_key(|(number, _)| *number);
    Ok(records.into_iter().map(|(_, record)| record).collect())
}

async fn ask(target: &Target, request: &Request) -> Result<Record> {
    let record = match target {
        Target::OpenAi { at, http } => stream(*at, http, request).await?,
        Target::Worker { channel, model } => grpc::ask(channel, model, request).await?,
    };
    let tokens = (record.prompt_tokens, record.output_tokens);
    let expected = (request.prompt_ids.len() as u32, request.output_tokens);
    // otherwise the bare forward would not have done the same work
    anyhow::ensure!(tokens == expected, "prompt and output tokens are {tokens:?}, expected {expected:?}");
    Ok(record)
}

async fn stream(at: SocketAddr, http: &Http, request: &Request) -> Result<Record> {
    let sent = Instant::now();
    let response = http.open(at, Method::POST, request.endpoint.path(), request.body.clone()).await?;
    let status = response.status();
    if !status.is_success() {
        let body = http_body_util::BodyExt::collect(response.into_body()).await?.to_bytes();
        anyhow::bail!("{status}: {}", String::from_utf8_lossy(&body));
    }
    let mut events = Events::new(response.into_body());
    let mut record =
        Record { sent, pieces: Vec::new(), prompt_tokens: 0, output_tokens: 0, cached_tokens: 0 };
    let mut finished = false;
    while let Some(piece) = events.next().await? {
        if piece.has_text {
            record.pieces.push(Instant::now());
        }
        finished |= piece.finish_reason.is_some();
        if let Some([prompt, output, cached]) = piece.usage {
            (record.prompt_tokens, record.output_tokens, record.cached_tokens) = (prompt, output, cached);
        }
    }
    anyhow::ensure!(finished, "the answer has no finish reason");
    Ok(record)
}

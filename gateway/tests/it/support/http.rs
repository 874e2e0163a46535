//! A plain HTTP/1 client.
use std::net::SocketAddr;

use axum::body::{Body, Bytes};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;

use super::LONG;

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The data of each server-sent event; checks the framing.
    pub fn events(&self) -> Vec<String> {
        assert_eq!(self.headers["content-type"], "text/event-stream", "{}", self.text());
        let text = self.text();
        assert!(text.ends_with("\n\n"), "{text}");
        let frames = text.trim_end_matches('\n').split("\n\n");
        frames
            .filter(|frame| !frame.starts_with(':'))
            .map(|frame| {
                frame.strip_prefix("data: ").unwrap_or_else(|| panic!("odd frame {frame:?}")).to_owned()
            })
            .inspect(|data| assert!(!data.contains('\n'), "{data:?}"))
            .collect()
    }

    /// As [`Self::events`], parsed, without the `[DONE]` that must be the last.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{events:?}");
        events.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

/// Sends a request; the body of the response is yet to be read.
pub async fn open(
    to: SocketAddr,
    method: Method,
    path: &str,
    body: impl Into<Body>,
) -> http::Response<Incoming> {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{to}{path}"))
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap();
    send(request).await
}

pub async fn send(request: Request<Body>) -> http::Response<Incoming> {
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
    tokio::time::timeout(LONG, client.request(request)).await.expect("an answer").unwrap()
}

pub async fn read(response: http::Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(LONG, body.collect()).await.expect("an end").unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}

pub async fn get(to: SocketAddr, path: &str) -> Answer {
    read(open(to, Method::GET, path, Body::empty()).await).await
}

pub async fn post(to: SocketAddr, path: &str, body: &Value) -> Answer {
    read(open(to, Method::POST, path, body.to_string()).await).await
}

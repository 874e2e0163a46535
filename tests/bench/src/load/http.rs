//! A plain HTTP/1.1 client that keeps its connections.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;

/// A client; copies share its connections.
#[derive(Clone, Debug)]
pub struct Http(Arc<Client<HttpConnector, Full<Bytes>>>);

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn text(&self) -> Result<String> {
        Ok(String::from_utf8(self.body.to_vec())?)
    }
}

impl Default for Http {
    fn default() -> Self {
        Self::new()
    }
}

impl Http {
    /// A client without connections.
    #[must_use]
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self(Arc::new(Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// Reads a page.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn get(&self, at: SocketAddr, path: &str) -> Result<Answer> {
        self.whole(at, Method::GET, path, Bytes::new()).await
    }

    /// Sends JSON and reads the whole answer.
    ///
    /// # Errors
    /// Nobody answers, or not to the end.
    pub async fn post(&self, at: SocketAddr, path: &str, body: Bytes) -> Result<Answer> {
        self.whole(at, Method::POST, path, body).await
    }

    async fn whole(&self, at: SocketAddr, method: Method, path: &str, body: Bytes) -> Result<Answer> {
        let response = self.open(at, method, path, body).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.context("the answer breaks off")?.to_bytes();
        Ok(Answer { status, body })
    }

    /// Sends a request; the body of the response is yet to be read. Dropping it closes the connection.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn open(
        &self,
        at: SocketAddr,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{at}{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        self.0.request(request).await.with_context(|| format!("no answer from {at}{path}"))
    }
}

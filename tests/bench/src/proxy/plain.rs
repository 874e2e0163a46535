//! A reverse proxy without any logic: HTTP/2 in, HTTP/2 out, bytes and trailers as they come. What it costs is what any proxy
//! on this stack costs.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use http::{Request, Response, Uri, uri::Scheme};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

/// Serves for ever, before the worker at this address.
pub async fn serve(listen: SocketAddr, worker: SocketAddr) -> Result<()> {
    let stream = loop {
        match TcpStream::connect(worker).await {
            Ok(stream) => break stream,
            // it is started at the same time
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    };
    stream.set_nodelay(true)?;
    let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let listener = TcpListener::bind(listen).await.with_context(|| listen.to_string())?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let send = send.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| forward(send.clone(), worker, request));
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // the client goes away when it has measured
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn forward(
    mut send: SendRequest<Incoming>,
    worker: SocketAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Incoming>, hyper::Error> {
    if let Ok(uri) = address(request.uri(), worker) {
        *request.uri_mut() = uri;
    }
    send.ready().await?;
    send.send_request(request).await
}

fn address(uri: &Uri, worker: SocketAddr) -> Result<Uri, http::Error> {
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    Uri::builder().scheme(Scheme::HTTP).authority(worker.to_string()).path_and_query(path).build()
}

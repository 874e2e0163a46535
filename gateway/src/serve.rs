//! Listeners and connections.
use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request as ApiRequest, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderValue, Request, Version, header::CONNECTION};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::{
    anthropic,
    keys::{Keyring, authenticate},
    life::Dispatcher,
    observe::{Flights, Health},
    openai, request_id, telemetry,
};

const HEADER_TIME: Duration = Duration::from_secs(30);
const PING: Duration = Duration::from_secs(20);
const STREAMS: u32 = 4096;

/// What the handlers of the API share.
#[derive(Clone, Debug)]
pub struct App {
    /// Finds workers.
    pub dispatcher: Dispatcher,
    /// Requests in flight.
    pub flights: Flights,
    /// Whether the gateway wants requests.
    pub health: Arc<Health>,
    /// Largest body or gRPC message.
    pub max_body_bytes: usize,
    /// Longest time for a body to arrive.
    pub body_time: Duration,
}

/// Everything on the API address: OpenAI HTTP and gRPC in one router; with keys, only for those who show one.
pub fn router(app: App, grpc: tonic::service::Routes, keys: Option<Arc<Keyring>>) -> Router {
    let health = Arc::clone(&app.health);
    let router = openai::router(app.clone())
        .merge(anthropic::router(app))
        .merge(grpc.into_axum_router().reset_fallback())
        .fallback(openai::not_found)
        .method_not_allowed_fallback(openai::wrong_method);
    let router = match keys {
        Some(keys) => router.layer(axum::middleware::from_fn_with_state(keys, authenticate)),
        None => router,
    };
    router
        .layer(axum::middleware::from_fn(request_id::assign))
        .layer(axum::middleware::from_fn(telemetry::trace))
        .layer(axum::middleware::from_fn_with_state(health, last_of_its_connection))
}

/// Who leaves says so with each answer: a client whose next request crosses the end of its connection does not know whether it was
/// served. HTTP/2 has GOAWAY for that.
async fn last_of_its_connection(
    State(health): State<Arc<Health>>,
    request: ApiRequest,
    next: Next,
) -> Response {
    let is_plain = request.version() <= Version::HTTP_11;
    let mut response = next.run(request).await;
    if is_plain && health.is_leaving() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Accepts connections until `stop`, then lets each finish what it serves. The connections are in `tracker`.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken, tracker: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tracker.spawn(connection(stream, router.clone(), stop.clone()));
            }
            Err(error) => {
                // out of file descriptors, usually: some connection must end first
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    let service = router.map_request(|request: Request<Incoming>| request.map(Body::new));
    let service = TowerToHyperService::new(service.map_err(|never: Infallible| match never {}));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(error = error.as_ref() as &dyn std::error::Error, "connection ended");
    }
}

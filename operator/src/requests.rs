//! Counts the calls to the API server, by verb and resource.
use std::task::{Context, Poll};

use http::{Method, Request, Uri};
use tower::{Layer, Service};

use crate::metrics::Metrics;

/// Lets every call through and counts it.
#[derive(Clone)]
pub struct CountRequests(pub Metrics);

impl<S> Layer<S> for CountRequests {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Counted { inner, metrics: self.0.clone() }
    }
}

/// A client whose calls are counted.
pub struct Counted<S> {
    inner: S,
    metrics: Metrics,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Counted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        let (verb, resource) = attributes(request.method(), request.uri());
        self.metrics.observe_request(verb, &resource);
        self.inner.call(request)
    }
}

/// Verb and resource of a request, as the API server's audit log names them; a subresource follows behind a slash.
fn attributes(method: &Method, uri: &Uri) -> (&'static str, String) {
    let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
    let skipped = match parts.next() {
        Some("api") => 1,
        Some("apis") => 2,
        _ => return ("get", String::new()),
    };
    let mut parts: Vec<&str> = parts.skip(skipped).collect();
    if parts.len() > 2 && parts[0] == "namespaces" {
        parts.drain(..2);
    }
    let (resource, name, subresource) = (parts.first(), parts.get(1), parts.get(2));
    let watches = uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if name.is_some() => "delete",
        Method::DELETE => "deletecollection",
        _ if watches => "watch",
        _ if name.is_some() => "get",
        _ => "list",
    };
    let mut of = resource.copied().unwrap_or_default().to_owned();
    if let Some(subresource) = subresource {
        of = format!("{of}/{subresource}");
    }
    (verb, of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(method: Method, uri: &str, verb: &str, resource: &str) {
        assert_eq!(attributes(&method, &uri.parse().unwrap()), (verb, resource.to_owned()), "{method} {uri}");
    }

    #[test]
    fn requests_are_named_as_in_the_audit_log() {
        is(Method::GET, "/api/v1/pods?labelSelector=a", "list", "pods");
        is(Method::GET, "/api/v1/pods?&watch=true&timeoutSeconds=60", "watch", "pods");
        is(Method::GET, "/api/v1/nodes/n", "get", "nodes");
        is(Method::GET, "/api/v1/namespaces/coast/services", "list", "services");
        is(Method::GET, "/api/v1/namespaces/coast", "get", "namespaces");
        is(Method::POST, "/api/v1/namespaces/coast/pods?", "create", "pods");
        is(Method::DELETE, "/api/v1/namespaces/coast/pods/a", "delete", "pods");
        is(
            Method::PATCH,
            "/apis/serving.belay.dev/v1alpha1/namespaces/coast/modeldeployments/m/status?force=true",
            "patch",
            "modeldeployments/status",
        );
        is(Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/coast/leases/l", "update", "leases");
        is(Method::GET, "/readyz", "get", "");
    }
}

//! The way of `kubectl port-forward`: through the API server and the pod's kubelet, so that nothing but the API server
//! needs to be reachable from here.
use std::io;

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Error};

use super::{Reach, Stream};
use crate::error::describe;

/// Forwards to one port of pods of one namespace.
#[derive(Clone, Debug)]
pub struct PortForward {
    pods: Api<Pod>,
    port: u16,
}

impl PortForward {
    /// To this port of these pods.
    pub fn new(pods: Api<Pod>, port: u16) -> Self {
        Self { pods, port }
    }
}

impl Reach for PortForward {
    fn open(&self, pod: &str) -> BoxFuture<'static, io::Result<Stream>> {
        let (pods, port, pod) = (self.pods.clone(), self.port, pod.to_owned());
        async move {
            let mut forwarder =
                pods.portforward(&pod, &[port]).await.map_err(|error| refused(&pod, &error))?;
            let bytes = forwarder.take_stream(port);
            let bytes =
                bytes.ok_or_else(|| io::Error::other(format!("pod {pod}: no stream to port {port}")))?;
            let error = forwarder.take_error(port);
            let trouble = async move {
                match error {
                    Some(error) => error.await.map(|message| format!("pod {pod}, port {port}: {message}")),
                    None => None,
                }
            };
            let trouble = trouble.boxed().shared();
            // Ends with the connection: the API server says why the port can't be used but leaves the stream open
            let watched = trouble.clone();
            tokio::spawn(async move {
                if watched.await.is_some() {
                    forwarder.abort();
                }
            });
            Ok(Stream { bytes: Box::new(bytes), trouble })
        }
        .boxed()
    }
}

fn refused(pod: &str, error: &Error) -> io::Error {
    io::Error::other(format!("port-forward to pod {pod}: {}", describe(error)))
}

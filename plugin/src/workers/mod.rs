//! The admin service of workers, however it is reached.

pub mod port_forward;

use std::{
    collections::HashMap,
    future::Future,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use belay_proto::admin::{
    GetExpertLoadRequest, GetExpertsRequest, GetStatusRequest, InjectRequest, WorkerStatus,
    admin_client::AdminClient,
};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::{answers::WorkerAnswer, error::describe};

/// Port of the admin service in every worker pod.
pub const ADMIN_PORT: u16 = 50052;

/// How long a worker may take to answer a person, the way to it included.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A two-way stream of bytes to a port of a pod.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// What breaks a stream from outside, once something does.
pub type Trouble = Shared<BoxFuture<'static, Option<String>>>;

/// A stream, and what may be said about its end.
pub struct Stream {
    /// The bytes.
    pub bytes: Box<dyn Bytes>,
    /// Why the way was cut; `None` when nobody knows.
    pub trouble: Trouble,
}

/// A way to a port of pods.
pub trait Reach: Send + Sync {
    /// Opens a stream to the pod of this name.
    fn open(&self, pod: &str) -> BoxFuture<'static, io::Result<Stream>>;
}

/// Why a call to a worker came to nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WorkerError {
    /// No answer came.
    #[error("{0}")]
    Unreachable(String),
    /// The worker was not started with fault injection.
    #[error("{0}")]
    Forbidden(String),
    /// The worker refused.
    #[error("{0}")]
    Refused(String),
    /// The worker is of a version that does not know the call.
    #[error("it is of a version that cannot do this")]
    Unknown,
}

/// Calls workers. Keeps one connection for each pod.
pub struct Workers {
    reach: Arc<dyn Reach>,
    limit: Duration,
    lines: Mutex<HashMap<String, Line>>,
}

#[derive(Clone)]
struct Line {
    channel: Channel,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

impl Workers {
    /// Calls go that way; each takes `limit` at most, the way included.
    pub fn new(reach: Arc<dyn Reach>, limit: Duration) -> Self {
        Self { reach, limit, lines: Mutex::new(HashMap::new()) }
    }

    /// What the worker in this pod says: its status, its experts, its load.
    ///
    /// # Errors
    /// When it does not tell its status in time. That it does not tell the rest is part of the answer.
    pub async fn look(&self, pod: &str) -> Result<WorkerAnswer, WorkerError> {
        self.call(pod, |mut client| async move {
            let (mut first, mut second) = (client.clone(), client.clone());
            let (status, experts, load) = tokio::join!(
                client.get_status(GetStatusRequest {}),
                first.get_experts(GetExpertsRequest {}),
                second.get_expert_load(GetExpertLoadRequest {}),
            );
            let why = |status: Status| match of_status(&status) {
                // as long as it starts, there is nothing to tell
                _ if status.code() == Code::FailedPrecondition => status.message().to_owned(),
                error => error.to_string(),
            };
            Ok(WorkerAnswer {
                status: status?.into_inner(),
                experts: experts.map(tonic::Response::into_inner).map_err(why),
                load: load.map(tonic::Response::into_inner).map_err(why),
            })
        })
        .await
    }

    /// What the worker in this pod says of itself.
    ///
    /// # Errors
    /// When it does not tell in time.
    pub async fn status(&self, pod: &str) -> Result<WorkerStatus, WorkerError> {
        self.call(pod, |mut client| async move {
            client.get_status(GetStatusRequest {}).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Breaks the worker in this pod on purpose.
    ///
    /// # Errors
    /// When it refuses, or no answer comes: a worker that ends at once may not have told that it does.
    pub async fn inject(&self, pod: &str, request: InjectRequest) -> Result<(), WorkerError> {
        self.call(pod, |mut client| async move { client.inject(request).await.map(drop) }).await
    }

    async fn call<T, F>(
        &self,
        pod: &str,
        ask: impl FnOnce(AdminClient<Channel>) -> F,
    ) -> Result<T, WorkerError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let line = self.line(pod);
        let answer = tokio::time::timeout(self.limit, ask(AdminClient::new(line.channel.clone()))).await;
        let error = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => of_status(&status),
            Err(_) => WorkerError::Unreachable(format!("no answer from pod {pod} within {:?}", self.limit)),
        };
        let WorkerError::Unreachable(message) = error else { return Err(error) };
        // the next call takes a new way: the pod of this name may be another one by then
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).remove(pod);
        let trouble = line.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // known already, or nobody knows: a call that failed is not held up
        let trouble = trouble.and_then(FutureExt::now_or_never).flatten();
        Err(WorkerError::Unreachable(trouble.unwrap_or(message)))
    }

    fn line(&self, pod: &str) -> Line {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || {
            let (channel, trouble) = channel(Arc::clone(&self.reach), pod.to_owned());
            Line { channel, trouble }
        };
        lines.entry(pod.to_owned()).or_insert_with(open).clone()
    }
}

/// A connection to a pod that is opened when it is used first, and what breaks it from outside once something does.
pub fn channel(reach: Arc<dyn Reach>, pod: String) -> (Channel, Arc<Mutex<Option<Trouble>>>) {
    let trouble: Arc<Mutex<Option<Trouble>>> = Arc::default();
    let told = Arc::clone(&trouble);
    let connector = tower::service_fn(move |_: Uri| {
        let (stream, told) = (reach.open(&pod), Arc::clone(&told));
        async move {
            let Stream { bytes, trouble } = stream.await?;
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
            Ok::<_, io::Error>(TokioIo::new(bytes))
        }
    });
    // the address is not looked up: the connector knows the way
    let channel = Endpoint::from_static("http://worker").connect_with_connector_lazy(connector);
    (channel, trouble)
}

/// The words for a call that failed.
pub fn of_status(status: &Status) -> WorkerError {
    let message = status.message().to_owned();
    match status.code() {
        Code::PermissionDenied => WorkerError::Forbidden(message),
        Code::Unimplemented => WorkerError::Unknown,
        Code::FailedPrecondition | Code::InvalidArgument | Code::NotFound | Code::Internal => {
            WorkerError::Refused(message)
        }
        _ => {
            // "transport error" says nothing; what is behind it does
            let transport = std::error::Error::source(status);
            let cause = transport.map(|error| describe(error.source().unwrap_or(error)));
            WorkerError::Unreachable(cause.unwrap_or(message))
        }
    }
}

//! A worker's inference service with scripted answers, behind a real socket.
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use belay_proto::inference::{
    ChatRequest, DetokenizeRequest, DetokenizeResponse, FinishReason, GenerateRequest, GenerateResponse,
    TokenizeRequest, TokenizeResponse, Usage,
    inference_server::{Inference, InferenceServer},
};
use futures::{StreamExt as _, stream::BoxStream};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// What it does with a question.
#[derive(Clone, Debug)]
pub enum Speech {
    /// Reasons, then answers with its name and the number of messages.
    Answers,
    /// Refuses.
    Refuses(Status),
    /// Begins, and breaks off.
    BreaksOff,
    /// Begins, and says nothing more.
    Hesitates,
}

/// What it was asked, and with which key.
pub type Asked = (ChatRequest, Option<String>);

/// A worker, or a gateway, that runs until it is dropped.
pub struct Speaker {
    pub address: SocketAddr,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    server: JoinHandle<()>,
}

impl Speaker {
    pub async fn start(name: &'static str, speech: Speech) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let service = Service { name, speech, asked: Arc::clone(&asked) };
        let serve = tonic::transport::Server::builder().add_service(InferenceServer::new(service));
        let server = tokio::spawn(async move {
            serve.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { address, asked, server }
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Service {
    name: &'static str,
    speech: Speech,
    asked: Arc<Mutex<Vec<Asked>>>,
}

type Pieces = BoxStream<'static, Result<GenerateResponse, Status>>;

#[tonic::async_trait]
impl Inference for Service {
    type GenerateStream = Pieces;
    type ChatStream = Pieces;

    async fn chat(&self, request: Request<ChatRequest>) -> Result<Response<Pieces>, Status> {
        let key = request.metadata().get("authorization").map(|key| key.to_str().unwrap().to_owned());
        let request = request.into_inner();
        let answer = format!("{} heard {}", self.name, request.messages.len());
        self.asked.lock().unwrap().push((request, key));
        let piece = |text: &str, reasoning: &str| GenerateResponse {
            ids: vec![7],
            text: text.into(),
            reasoning: reasoning.into(),
            ..GenerateResponse::default()
        };
        let begin = [Ok(piece("", "let me see")), Ok(piece(&answer, ""))];
        let mut last = piece(" messages", "");
        last.set_finish_reason(FinishReason::Stop);
        last.usage = Some(Usage { completion_tokens: 3, ..Usage::default() });
        let pieces = futures::stream::iter(begin);
        Ok(Response::new(match &self.speech {
            Speech::Answers => pieces.chain(futures::stream::iter([Ok(last)])).boxed(),
            Speech::Refuses(status) => return Err(status.clone()),
            Speech::BreaksOff => pieces
                .chain(futures::stream::iter([Err(Status::unavailable("the worker is about to end"))]))
                .boxed(),
            Speech::Hesitates => pieces.chain(futures::stream::pending()).boxed(),
        }))
    }

    async fn generate(&self, _: Request<GenerateRequest>) -> Result<Response<Pieces>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn tokenize(&self, _: Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn detokenize(
        &self,
        _: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

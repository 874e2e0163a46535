//! `belay.inference.v1.Inference`: the workers' own service, with hold, retry and resume in between.
use std::{pin::Pin, time::Duration};

use belay_proto::inference::{
    ChatRequest, DetokenizeRequest, DetokenizeResponse, GenerateRequest, GenerateResponse, TokenizeRequest,
    TokenizeResponse, inference_server::Inference,
};
use futures::{Stream, StreamExt};
use prost::Message;
use tonic::{Code, Request, Response, Status};

use crate::{
    life::{Call, Caller, Choices, Dispatcher, Failure},
    measure::Work,
    observe::Record,
    request_id::RequestId,
    routing::Route,
    serve::App,
};

use super::{caller, code_name, deadline, request_id};

/// See the module.
#[derive(Clone, Debug)]
pub struct Service {
    app: App,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

impl Service {
    /// Of this gateway.
    pub fn new(app: App) -> Self {
        Self { app }
    }

    /// The message's id wins over the header's.
    fn serve(
        &self,
        mut call: Call,
        caller: &Caller,
        timeout: Option<Duration>,
        header: Option<RequestId>,
        path: &'static str,
    ) -> Result<Response<Pieces>, Status> {
        if call.request_id().is_empty() {
            call.set_request_id(&header.unwrap_or_else(RequestId::new).0);
        }
        if let Some(timeout) = timeout.into_iter().chain(call.timeout()).min() {
            call.set_timeout(timeout);
        }
        let id = RequestId(call.request_id().to_owned());
        let mut record = Record::begin(&self.app.dispatcher.metrics, &self.app.flights, id, path);
        let answers = call.answers();
        record.answers_per_prompt(answers);
        let choices = Choices::new(&self.app.dispatcher, caller, vec![call]).map_err(|failure| {
            let status = Status::from(failure);
            record.outcome(code_name(status.code()));
            status
        })?;
        record.model(choices.route());
        let mut left = answers;
        let pieces = choices.into_stream().map(move |piece| match piece {
            Ok(piece) => {
                record.piece(&piece);
                left -= u32::from(piece.finish_reason != 0);
                if left == 0 {
                    record.outcome(code_name(Code::Ok));
                }
                Ok(piece)
            }
            Err(failure) => {
                let status = Status::from(failure);
                record.outcome(code_name(status.code()));
                Err(status)
            }
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    /// A call with one answer about a model; the record sees how it ends.
    async fn recorded<T>(
        &self,
        id: &RequestId,
        path: &'static str,
        asked: (&Caller, &str, usize),
        ask: impl AsyncFnOnce(Route) -> Result<T, Failure>,
    ) -> Result<Response<T>, Status> {
        let Dispatcher { metrics, .. } = &self.app.dispatcher;
        let mut record = Record::begin(metrics, &self.app.flights, id.clone(), path);
        let (caller, name, bytes) = asked;
        let answer = match self.app.dispatcher.admit(caller, name, Work::of_bytes(bytes)) {
            Ok(route) => {
                record.model(&route);
                ask(route).await
            }
            Err(failure) => Err(failure),
        };
        let answer = answer.map_err(Status::from);
        record.outcome(code_name(answer.as_ref().err().map_or(Code::Ok, Status::code)));
        answer.map(Response::new)
    }
}

#[tonic::async_trait]
impl Inference for Service {
    type GenerateStream = Pieces;
    type ChatStream = Pieces;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Pieces>, Status> {
        let header = request.extensions().get::<RequestId>().cloned();
        let timeout = deadline::of(request.metadata());
        let caller = caller(&request);
        let call = Call::Generate(request.into_inner());
        self.serve(call, &caller, timeout, header, "/belay.inference.v1.Inference/Generate")
    }

    async fn chat(&self, request: Request<ChatRequest>) -> Result<Response<Pieces>, Status> {
        let header = request.extensions().get::<RequestId>().cloned();
        let timeout = deadline::of(request.metadata());
        let caller = caller(&request);
        let call = Call::Chat(request.into_inner());
        self.serve(call, &caller, timeout, header, "/belay.inference.v1.Inference/Chat")
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let (id, caller) = (request_id(&request), caller(&request));
        let mut request = request.into_inner();
        let name = std::mem::take(&mut request.model);
        let asked = (&caller, name.as_str(), request.encoded_len());
        let path = "/belay.inference.v1.Inference/Tokenize";
        self.recorded(&id, path, asked, async |route| {
            self.app.dispatcher.tokenize(&route, request, &id.0).await
        })
        .await
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let (id, caller) = (request_id(&request), caller(&request));
        let mut request = request.into_inner();
        let name = std::mem::take(&mut request.model);
        let asked = (&caller, name.as_str(), request.encoded_len());
        let path = "/belay.inference.v1.Inference/Detokenize";
        self.recorded(&id, path, asked, async |route| {
            self.app.dispatcher.detokenize(&route, request, &id.0).await
        })
        .await
    }
}

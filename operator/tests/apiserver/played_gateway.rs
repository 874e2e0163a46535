//! Plays a gateway: a real gRPC server of the measurements service, whose numbers the tests set.
use std::sync::{Arc, Mutex};

use belay_proto::gateway::{
    Model, ReadRequest, ReadResponse, Revision,
    measurements_server::{Measurements, MeasurementsServer},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// The played gateway.
#[derive(Clone)]
pub struct PlayedGateway {
    models: Arc<Mutex<Vec<Model>>>,
    address: String,
}

#[tonic::async_trait]
impl Measurements for PlayedGateway {
    async fn read(&self, _: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        let models = self.models.lock().unwrap().clone();
        Ok(Response::new(ReadResponse { instance: "played".into(), models }))
    }
}

impl PlayedGateway {
    /// Starts to answer.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let this = Self { models: Arc::default(), address };
        let service = MeasurementsServer::new(this.clone());
        let incoming = TcpListenerStream::new(listener);
        let serving = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        drop(tokio::spawn(async move { serving.await.unwrap() }));
        this
    }

    /// Where it answers.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sets what it tells of a deployment: of other ones nothing.
    pub fn tell(&self, namespace: &str, deployment: &str, model: Model) {
        let revisions = vec![Revision { revision: "r".into(), ..Revision::default() }];
        let (name, deployment) = (deployment.to_owned(), deployment.to_owned());
        let model = Model { name, namespace: namespace.to_owned(), deployment, revisions, ..model };
        *self.models.lock().unwrap() = vec![model];
    }
}

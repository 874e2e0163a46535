//! Plays a gateway: a real gRPC server that tells what it has measured, which is what the tests say.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use belay_proto::gateway::{
    Histogram, Model, ReadRequest, ReadResponse, Revision,
    measurements_server::{Measurements, MeasurementsServer},
};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// Where all deployments are whose requests are counted here.
const NAMESPACE: &str = "default";

/// How a revision does, from now on.
#[derive(Clone, Copy, Debug)]
pub struct Conduct {
    /// Of ten requests, how many fail.
    pub failing: u64,
    /// Bucket of all its times.
    pub bucket: usize,
}

/// As it should be.
pub const GOOD: Conduct = Conduct { failing: 0, bucket: 50 };

#[derive(Default)]
struct State {
    /// By deployment and revision.
    conducts: BTreeMap<(String, String), (Conduct, Revision)>,
    /// Told as it is.
    told: Vec<Model>,
}

/// See the module.
#[derive(Clone)]
pub struct PlayedGateway {
    state: Arc<Mutex<State>>,
    address: String,
}

impl PlayedGateway {
    /// Starts to answer.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let gateway = Self { state: Arc::default(), address };
        let server =
            tonic::transport::Server::builder().add_service(MeasurementsServer::new(gateway.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        gateway
    }

    /// Where it answers.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on each look finds ten requests more of this revision.
    pub fn conduct(&self, deployment: &str, revision: &str, conduct: Conduct) {
        let key = (deployment.to_owned(), revision.to_owned());
        let mut state = self.state.lock().unwrap();
        let known = state.conducts.entry(key).or_insert_with(|| {
            let times = Histogram { first: 0.0005, factor: 1.1, counts: vec![0; 150], sum: 0.0 };
            let revision = Revision {
                revision: revision.to_owned(),
                first_token: Some(times.clone()),
                inter_token: Some(times),
                ..Revision::default()
            };
            (conduct, revision)
        });
        known.0 = conduct;
    }

    /// From now on it tells just this of a deployment.
    pub fn tell(&self, namespace: &str, deployment: &str, model: Model) {
        let revisions = vec![Revision { revision: "r".into(), ..Revision::default() }];
        let (name, deployment) = (deployment.to_owned(), deployment.to_owned());
        let model = Model { name, namespace: namespace.to_owned(), deployment, revisions, ..model };
        self.state.lock().unwrap().told = vec![model];
    }

    /// No requests any more.
    pub fn rest(&self) {
        self.state.lock().unwrap().conducts.clear();
    }
}

#[tonic::async_trait]
impl Measurements for PlayedGateway {
    async fn read(&self, _: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        let mut models: BTreeMap<String, Model> = BTreeMap::new();
        let mut state = self.state.lock().unwrap();
        for ((deployment, _), (conduct, counted)) in &mut state.conducts {
            counted.failed += conduct.failing;
            counted.served += 10 - conduct.failing;
            for times in [&mut counted.first_token, &mut counted.inter_token].into_iter().flatten() {
                times.counts[conduct.bucket] += 10 - conduct.failing;
            }
            let model = models.entry(deployment.clone()).or_insert_with(|| Model {
                name: deployment.clone(),
                namespace: NAMESPACE.to_owned(),
                deployment: deployment.clone(),
                ..Model::default()
            });
            model.revisions.push(counted.clone());
        }
        Ok(Response::new(ReadResponse {
            instance: "played".into(),
            models: models.into_values().chain(state.told.clone()).collect(),
        }))
    }
}

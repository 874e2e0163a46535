//! Text to tokens and back: any worker of the model will do.
use belay_proto::inference::{
    DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse,
    inference_client::InferenceClient,
};
use tonic::transport::Channel;

use crate::routing::Route;

use super::{Dispatcher, Failure, Purpose};

/// Largest answer, bytes: ids and texts of a prompt as large as bodies may be.
const LARGEST: usize = 256 << 20;

fn client(channel: Channel) -> InferenceClient<Channel> {
    InferenceClient::new(channel).max_decoding_message_size(LARGEST)
}

impl Dispatcher {
    /// Token ids; the request's model is the route's. `id` is the request's for logs.
    pub async fn tokenize(
        &self,
        route: &Route,
        mut request: TokenizeRequest,
        id: &str,
    ) -> Result<TokenizeResponse, Failure> {
        request.model.clone_from(&route.target.model);
        let ask = async |channel: Channel| Ok(client(channel).tokenize(request.clone()).await?.into_inner());
        self.unary(route, id, Purpose::Aside, ask).await
    }

    /// Text; the request's model is the route's. `id` is the request's for logs.
    pub async fn detokenize(
        &self,
        route: &Route,
        mut request: DetokenizeRequest,
        id: &str,
    ) -> Result<DetokenizeResponse, Failure> {
        request.model.clone_from(&route.target.model);
        let ask =
            async |channel: Channel| Ok(client(channel).detokenize(request.clone()).await?.into_inner());
        self.unary(route, id, Purpose::Aside, ask).await
    }
}

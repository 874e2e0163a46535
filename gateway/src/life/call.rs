//! The worker call of a request.
use belay_proto::inference::{
    ChatRequest, GenerateRequest, GenerateResponse, Sampling, inference_client::InferenceClient,
};
use tonic::{Status, Streaming, transport::Channel};
use uuid::Uuid;

/// One of the two ways to ask a worker for text.
#[derive(Clone, Debug)]
pub enum Call {
    /// Continue a prompt.
    Generate(GenerateRequest),
    /// Answer a conversation.
    Chat(ChatRequest),
}

impl Call {
    /// Served model name.
    pub fn model(&self) -> &str {
        match self {
            Self::Generate(request) => &request.model,
            Self::Chat(request) => &request.model,
        }
    }

    /// Names the model.
    pub fn set_model(&mut self, name: String) {
        match self {
            Self::Generate(request) => request.model = name,
            Self::Chat(request) => request.model = name,
        }
    }

    /// Id for logs here and at the worker.
    pub fn set_request_id(&mut self, id: &str) {
        match self {
            Self::Generate(request) => request.request_id = id.to_owned(),
            Self::Chat(request) => request.request_id = id.to_owned(),
        }
    }

    /// Id for logs.
    pub fn request_id(&self) -> &str {
        match self {
            Self::Generate(request) => &request.request_id,
            Self::Chat(request) => &request.request_id,
        }
    }

    /// Draws a seed if there is none. Whoever continues this request must sample as the first worker did.
    pub fn fix_seed(&mut self) {
        let sampling = match self {
            Self::Generate(request) => &mut request.sampling,
            Self::Chat(request) => &mut request.sampling,
        };
        sampling.get_or_insert_with(Sampling::default).seed.get_or_insert_with(draw);
    }

    /// Tokens produced so far, by whoever.
    pub fn produced(&mut self) -> &mut Vec<u32> {
        match self {
            Self::Generate(request) => &mut request.resume_ids,
            Self::Chat(request) => &mut request.resume_ids,
        }
    }

    /// Asks a worker. Ends when the worker has accepted or refused.
    pub async fn ask(&self, channel: Channel, largest: usize) -> Result<Streaming<GenerateResponse>, Status> {
        let mut client = InferenceClient::new(channel).max_decoding_message_size(largest);
        let response = match self {
            Self::Generate(request) => client.generate(request.clone()).await?,
            Self::Chat(request) => client.chat(request.clone()).await?,
        };
        Ok(response.into_inner())
    }
}

/// 64 random bits: the halves of a random UUID folded so that its fixed bits meet random ones.
fn draw() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_seed_is_kept_and_a_missing_one_is_drawn_once() {
        let mut call = Call::Generate(GenerateRequest::default());
        let seed = |call: &Call| match call {
            Call::Generate(request) => request.sampling.as_ref().and_then(|sampling| sampling.seed),
            Call::Chat(_) => None,
        };
        call.fix_seed();
        let drawn = seed(&call);
        assert!(drawn.is_some());
        call.fix_seed();
        assert_eq!(seed(&call), drawn);
        assert_ne!(draw(), draw());
    }
}

//! The worker call of a request.
use std::time::Duration;

use belay_proto::inference::{
    ChatRequest, GenerateRequest, GenerateResponse, Options, Sampling, inference_client::InferenceClient,
};
use belay_telemetry::Span;
use prost::Message;
use tonic::{Status, Streaming, metadata::AsciiMetadataKey, transport::Channel};
use uuid::Uuid;

/// Largest piece of an answer, bytes: log-probabilities of a whole prompt come in one.
const LARGEST_PIECE: usize = 64 << 20;

/// One of the two ways to ask a worker for text.
#[derive(Clone, Debug)]
pub enum Call {
    /// Continue a prompt.
    Generate(GenerateRequest),
    /// Answer a conversation.
    Chat(ChatRequest),
}

/// The same part of either request.
macro_rules! part {
    ($call:expr, $field:ident) => {
        match $call {
            Call::Generate(request) => &mut request.$field,
            Call::Chat(request) => &mut request.$field,
        }
    };
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
        *part!(self, model) = name;
    }

    /// Id for logs here and at the worker.
    pub fn set_request_id(&mut self, id: &str) {
        *part!(self, request_id) = id.to_owned();
    }

    /// Id for logs.
    pub fn request_id(&self) -> &str {
        match self {
            Self::Generate(request) => &request.request_id,
            Self::Chat(request) => &request.request_id,
        }
    }

    fn sampling(&mut self) -> &mut Sampling {
        part!(self, sampling).get_or_insert_with(Sampling::default)
    }

    fn options(&mut self) -> &mut Options {
        part!(self, options).get_or_insert_with(Options::default)
    }

    /// Draws a seed if there is none. Whoever continues this request must sample as the first worker did.
    pub fn fix_seed(&mut self) {
        self.sampling().seed.get_or_insert_with(draw);
    }

    /// How many answers are asked for.
    pub fn answers(&self) -> u32 {
        let sampling = match self {
            Self::Generate(request) => &request.sampling,
            Self::Chat(request) => &request.sampling,
        };
        sampling.as_ref().and_then(|sampling| sampling.n).unwrap_or(1)
    }

    /// Answer `index` of several, as a call of its own. The seed must be fixed.
    pub fn answer(&self, index: u32) -> Self {
        let mut call = self.clone();
        let id = format!("{}-{index}", call.request_id());
        call.set_request_id(&id);
        let sampling = call.sampling();
        sampling.n = None;
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(u64::from(index)));
        call
    }

    /// Longest time that the client gives the request from now on.
    pub fn timeout(&self) -> Option<Duration> {
        let options = match self {
            Self::Generate(request) => &request.options,
            Self::Chat(request) => &request.options,
        };
        options.as_ref().and_then(|options| options.timeout_milliseconds).map(Duration::from_millis)
    }

    /// As [`Self::timeout`]; whole milliseconds, at least one.
    pub fn set_timeout(&mut self, timeout: Duration) {
        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        self.options().timeout_milliseconds = Some(milliseconds);
    }

    /// Tokens produced so far, by whoever.
    pub fn produced(&mut self) -> &mut Vec<u32> {
        part!(self, resume_ids)
    }

    /// Bytes on the wire, which is about what a copy of it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Generate(request) => request.encoded_len(),
            Self::Chat(request) => request.encoded_len(),
        }
    }

    /// Asks a worker. Ends when the worker has accepted or refused.
    pub async fn ask(&self, channel: Channel, span: &Span) -> Result<Streaming<GenerateResponse>, Status> {
        let mut client = InferenceClient::new(channel).max_decoding_message_size(LARGEST_PIECE);
        let response = match self {
            Self::Generate(request) => client.generate(traced(request.clone(), span)).await?,
            Self::Chat(request) => client.chat(traced(request.clone(), span)).await?,
        };
        Ok(response.into_inner())
    }
}

/// A call below this span.
fn traced<T>(message: T, span: &Span) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    span.inject(|key, value| {
        if let (Ok(key), Ok(value)) = (key.parse::<AsciiMetadataKey>(), value.parse()) {
            request.metadata_mut().insert(key, value);
        }
    });
    request
}

/// 64 random bits: the halves of a random UUID folded so that its fixed bits meet random ones.
fn draw() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(call: &Call) -> Option<u64> {
        match call {
            Call::Generate(request) => request.sampling.as_ref().and_then(|sampling| sampling.seed),
            Call::Chat(_) => None,
        }
    }

    #[test]
    fn a_given_seed_is_kept_and_a_missing_one_is_drawn_once() {
        let mut call = Call::Generate(GenerateRequest::default());
        call.fix_seed();
        let drawn = seed(&call);
        assert!(drawn.is_some());
        call.fix_seed();
        assert_eq!(seed(&call), drawn);
        assert_ne!(draw(), draw());
    }

    #[test]
    fn answer_i_of_n_draws_with_seed_plus_i() {
        let sampling = Sampling { n: Some(3), seed: Some(u64::MAX), ..Sampling::default() };
        let call = Call::Generate(GenerateRequest {
            request_id: "r".into(),
            sampling: Some(sampling),
            ..GenerateRequest::default()
        });
        assert_eq!(call.answers(), 3);
        let answers: Vec<Call> = (0..3).map(|index| call.answer(index)).collect();
        assert_eq!(answers.iter().map(seed).collect::<Vec<_>>(), [Some(u64::MAX), Some(0), Some(1)]);
        assert!(answers.iter().all(|answer| answer.answers() == 1));
        assert_eq!(answers[2].request_id(), "r-2");
    }
}

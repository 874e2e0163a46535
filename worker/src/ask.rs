//! The one shape of a request behind every service, and what of it is decided before the engine sees it.

use std::time::{Duration, Instant};

use belay_engine::chat::{Conversation, Defaults};
use belay_proto::inference::generate_request::Prompt as WirePrompt;
use belay_proto::inference::{self, ChatRequest, GenerateRequest};
use belay_telemetry::Span;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::grpc::errors;
use crate::translate;

/// Most answers to one prompt.
pub const MAX_ANSWERS: u32 = 128;

/// A request from any of the services.
pub struct Ask {
    /// Model asked for, or empty.
    pub model: String,
    /// For logs and traces.
    pub request_id: String,
    /// What to go on with.
    pub prompt: Prompt,
    /// Sampling and stop conditions.
    pub sampling: inference::Sampling,
    /// Handling, and what comes back beside the text.
    pub options: inference::Options,
    /// Tokens already produced elsewhere.
    pub resume: Vec<u32>,
    /// When the caller gives up.
    pub deadline: Option<Instant>,
    /// Its trace.
    pub span: Span,
}

/// What to go on with.
pub enum Prompt {
    /// Token ids.
    Ids(Vec<u32>),
    /// Text; special tokens written out, nothing is added.
    Text(String),
    /// A conversation, to be written in the model's chat format.
    Chat(Box<Chat>),
}

/// A conversation to go on with.
pub struct Chat {
    /// Decides the prompt.
    pub conversation: Conversation,
    /// The reply has one call at most.
    pub single_call: bool,
}

impl Ask {
    /// Reads a Generate request.
    ///
    /// # Errors
    /// INVALID_ARGUMENT naming the field.
    pub fn generate(request: GenerateRequest, metadata: &MetadataMap) -> Result<Self, Status> {
        let prompt = match request.prompt {
            Some(WirePrompt::Text(text)) => Prompt::Text(text),
            Some(WirePrompt::Ids(ids)) => Prompt::Ids(ids.ids),
            None => return Err(errors::invalid("prompt", "text or ids must be set")),
        };
        let options = request.options.unwrap_or_default();
        Ok(Self {
            model: request.model,
            request_id: named(request.request_id),
            prompt,
            sampling: request.sampling.unwrap_or_default(),
            deadline: deadline(&options, call_deadline(metadata)),
            options,
            resume: request.resume_ids,
            span: span("generate", metadata),
        })
    }

    /// Reads a Chat request.
    ///
    /// # Errors
    /// INVALID_ARGUMENT naming the field.
    pub fn chat(
        mut request: ChatRequest,
        defaults: Defaults,
        metadata: &MetadataMap,
    ) -> Result<Self, Status> {
        let options = request.options.take().unwrap_or_default();
        let (model, request_id) =
            (std::mem::take(&mut request.model), std::mem::take(&mut request.request_id));
        let (sampling, resume) = (request.sampling.take(), std::mem::take(&mut request.resume_ids));
        let single_call = request.tool_choice.as_ref().is_some_and(|choice| choice.single);
        let conversation = translate::conversation(request, &options, defaults)?;
        Ok(Self {
            model,
            request_id: named(request_id),
            prompt: Prompt::Chat(Box::new(Chat { conversation, single_call })),
            sampling: sampling.unwrap_or_default(),
            deadline: deadline(&options, call_deadline(metadata)),
            options,
            resume,
            span: span("chat", metadata),
        })
    }

    /// How many answers are wanted.
    ///
    /// # Errors
    /// INVALID_ARGUMENT: none, more than `most`, or several that go on with one.
    pub fn answers(&self, most: u32) -> Result<u32, Status> {
        let n = self.sampling.n.unwrap_or(1);
        if !(1..=most).contains(&n) {
            return Err(errors::invalid("n", format!("must be from 1 to {most}, found {n}")));
        }
        if n > 1 && !self.resume.is_empty() {
            return Err(errors::invalid("resume_ids", format!("only with n = 1, found n = {n}")));
        }
        Ok(n)
    }
}

/// A span for a call, below the caller's if that has one.
#[must_use]
pub fn span(name: &'static str, metadata: &MetadataMap) -> Span {
    Span::server(name, |key| metadata.get(key)?.to_str().ok())
}

/// The given id, or a new one.
#[must_use]
pub fn named(request_id: String) -> String {
    if request_id.is_empty() { uuid::Uuid::new_v4().to_string() } else { request_id }
}

/// The sooner of the request's own time and the call's.
#[must_use]
pub fn deadline(options: &inference::Options, call: Option<Instant>) -> Option<Instant> {
    // a time too far away to be written down is none
    let own =
        options.timeout_milliseconds.and_then(|time| Instant::now().checked_add(Duration::from_millis(time)));
    [own, call].into_iter().flatten().min()
}

/// When the caller gives up, by the header `grpc-timeout`.
#[must_use]
pub fn call_deadline(metadata: &MetadataMap) -> Option<Instant> {
    Instant::now().checked_add(grpc_timeout(metadata.get("grpc-timeout")?.to_str().ok()?)?)
}

/// A duration as gRPC writes it: up to eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sooner_of_both_times_counts() {
        let mut metadata = MetadataMap::new();
        let options = |milliseconds| inference::Options {
            timeout_milliseconds: milliseconds,
            ..inference::Options::default()
        };
        assert_eq!(deadline(&options(None), call_deadline(&metadata)), None);
        let left =
            |options, metadata: &_| deadline(&options, call_deadline(metadata)).unwrap() - Instant::now();
        assert!(left(options(Some(5_000)), &metadata) <= Duration::from_secs(5));
        metadata.insert("grpc-timeout", "2S".parse().unwrap());
        assert!(left(options(Some(5_000)), &metadata) <= Duration::from_secs(2));
        assert!(left(options(Some(1)), &metadata) <= Duration::from_millis(1));
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(grpc_timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(grpc_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "S", "5", "5x", "-5S", "999999999S", "５S", "5µ"] {
            assert_eq!(grpc_timeout(wrong), None, "{wrong:?}");
        }
    }
}

//! Asks those who can answer.
use std::io::Write;

use anyhow::{Context as _, Result, bail};
use belay_proto::inference::{ChatRequest, GenerateResponse};
use tonic::{Code, Request, Status, Streaming, metadata::MetadataValue};

use super::{show::Answer, source::Source, talk::Talk};
use crate::{picture::units::clean, terminal::output::Output, workers::of_status};

/// A conversation, and who is asked.
pub struct Session {
    sources: Vec<Source>,
    api_key: Option<String>,
    talk: Talk,
    output: Output,
}

impl Session {
    /// With these, the best first. The key is for gateways.
    pub fn new(sources: Vec<Source>, api_key: Option<String>, talk: Talk, output: Output) -> Self {
        Self { sources, api_key, talk, output }
    }

    /// Who is asked next, for people.
    pub fn partner(&self) -> &str {
        self.sources.first().map_or("", |source| source.name.as_str())
    }

    /// Asks, and writes the answer as it comes, until `stop`. What was said of it then is kept as the answer.
    ///
    /// # Errors
    /// When nobody answers, the answer breaks off, or nobody reads it. The question is not kept then.
    pub async fn answer(
        &mut self,
        question: &str,
        stop: impl Future<Output = ()>,
        to: &mut impl Write,
    ) -> Result<()> {
        let mut answer = Answer::new(self.output.coloured, self.output.is_terminal);
        let mut stop = std::pin::pin!(stop);
        let request = self.talk.ask(question);
        let opened = tokio::select! {
            opened = self.open(&request) => Some(opened?),
            () = &mut stop => None,
        };
        let mut stopped = opened.is_none();
        if let Some((name, mut stream, first)) = opened {
            if let Some(piece) = first {
                answer.take(&piece, to)?;
            }
            loop {
                let piece = tokio::select! {
                    piece = stream.message() => piece,
                    () = &mut stop => {
                        stopped = true;
                        break;
                    }
                };
                match piece {
                    Ok(Some(piece)) => answer.take(&piece, to)?,
                    Ok(None) => break,
                    Err(status) => {
                        answer.end(to)?;
                        bail!("{name}: the answer breaks off: {}", words(&status));
                    }
                }
            }
        }
        answer.end(to)?;
        if self.output.is_terminal {
            let summary = answer.summary(stopped);
            let text = if self.output.coloured { summary.coloured() } else { summary.plain() };
            writeln!(to, "{text}")?;
        }
        if !(answer.text.is_empty() && answer.reasoning.is_empty()) {
            self.talk.note(question, &answer.text, &answer.reasoning);
        }
        Ok(())
    }

    /// Asks one after the other until somebody begins to answer; goes on with that one.
    async fn open(
        &mut self,
        request: &ChatRequest,
    ) -> Result<(String, Streaming<GenerateResponse>, Option<GenerateResponse>)> {
        let mut why = vec![];
        for index in 0..self.sources.len() {
            let Some(source) = self.sources.get_mut(index) else { break };
            let mut asked = Request::new(request.clone());
            if let (Some(key), true) = (&self.api_key, source.is_gateway) {
                let value = MetadataValue::try_from(format!("Bearer {key}"));
                asked.metadata_mut().insert("authorization", value.context("the API key")?);
            }
            let name = source.name.clone();
            let begun = async {
                let mut stream = source.client.chat(asked).await?.into_inner();
                let first = stream.message().await?;
                Ok((stream, first))
            };
            match begun.await {
                Ok((stream, first)) => {
                    self.sources.swap(0, index);
                    return Ok((name, stream, first));
                }
                Err(status) => {
                    why.push(format!("{name}: {}", words(&status)));
                    if !goes_elsewhere(&status) {
                        break;
                    }
                }
            }
        }
        bail!("{}", why.join("; "))
    }
}

/// Whether another one may do better.
fn goes_elsewhere(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::ResourceExhausted | Code::Cancelled)
}

/// Why there is no answer, in words that help.
fn words(status: &Status) -> String {
    let message = clean(status.message());
    match status.code() {
        Code::Unauthenticated => format!("it asks for an API key (--api-key, or BELAY_API_KEY): {message}"),
        Code::PermissionDenied => format!("the API key does not allow it: {message}"),
        Code::ResourceExhausted => format!("it has too much to do: {message}"),
        Code::DeadlineExceeded => format!("it took too long: {message}"),
        Code::Unavailable | Code::Unknown | Code::Internal => clean(&of_status(status).to_string()),
        _ => message,
    }
}

//! The fixed mix of requests: the same list for the same seed.

use anyhow::{Context, Result};
use bytes::Bytes;
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde::Deserialize;
use serde_json::{Value, json};

/// Conversations of the trained fixture, with their tokens.
const CONVERSATIONS: &str = include_str!("../../../fixtures/models/nano/eval.jsonl");

/// End-of-sequence, which no answer may contain: a token without text would make no event.
pub const END_OF_SEQUENCE: u32 = 1;
/// Special tokens come first in the vocabulary; what is drawn is text.
const FIRST_TEXT_TOKEN: u32 = 15;
const VOCABULARY: u32 = 2048;

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

impl Endpoint {
    /// Path of the URL.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

/// One request, greedy, of exactly so many output tokens.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it stands for.
    pub kind: &'static str,
    /// Where it goes.
    pub endpoint: Endpoint,
    /// JSON of the streamed request.
    pub body: Bytes,
    /// The tokens that the server feeds.
    pub prompt_ids: Vec<u32>,
    /// Tokens of the answer.
    pub output_tokens: u32,
}

/// A conversation, its tokens known.
#[derive(Clone, Debug, Deserialize)]
pub struct Prompt {
    /// The conversation.
    pub messages: Vec<Value>,
    /// Its tokens.
    pub prompt_ids: Vec<u32>,
    skill: String,
    thinking: bool,
}

impl Prompt {
    /// Conversations that need nothing but messages, at most `longest` tokens each.
    ///
    /// # Errors
    /// The fixture can't be read.
    pub fn conversations(longest: usize) -> Result<Vec<Self>> {
        let all: Vec<Self> = CONVERSATIONS
            .lines()
            .map(|line| serde_json::from_str(line).context("eval.jsonl"))
            .collect::<Result<_>>()?;
        let plain = |prompt: &Self| {
            let needs_more = prompt.thinking || prompt.skill.starts_with("tool") || prompt.skill == "json";
            !needs_more && prompt.prompt_ids.len() <= longest
        };
        Ok(all.into_iter().filter(plain).collect())
    }
}

/// Builds requests for one model.
#[derive(Debug)]
pub struct Mix {
    model: String,
    conversations: Vec<Prompt>,
    random: Pcg64Mcg,
    /// What every request of kind `prefix` begins with.
    prefix: Vec<u32>,
    /// Lengths are divided by this.
    shorter: usize,
}

impl Mix {
    /// For a model with nano's tokenizer. Prompts and answers are shorter by the factor `shorter`, chats' prompts are
    /// as they are.
    ///
    /// # Errors
    /// The fixture can't be read.
    pub fn new(model: &str, seed: u64, shorter: usize) -> Result<Self> {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let prefix = text_tokens(&mut random, 256 / shorter);
        let conversations = Prompt::conversations(64)?;
        Ok(Self { model: model.to_owned(), conversations, random, prefix, shorter })
    }

    /// The next requests. Of eight, four are short chats, two begin with a common text, one has a long prompt and one a
    /// long answer.
    pub fn take(&mut self, count: usize) -> Vec<Request> {
        (0..count).map(|number| self.request(number)).collect()
    }

    fn request(&mut self, number: usize) -> Request {
        let shorter = self.shorter;
        let tokens = |count: usize| (count / shorter) as u32;
        match number % 8 {
            0 | 2 | 4 | 6 => self.chat(tokens(32)),
            1 | 5 => {
                let own = (16 + self.random.next_u32() as usize % 48) / shorter;
                let ids = [self.prefix.clone(), text_tokens(&mut self.random, own)].concat();
                self.completion("prefix", ids, tokens(24))
            }
            3 => {
                let ids = text_tokens(&mut self.random, 512 / shorter);
                self.completion("long prompt", ids, tokens(16))
            }
            _ => {
                let ids = text_tokens(&mut self.random, 16);
                self.completion("long answer", ids, tokens(128))
            }
        }
    }

    fn chat(&mut self, output_tokens: u32) -> Request {
        let at = self.random.next_u32() as usize % self.conversations.len();
        let prompt = &self.conversations[at];
        let mut body = self.body(output_tokens);
        body["messages"] = prompt.messages.clone().into();
        body["chat_template_kwargs"] = json!({ "thinking": false });
        let (endpoint, prompt_ids) = (Endpoint::Chat, prompt.prompt_ids.clone());
        Request { kind: "chat", endpoint, body: body.to_string().into(), prompt_ids, output_tokens }
    }

    fn completion(&self, kind: &'static str, prompt_ids: Vec<u32>, output_tokens: u32) -> Request {
        let mut body = self.body(output_tokens);
        body["prompt"] = json!(prompt_ids);
        let endpoint = Endpoint::Completions;
        Request { kind, endpoint, body: body.to_string().into(), prompt_ids, output_tokens }
    }

    fn body(&self, output_tokens: u32) -> Value {
        json!({
            "model": self.model, "temperature": 0, "max_tokens": output_tokens, "min_tokens": output_tokens,
            "stream": true, "stream_options": { "include_usage": true },
        })
    }
}

fn text_tokens(random: &mut Pcg64Mcg, count: usize) -> Vec<u32> {
    (0..count).map(|_| FIRST_TEXT_TOKEN + random.next_u32() % (VOCABULARY - FIRST_TEXT_TOKEN)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_requests() {
        let bodies = |seed| -> Vec<Bytes> {
            Mix::new("m", seed, 1).unwrap().take(40).into_iter().map(|request| request.body).collect()
        };
        assert_eq!(bodies(1), bodies(1));
        assert_ne!(bodies(1), bodies(2));
    }

    #[test]
    fn eight_requests_hold_every_kind() {
        let requests = Mix::new("m", 0, 1).unwrap().take(8);
        let count = |kind| requests.iter().filter(|request| request.kind == kind).count();
        assert_eq!(["chat", "prefix", "long prompt", "long answer"].map(count), [4, 2, 1, 1]);
        let prefixed: Vec<_> = requests.iter().filter(|request| request.kind == "prefix").collect();
        assert_eq!(prefixed[0].prompt_ids[..256], prefixed[1].prompt_ids[..256]);
        assert_ne!(prefixed[0].prompt_ids, prefixed[1].prompt_ids);
    }
}

//! What a request takes: an estimate, since the gateway has no tokenizer.
use belay_proto::inference::{ChatRequest, GenerateRequest, Sampling, generate_request::Prompt};

use crate::life::Call;

/// Bytes of UTF-8 text that count as one token. English has about four; Chinese has three bytes a character and fewer
/// than two characters a token, which is about the same.
const BYTES_PER_TOKEN: usize = 4;

/// Tokens that a chat format puts around each message.
const TOKENS_PER_MESSAGE: usize = 4;

/// Tokens of output that are expected at most, whatever the request allows: most requests allow much more than comes.
pub const MOST_EXPECTED_OUTPUT: u64 = 1024;

/// Tokens that a request takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Of the prompt, tokens that are continued included.
    pub prompt: u64,
    /// Still to be produced.
    pub output: u64,
}

impl Work {
    /// Of one answer to this call.
    pub fn of(call: &Call) -> Self {
        let (prompt, sampling, produced) = match call {
            Call::Generate(request) => (of_prompt(request), &request.sampling, request.resume_ids.len()),
            Call::Chat(request) => (of_chat(request), &request.sampling, request.resume_ids.len()),
        };
        let produced = produced as u64;
        let most = sampling.as_ref().and_then(most_tokens).unwrap_or(u64::MAX);
        let output = most.min(MOST_EXPECTED_OUTPUT).saturating_sub(produced).max(most.min(1));
        Self { prompt: prompt as u64 + produced, output }
    }

    /// Of all answers to these calls: each prompt once.
    pub fn of_all(calls: &[Call]) -> Self {
        calls.iter().fold(Self::default(), |all, call| {
            let one = Self::of(call);
            let output = one.output.saturating_mul(call.answers().into());
            Self { prompt: all.prompt.saturating_add(one.prompt), output: all.output.saturating_add(output) }
        })
    }

    /// Of something else, by its size.
    pub fn of_bytes(bytes: usize) -> Self {
        Self { prompt: of_bytes(bytes) as u64, output: 0 }
    }

    /// All tokens.
    pub fn total(self) -> u64 {
        self.prompt.saturating_add(self.output)
    }
}

fn most_tokens(sampling: &Sampling) -> Option<u64> {
    sampling.max_tokens.map(u64::from)
}

fn of_bytes(bytes: usize) -> usize {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

fn of_prompt(request: &GenerateRequest) -> usize {
    match &request.prompt {
        Some(Prompt::Text(text)) => of_bytes(text.len()),
        Some(Prompt::Ids(ids)) => ids.ids.len(),
        None => 0,
    }
}

fn of_chat(request: &ChatRequest) -> usize {
    let messages = request.messages.iter().map(|message| {
        let calls = message.tool_calls.iter().map(|call| call.name.len() + call.arguments.len());
        let bytes = message.content.len() + message.reasoning.len() + calls.sum::<usize>();
        of_bytes(bytes) + TOKENS_PER_MESSAGE
    });
    let functions = request.functions.iter().map(|function| of_bytes(function.len()));
    messages.sum::<usize>() + functions.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_proto::inference::{Message, TokenIds};

    fn generate(prompt: Prompt, max_tokens: Option<u32>, produced: usize) -> Work {
        let sampling = Some(Sampling { max_tokens, ..Sampling::default() });
        let resume_ids = vec![1; produced];
        let request =
            GenerateRequest { prompt: Some(prompt), sampling, resume_ids, ..GenerateRequest::default() };
        Work::of(&Call::Generate(request))
    }

    #[test]
    fn prompts_count_by_bytes_and_ids_by_number() {
        assert_eq!(generate(Prompt::Text("12345".into()), Some(7), 0), Work { prompt: 2, output: 7 });
        let ids = TokenIds { ids: vec![1, 2, 3] };
        assert_eq!(generate(Prompt::Ids(ids), Some(7), 0), Work { prompt: 3, output: 7 });
        let messages = vec![Message { content: "12345".into(), ..Message::default() }; 2];
        let chat = ChatRequest { messages, functions: vec!["{}".into()], ..ChatRequest::default() };
        assert_eq!(Work::of(&Call::Chat(chat)), Work { prompt: 13, output: MOST_EXPECTED_OUTPUT });
    }

    #[test]
    fn what_is_produced_already_must_be_read_again_and_need_not_come_again() {
        let of = |max, produced| generate(Prompt::Text(String::new()), max, produced);
        assert_eq!(of(Some(10), 4), Work { prompt: 4, output: 6 });
        assert_eq!(of(Some(100_000), 2000), Work { prompt: 2000, output: 1 }, "it is not over yet");
        assert_eq!(of(Some(0), 0).output, 0);
    }
}

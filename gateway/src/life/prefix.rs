//! How a prompt begins: what it has in common with others that a worker may have in its cache.
//!
//! Of a conversation that is everything up to the end of its first message from the user: all its turns have that in
//! common, and other conversations do not. Of a text it is the first [`TEXT_BYTES`], of token ids the first [`IDS`].
use belay_proto::inference::{ChatRequest, GenerateRequest, generate_request::Prompt};

use crate::routing::hash::Hasher;

use super::Call;

/// Bytes of a text that count.
pub const TEXT_BYTES: usize = 1024;

/// Token ids that count.
pub const IDS: usize = 256;

/// Bytes of a conversation that count, at most.
pub const CHAT_BYTES: usize = 64 << 10;

/// Hash of how the prompt of this call begins; `None` if there is no prompt.
pub fn prefix(call: &Call) -> Option<u64> {
    match call {
        Call::Generate(request) => of_text(request),
        Call::Chat(request) => of_chat(request),
    }
}

fn of_text(request: &GenerateRequest) -> Option<u64> {
    let mut hasher = salted(request.options.as_ref().map(|options| options.cache_salt.as_str()));
    match request.prompt.as_ref()? {
        Prompt::Text(text) => hasher.add(leading(text.as_bytes(), TEXT_BYTES)),
        Prompt::Ids(ids) => ids.ids.iter().take(IDS).for_each(|id| hasher.add(&id.to_le_bytes())),
    }
    Some(hasher.finish())
}

fn of_chat(request: &ChatRequest) -> Option<u64> {
    request.messages.first()?;
    let mut hasher = salted(request.options.as_ref().map(|options| options.cache_salt.as_str()));
    let mut left = CHAT_BYTES;
    let mut add = |text: &str| {
        let piece = leading(text.as_bytes(), left);
        left -= piece.len();
        hasher.add(piece);
    };
    request.functions.iter().for_each(|function| add(function));
    for message in &request.messages {
        add(&message.role);
        add(&message.content);
        if message.role == "user" {
            break;
        }
    }
    Some(hasher.finish())
}

/// Workers share nothing between salts.
fn salted(salt: Option<&str>) -> Hasher {
    let mut hasher = Hasher::default();
    hasher.add(salt.unwrap_or_default().as_bytes());
    hasher
}

fn leading(bytes: &[u8], most: usize) -> &[u8] {
    &bytes[..bytes.len().min(most)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_proto::inference::{Message, TokenIds};

    fn chat(messages: &[(&str, &str)]) -> Option<u64> {
        let message = |(role, content): &(&str, &str)| Message {
            role: (*role).into(),
            content: (*content).into(),
            ..Message::default()
        };
        let messages = messages.iter().map(message).collect();
        prefix(&Call::Chat(ChatRequest { messages, ..ChatRequest::default() }))
    }

    fn text(prompt: Prompt) -> Option<u64> {
        prefix(&Call::Generate(GenerateRequest { prompt: Some(prompt), ..GenerateRequest::default() }))
    }

    #[test]
    fn the_turns_of_a_conversation_begin_alike_and_no_other_does() {
        let first = chat(&[("system", "be kind"), ("user", "hi")]);
        let next = [("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "bye")];
        assert_eq!(chat(&next), first);
        assert_ne!(chat(&[("system", "be kind"), ("user", "ho")]), first);
        assert_ne!(chat(&[("system", "be rude"), ("user", "hi")]), first);
        assert_eq!(chat(&[]), None);
    }

    #[test]
    fn texts_and_ids_count_so_far() {
        let long = |end: &str| text(Prompt::Text("x".repeat(TEXT_BYTES) + end));
        assert_eq!(long("a"), long("b"));
        assert_ne!(text(Prompt::Text("a".into())), text(Prompt::Text("b".into())));
        let ids = |last: u32| text(Prompt::Ids(TokenIds { ids: [vec![1; IDS], vec![last]].concat() }));
        assert_eq!(ids(1), ids(2));
        assert_eq!(prefix(&Call::Generate(GenerateRequest::default())), None);
    }
}

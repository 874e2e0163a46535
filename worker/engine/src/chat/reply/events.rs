//! What a reply consists of.

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyEvent {
    /// What the model thinks.
    Reasoning(String),
    /// What it says.
    Content(String),
    /// It calls a tool.
    ToolCallBegin {
        /// Which call of the reply, from 0.
        index: usize,
        /// `call_` and 24 hexadecimal digits.
        id: String,
        /// Of the tool; the model may have made it up.
        name: String,
    },
    /// The next part of the arguments' JSON text.
    ToolCallArguments {
        /// Which call.
        index: usize,
        /// All parts of a call together are a JSON object.
        text: String,
    },
    /// The arguments are complete.
    ToolCallEnd {
        /// Which call.
        index: usize,
    },
}

/// Events of one piece of text; neighbours of the same kind are one event.
#[derive(Default)]
pub struct Events(Vec<ReplyEvent>);

impl Events {
    pub fn into_vec(self) -> Vec<ReplyEvent> {
        self.0
    }

    pub fn push(&mut self, event: ReplyEvent) {
        self.0.push(event);
    }

    pub fn reasoning(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(ReplyEvent::Reasoning(last)) => last.push_str(text),
            _ => self.0.push(ReplyEvent::Reasoning(text.into())),
        }
    }

    pub fn content(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(ReplyEvent::Content(last)) => last.push_str(text),
            _ => self.0.push(ReplyEvent::Content(text.into())),
        }
    }

    pub fn arguments(&mut self, of: usize, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(ReplyEvent::ToolCallArguments { index, text: last }) if *index == of => last.push_str(text),
            _ => self.0.push(ReplyEvent::ToolCallArguments { index: of, text: text.into() }),
        }
    }
}

/// Id of a call: 96 bits of the FNV-1a hash of request and index.
pub fn call_id(request_id: &str, index: usize) -> String {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let index = index.to_le_bytes();
    let bytes = request_id.bytes().chain(index);
    let hash = bytes.fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
    format!("call_{:024x}", hash >> 32)
}

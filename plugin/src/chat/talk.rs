//! What was said so far: pure.
use belay_proto::inference::{ChatRequest, Message, Sampling};

/// How answers are made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manner {
    /// What clients ask for.
    pub model: String,
    /// What the model is told first.
    pub system: Option<String>,
    /// Most tokens of an answer.
    pub max_tokens: Option<u32>,
    /// Chance; 0 is none.
    pub temperature: Option<f32>,
    /// Whether it reasons before it answers; `None`: as the deployment says.
    pub thinking: Option<bool>,
}

/// A conversation.
#[derive(Clone, Debug, Default)]
pub struct Talk {
    manner: Manner,
    turns: Vec<Message>,
}

impl Talk {
    /// Nothing was said yet.
    pub fn new(manner: Manner) -> Self {
        Self { manner, turns: vec![] }
    }

    /// The request for an answer to a question.
    pub fn ask(&self, question: &str) -> ChatRequest {
        let message = |role: &str, content: &str| Message {
            role: role.into(),
            content: content.into(),
            ..Message::default()
        };
        let system = self.manner.system.iter().map(|text| message("system", text));
        let turns = self.turns.iter().cloned().chain([message("user", question)]);
        ChatRequest {
            model: self.manner.model.clone(),
            messages: system.chain(turns).collect(),
            sampling: Some(Sampling {
                temperature: self.manner.temperature,
                max_tokens: self.manner.max_tokens,
                ..Sampling::default()
            }),
            thinking: self.manner.thinking,
            ..ChatRequest::default()
        }
    }

    /// Takes note of a question and its answer, complete or stopped.
    pub fn note(&mut self, question: &str, answer: &str, reasoning: &str) {
        let message = |role: &str, content: &str, reasoning: &str| Message {
            role: role.into(),
            content: content.into(),
            reasoning: reasoning.into(),
            ..Message::default()
        };
        self.turns.push(message("user", question, ""));
        self.turns.push(message("assistant", answer, reasoning));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_turns_come_along() {
        let manner = Manner { model: "nano".into(), system: Some("be brief".into()), ..Manner::default() };
        let mut talk = Talk::new(manner);
        talk.note("one?", "1", "hm");
        let request = talk.ask("two?");
        let told: Vec<(&str, &str)> = request
            .messages
            .iter()
            .map(|message| (message.role.as_str(), message.content.as_str()))
            .collect();
        assert_eq!(told, [("system", "be brief"), ("user", "one?"), ("assistant", "1"), ("user", "two?")]);
        assert_eq!(request.messages[2].reasoning, "hm");
        assert_eq!(talk.ask("again?").messages.len(), 4, "a question without an answer is not kept");
    }
}

//! Whole answers, collected from pieces.
use belay_proto::inference::{
    FinishReason, GenerateResponse, TokenLogprobs, ToolCallDelta, generate_response::StoppedBy,
};

use crate::{
    life::{Choices, Failure},
    observe::Record,
};

use super::Tally;

/// One whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// What was asked, if that was wanted.
    pub prompt_text: String,
    /// The tokens of the prompt, if wanted.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// The answer itself.
    pub text: String,
    /// What the model thought before.
    pub reasoning: String,
    /// What it calls.
    pub tool_calls: Vec<ToolCall>,
    /// Its tokens, if wanted.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What ended it.
    pub stopped_by: Option<StoppedBy>,
}

/// A call that the model makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// Made by the worker.
    pub id: String,
    /// Of the tool.
    pub name: String,
    /// JSON text, as far as the model got with it.
    pub arguments: String,
}

/// All answers to a request.
#[derive(Debug)]
pub struct Answers {
    /// By index.
    pub answers: Vec<Answer>,
    /// What they took.
    pub tally: Tally,
}

impl Answers {
    /// Reads to the end.
    pub async fn collect(
        choices: &mut Choices,
        first: Option<GenerateResponse>,
        answers_per_prompt: usize,
        record: &mut Record,
    ) -> Result<Self, Failure> {
        let mut all = Self { answers: Vec::new(), tally: Tally::new(answers_per_prompt) };
        let mut next = first;
        while let Some(piece) = next {
            record.piece(&piece);
            all.tally.piece(&piece);
            let index = piece.index as usize;
            if all.answers.len() <= index {
                all.answers.resize_with(index + 1, Answer::default);
            }
            all.answers[index].take(piece);
            next = choices.next().await.transpose()?;
        }
        Ok(all)
    }
}

impl Answer {
    fn take(&mut self, piece: GenerateResponse) {
        self.finish_reason = piece.finish_reason();
        self.prompt_text.push_str(&piece.prompt_text);
        self.prompt_logprobs.extend(piece.prompt_logprobs);
        self.text.push_str(&piece.text);
        self.reasoning.push_str(&piece.reasoning);
        self.logprobs.extend(piece.logprobs);
        for delta in piece.tool_calls {
            self.call(delta);
        }
        self.stopped_by = piece.stopped_by;
    }

    fn call(&mut self, delta: ToolCallDelta) {
        let index = delta.index as usize;
        // calls come in order, so that an index is at most one ahead
        if index >= self.tool_calls.len() {
            self.tool_calls.push(ToolCall::default());
        }
        let last = self.tool_calls.len() - 1;
        let call = &mut self.tool_calls[index.min(last)];
        call.id.push_str(&delta.id);
        call.name.push_str(&delta.name);
        call.arguments.push_str(&delta.arguments);
    }
}

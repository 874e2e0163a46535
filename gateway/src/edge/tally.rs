//! Tokens of a request with several answers.
use belay_proto::inference::{GenerateResponse, Usage};

/// Counts while the answers come; those to one prompt count the prompt once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    answers_per_prompt: usize,
    answers: Vec<Usage>,
}

impl Tally {
    /// Nothing yet. Answers to the same prompt are numbered in a row, so many of them.
    pub fn new(answers_per_prompt: usize) -> Self {
        Self { answers_per_prompt, answers: Vec::new() }
    }

    /// A piece of one answer. Its last one has the worker's own counts.
    pub fn piece(&mut self, piece: &GenerateResponse) {
        let index = piece.index as usize;
        if self.answers.len() <= index {
            self.answers.resize(index + 1, Usage::default());
        }
        let answer = &mut self.answers[index];
        let ids = u32::try_from(piece.ids.len()).unwrap_or(u32::MAX);
        answer.completion_tokens = answer.completion_tokens.saturating_add(ids);
        match &piece.usage {
            Some(usage) if piece.finish_reason != 0 => *answer = *usage,
            Some(usage) => {
                answer.prompt_tokens = usage.prompt_tokens;
                answer.cached_tokens = usage.cached_tokens;
            }
            None => {}
        }
    }

    /// All answers together. What of a prompt was cached is what its first answer found.
    pub fn total(&self) -> Usage {
        let mut total = Usage::default();
        for answers in self.answers.chunks(self.answers_per_prompt.max(1)) {
            let prompt_tokens = answers.iter().map(|usage| usage.prompt_tokens).max().unwrap_or(0);
            total.prompt_tokens = total.prompt_tokens.saturating_add(prompt_tokens);
            let cached_tokens = answers.first().map_or(0, |usage| usage.cached_tokens);
            total.cached_tokens = total.cached_tokens.saturating_add(cached_tokens);
            for usage in answers {
                total.completion_tokens = total.completion_tokens.saturating_add(usage.completion_tokens);
                total.reasoning_tokens = total.reasoning_tokens.saturating_add(usage.reasoning_tokens);
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_counts_once_and_every_answer_does() {
        let piece = |index, ids: &[u32], usage: Option<(u32, u32, u32)>, is_last: bool| GenerateResponse {
            index,
            ids: ids.to_vec(),
            finish_reason: i32::from(is_last),
            usage: usage.map(|(prompt_tokens, completion_tokens, cached_tokens)| Usage {
                prompt_tokens,
                completion_tokens,
                cached_tokens,
                reasoning_tokens: u32::from(is_last),
            }),
            ..GenerateResponse::default()
        };
        let mut tally = Tally::new(2);
        for piece in [
            piece(1, &[1], Some((5, 0, 4)), false),
            piece(0, &[], Some((5, 0, 3)), false),
            piece(3, &[1, 2], Some((7, 0, 0)), false),
        ] {
            tally.piece(&piece);
        }
        let so_far = Usage { prompt_tokens: 12, completion_tokens: 3, cached_tokens: 3, reasoning_tokens: 0 };
        assert_eq!(tally.total(), so_far);
        tally.piece(&piece(1, &[2], Some((5, 9, 4)), true));
        let resumed = Usage { completion_tokens: 11, reasoning_tokens: 1, ..so_far };
        assert_eq!(tally.total(), resumed, "the worker's count holds: it may have begun with resumed tokens");
    }
}

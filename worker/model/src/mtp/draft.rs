//! Guesses of the tokens after the next one.

use belay_backend::{Backend, Fabric, Rows};

use super::Mtp;
use crate::error::ForwardError;
use crate::forward::Model;
use crate::scratch::{HostTemporaries, Scratch, Temporaries};
use crate::state::State;
use crate::step::{Logits, Segment, Step};
use crate::trace::{NoTrace, Trace};

/// A sequence whose next token is known, and whose tokens after that are to be guessed.
pub struct Draft<'a> {
    /// The sequence so far. The guesses leave no trace in it, but the chance to rewind its last step is over.
    pub state: &'a mut State,
    /// The token that will be fed next.
    pub token: u32,
    /// How many guesses, at most [`Config::draft_tokens`](crate::Config::draft_tokens).
    pub count: usize,
}

impl<B: Backend> Model<B> {
    /// Appends the likeliest tokens behind each one's `token` to `guesses`, exactly as many as asked for, one sequence
    /// after the other. A guess is the same whatever else is in the call, and however the sequence was cut into steps.
    ///
    /// # Errors
    /// [`ForwardError`]; the states are then as they were before, and may be used.
    pub fn draft(
        &self,
        scratch: &mut Scratch<B>,
        drafts: &mut [Draft<'_>],
        fabric: &dyn Fabric,
        guesses: &mut Vec<u32>,
    ) -> Result<(), ForwardError> {
        self.draft_traced(scratch, drafts, fabric, guesses, &mut NoTrace)
    }

    /// [`Self::draft`], showing `trace` what is decided on the way.
    ///
    /// # Errors
    /// As [`Self::draft`].
    pub fn draft_traced(
        &self,
        scratch: &mut Scratch<B>,
        drafts: &mut [Draft<'_>],
        fabric: &dyn Fabric,
        guesses: &mut Vec<u32>,
        trace: &mut dyn Trace,
    ) -> Result<(), ForwardError> {
        for (index, draft) in drafts.iter().enumerate() {
            self.check_draft(index, draft)?;
        }
        let most = drafts.iter().map(|draft| draft.count).max().unwrap_or(0);
        if most == 0 {
            return Ok(());
        }
        let [room] = scratch.rooms(1) else { return Ok(()) };
        let (t, host) = room.reserve(&*self.backend, &self.config, drafts.len(), drafts.len())?;
        let Some(mtp) = &self.mtp else { return Ok(()) };
        for draft in drafts.iter_mut() {
            draft.state.reserve_ahead()?;
        }
        let by_distance = self.guess(mtp, drafts, most, t, host, fabric, trace)?;
        for (index, draft) in drafts.iter().enumerate() {
            guesses.extend(by_distance[..draft.count].iter().map(|of_all| of_all[index]));
        }
        Ok(())
    }

    fn check_draft(&self, index: usize, draft: &Draft<'_>) -> Result<(), ForwardError> {
        let invalid = |message: String| Err(ForwardError::Invalid { segment: index, message });
        if draft.state.is_poisoned() {
            return Err(ForwardError::Poisoned { segment: index });
        }
        if draft.count > self.config.draft_tokens {
            return invalid(format!(
                "{} guesses are more than the {} draft tokens that the model was loaded for",
                draft.count, self.config.draft_tokens
            ));
        }
        if draft.state.position() == 0 {
            return invalid("a sequence without tokens has nothing to guess from".to_owned());
        }
        if draft.token as usize >= self.config.vocab_size {
            let vocab = self.config.vocab_size;
            return invalid(format!("token {} is outside the vocabulary of {vocab}", draft.token));
        }
        Ok(())
    }

    /// The guesses by distance, then by sequence; those that nobody asked for are 0.
    fn guess(
        &self,
        mtp: &Mtp<B>,
        drafts: &mut [Draft<'_>],
        most: usize,
        t: &mut Temporaries<B>,
        host: &mut HostTemporaries,
        fabric: &dyn Fabric,
        trace: &mut dyn Trace,
    ) -> Result<Vec<Vec<u32>>, ForwardError> {
        let backend = &*self.backend;
        let (streams, vocab) = (self.config.streams * self.config.hidden_size, self.config.vocab_size);
        let mut guesses = vec![vec![0; drafts.len()]; most];
        let mut logits = Vec::new();
        let mut asking: Vec<usize> = (0..drafts.len()).filter(|&index| drafts[index].count > 0).collect();
        let mut arena = self.arena();
        for (row, &index) in asking.iter().enumerate() {
            let state = &*drafts[index].state;
            let Some(part) = &state.layout().streams else { continue };
            let row = Rows { first: row, count: 1, width: streams };
            backend.fetch(&arena, state.rows(part), state.position() - 1, &mut t.stage_x, row)?;
        }
        for ahead in 0..most {
            let places = asking.iter().map(|&index| {
                let draft = &drafts[index];
                let id = if ahead == 0 { draft.token } else { guesses[ahead - 1][index] };
                (vec![id], draft.state.position() - 1 + ahead)
            });
            let step = Step::of_window(places, &self.frequencies, self.numerics);
            self.upload_tables(&step, t)?;
            let still_asking = drafts.iter_mut().filter(|draft| draft.count > ahead);
            let segments: Vec<_> = still_asking.map(segment).collect();
            mtp.enter(backend, &self.embed, &step, t)?;
            mtp.block.forward(backend, &step, t, host, &mut arena, &segments, fabric, trace)?;
            let all: Vec<u32> = (0..asking.len() as u32).collect();
            logits.clear();
            self.head(&mtp.mixer, &all, t, &mut logits)?;
            trace.draft_logits(ahead, &logits);
            for (&index, row) in asking.iter().zip(logits.chunks_exact(vocab)) {
                guesses[ahead][index] = likeliest(row);
            }
            // the next guess takes this one's streams
            let rows: Vec<u32> =
                all.into_iter().filter(|&row| drafts[asking[row as usize]].count > ahead + 1).collect();
            backend.gather(&t.streams, streams, &rows, &mut t.stage_x)?;
            asking.retain(|&index| drafts[index].count > ahead + 1);
        }
        Ok(guesses)
    }
}

fn segment<'a>(draft: &'a mut Draft<'_>) -> Segment<'a> {
    Segment {
        state: draft.state,
        tokens: std::slice::from_ref(&draft.token),
        logits: Logits::None,
        rewindable: false,
    }
}

/// The lower id wins a tie.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

//! One output on its way through a grammar.

use std::sync::{Arc, LazyLock};

use crossbeam_channel::Receiver;
use llguidance::Matcher;
use llguidance::api::StopReason;
use llguidance::toktrie::SimpleVob;

use super::compile::compile;
use super::pool::Pool;
use super::vocabulary::plain;
use crate::request::{Constraint, SubmitError};
use crate::sampler::SampleError;
use crate::tokenizer::Tokenizer;

/// Masks that wait to be computed; more than there can be sessions, so nobody ever finds it full.
const MAX_WAITING: usize = 1 << 16;

/// A quarter of the cores: they compute masks while the rest compute the forward.
static MASKS: LazyLock<Pool> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Pool::new("belay-mask", cores.div_ceil(4).min(8), MAX_WAITING)
});

/// Follows an output, and says which tokens may come next.
pub struct Guide {
    place: Place,
    /// Everything is free up to and including this token.
    after: Option<u32>,
    /// Which tokens may come next, if that is known already.
    mask: Option<SimpleVob>,
    is_complete: bool,
}

/// Where the matcher is.
enum Place {
    Here(Box<Matcher>),
    /// On another thread, that computes a mask.
    Away(Receiver<(Box<Matcher>, Result<SimpleVob, String>)>),
    /// It is lost; why.
    Lost(String),
}

impl Guide {
    /// At the start of an output.
    ///
    /// # Errors
    /// [`SubmitError::Invalid`] if the grammar cannot be used, [`SubmitError::Overloaded`] if too many others are being
    /// compiled.
    pub fn new(constraint: &Constraint, tokenizer: &Arc<Tokenizer>) -> Result<Self, SubmitError> {
        let matcher = compile(&constraint.grammar, tokenizer)?;
        let place = Place::Here(Box::new(matcher));
        Ok(Self { place, after: constraint.after, mask: None, is_complete: false })
    }

    /// Begins to compute the next mask on another thread, unless it is not needed or known.
    pub fn prepare(&mut self) {
        if self.after.is_some() || self.mask.is_some() || self.is_complete {
            return;
        }
        let place = std::mem::replace(&mut self.place, Place::Lost("cannot be computed".into()));
        self.place = match place {
            Place::Here(mut matcher) => {
                let job = move || {
                    let mask = matcher.compute_mask_or_eos().map_err(|error| plain(&error.to_string()));
                    (matcher, mask)
                };
                match MASKS.run(job) {
                    Some(result) => Place::Away(result),
                    None => Place::Lost("too many masks wait to be computed".into()),
                }
            }
            other => other,
        };
    }

    /// The tokens that may come next; waits until they are known. `None`: any.
    ///
    /// # Errors
    /// [`SampleError::Constraint`] if the grammar has become too complex.
    pub fn mask(&mut self) -> Result<Option<&SimpleVob>, SampleError> {
        if self.after.is_some() || self.is_complete {
            return Ok(None);
        }
        self.prepare();
        self.matcher()?;
        Ok(self.mask.as_ref())
    }

    /// The token is now part of the output.
    ///
    /// # Errors
    /// [`SampleError::Constraint`] if it may not come here.
    pub fn accept(&mut self, token: u32) -> Result<(), SampleError> {
        if let Some(after) = self.after {
            if token == after {
                self.after = None;
            }
            return Ok(());
        }
        let refused = |why: String| SampleError::Constraint(format!("does not admit token {token}: {why}"));
        if self.is_complete {
            return Err(refused("it is complete".into()));
        }
        let matcher = self.matcher()?;
        if matcher.is_stopped() && !matcher.is_error() {
            // Nothing but the end can follow, and llguidance does not take it any more.
            let environment = matcher.tok_env().map_err(|error| refused(plain(&error.to_string())))?;
            self.is_complete = environment.tok_trie().eos_tokens().contains(&token);
            self.mask = None;
            return if self.is_complete { Ok(()) } else { Err(refused("only the end can follow".into())) };
        }
        matcher.consume_token(token).map_err(|error| refused(plain(&error.to_string())))?;
        self.is_complete = matcher.stop_reason() == StopReason::EndOfSentence;
        self.mask = None;
        Ok(())
    }

    /// Whether the end was accepted.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The matcher; waits for it if it is away.
    fn matcher(&mut self) -> Result<&mut Matcher, SampleError> {
        if let Place::Away(result) = &self.place {
            self.place = match result.recv() {
                Ok((matcher, Ok(mask))) => {
                    self.mask = Some(mask);
                    Place::Here(matcher)
                }
                Ok((_, Err(error))) => Place::Lost(error),
                Err(_) => Place::Lost("cannot be computed".into()),
            };
        }
        match &mut self.place {
            Place::Here(matcher) => Ok(matcher),
            Place::Lost(why) => Err(SampleError::Constraint(why.clone())),
            Place::Away(_) => Err(SampleError::Constraint("cannot be computed".into())),
        }
    }
}

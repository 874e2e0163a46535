//! Refusals: what a request must be before it is queued.

use crate::output::Output;
use crate::request::{FinishReason, Request, SubmitError};

/// Checks everything that the request alone decides.
///
/// # Errors
/// [`SubmitError::Invalid`] with the field as clients know it.
pub fn request(request: &Request, vocab_size: usize, max_context: usize) -> Result<(), SubmitError> {
    let Request { prompt, resume, sampling, stop, .. } = request;
    if prompt.is_empty() {
        return Err(invalid("prompt", "must not be empty"));
    }
    if prompt.len() >= max_context {
        return Err(invalid(
            "prompt",
            format!(
                "{} tokens do not fit: the context holds {max_context}, at least one of them for the output",
                prompt.len()
            ),
        ));
    }
    if prompt.len() + resume.len() > max_context {
        return Err(invalid(
            "resume_ids",
            format!(
                "{} tokens after a prompt of {} do not fit into a context of {max_context}",
                resume.len(),
                prompt.len()
            ),
        ));
    }
    for (field, ids) in [("prompt", prompt), ("resume_ids", resume), ("stop_ids", &stop.ids)] {
        if let Some((index, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab_size) {
            return Err(invalid(
                field,
                format!("token {index} is {id}, but the vocabulary ends at {}", vocab_size - 1),
            ));
        }
    }
    if !sampling.temperature.is_finite() || sampling.temperature < 0.0 {
        return Err(invalid(
            "temperature",
            format!("must be a number from 0 on, found {}", sampling.temperature),
        ));
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return Err(invalid(
            "top_p",
            format!("must be greater than 0 and at most 1, found {}", sampling.top_p),
        ));
    }
    if stop.max_tokens == Some(0) {
        return Err(invalid("max_tokens", "must be at least 1"));
    }
    if let Some(index) = stop.strings.iter().position(String::is_empty) {
        return Err(invalid("stop", format!("string {index} is empty")));
    }
    Ok(())
}

/// Follows the tokens that were already produced; returns the reason if they are the whole output.
///
/// # Errors
/// [`SubmitError::Invalid`] if they go on after their end.
pub fn replay(resume: &[u32], output: &mut Output) -> Result<Option<FinishReason>, SubmitError> {
    let mut text = String::new();
    for (index, &id) in resume.iter().enumerate() {
        text.clear();
        if let Some(reason) = output.push(id, &mut text) {
            return if index + 1 == resume.len() {
                Ok(Some(reason))
            } else {
                Err(invalid("resume_ids", format!("token {index} ends the output, but more follow")))
            };
        }
    }
    Ok(None)
}

fn invalid(field: &'static str, message: impl Into<String>) -> SubmitError {
    SubmitError::Invalid { field, message: message.into() }
}

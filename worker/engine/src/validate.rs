//! Refusals: what a request must be before it is queued.

use crate::chooser::Chooser;
use crate::output::Output;
use crate::request::{FinishReason, Request, SubmitError};

/// Stop strings of a request, and bytes of one. OpenAI takes 4 strings, DeepSeek 16.
const MAX_STOP_STRINGS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;
/// Stop ids of a request.
const MAX_STOP_IDS: usize = 1024;
/// Tokens with a bias: each is looked at for each token that is produced.
const MAX_BIASED: usize = 1024;
/// As OpenAI's `top_logprobs`.
const MAX_LOGPROBS: u32 = 20;

/// Checks everything that the request alone decides, but for how tokens are chosen: see [`choice`].
///
/// # Errors
/// [`SubmitError::Invalid`] with the field as clients know it.
pub fn request(request: &Request, vocab_size: usize, max_context: usize) -> Result<(), SubmitError> {
    let Request { prompt, resume, stop, .. } = request;
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
    if stop.max_tokens == Some(0) && request.prompt_logprobs.is_none() {
        return Err(invalid("max_tokens", "must be at least 1, unless prompt_logprobs are asked for"));
    }
    if stop.max_tokens.is_some_and(|max| max < stop.min_tokens) {
        return Err(invalid("min_tokens", format!("{} tokens are more than max_tokens", stop.min_tokens)));
    }
    if stop.strings.len() > MAX_STOP_STRINGS {
        return Err(invalid(
            "stop",
            format!("at most {MAX_STOP_STRINGS} strings, found {}", stop.strings.len()),
        ));
    }
    for (index, string) in stop.strings.iter().enumerate() {
        if string.is_empty() {
            return Err(invalid("stop", format!("string {index} is empty")));
        }
        if string.len() > MAX_STOP_BYTES {
            let bytes = string.len();
            return Err(invalid(
                "stop",
                format!("string {index} has {bytes} bytes, at most {MAX_STOP_BYTES} are taken"),
            ));
        }
    }
    if stop.ids.len() > MAX_STOP_IDS {
        return Err(invalid("stop_ids", format!("at most {MAX_STOP_IDS} ids, found {}", stop.ids.len())));
    }
    Ok(())
}

/// Checks what decides how tokens are chosen, but for the constraint.
///
/// # Errors
/// [`SubmitError::Invalid`] with the field as clients know it.
pub fn choice(request: &Request, vocab_size: usize) -> Result<(), SubmitError> {
    let sampling = &request.sampling;
    // Ranges are closed; NaN is in none.
    let ranges = [
        ("temperature", sampling.temperature, 0.0, f32::MAX, "a number from 0 on"),
        ("min_p", sampling.min_p, 0.0, 1.0, "from 0 to 1"),
        ("presence_penalty", sampling.presence_penalty, -2.0, 2.0, "from -2 to 2"),
        ("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0, "from -2 to 2"),
        ("top_p", sampling.top_p, f32::MIN_POSITIVE, 1.0, "greater than 0 and at most 1"),
        (
            "repetition_penalty",
            sampling.repetition_penalty,
            f32::MIN_POSITIVE,
            2.0,
            "greater than 0 and at most 2",
        ),
    ];
    for (field, value, lowest, highest, range) in ranges {
        if !(lowest..=highest).contains(&value) {
            return Err(invalid(field, format!("must be {range}, found {value}")));
        }
    }
    for (field, count) in [("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)] {
        if let Some(count) = count.filter(|count| *count > MAX_LOGPROBS) {
            return Err(invalid(field, format!("at most {MAX_LOGPROBS} likeliest tokens, found {count}")));
        }
    }
    let bias = &sampling.logit_bias;
    if bias.len() > MAX_BIASED {
        return Err(invalid("logit_bias", format!("at most {MAX_BIASED} tokens, found {}", bias.len())));
    }
    for &(id, value) in bias {
        if id as usize >= vocab_size {
            return Err(invalid(
                "logit_bias",
                format!("token {id}, but the vocabulary ends at {}", vocab_size - 1),
            ));
        }
        if !(-100.0..=100.0).contains(&value) {
            return Err(invalid(
                "logit_bias",
                format!("of token {id} must be from -100 to 100, found {value}"),
            ));
        }
    }
    if let Some(pair) = bias.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
        return Err(invalid(
            "logit_bias",
            format!("ids must ascend, but {} follows {}", pair[1].0, pair[0].0),
        ));
    }
    Ok(())
}

/// Follows the tokens that were already produced; returns the reason if they are the whole output.
///
/// # Errors
/// [`SubmitError::Invalid`] if they go on after their end, or are not what the constraint admits.
pub fn replay(
    resume: &[u32],
    output: &mut Output,
    chooser: &mut Chooser,
) -> Result<Option<FinishReason>, SubmitError> {
    let mut text = String::new();
    for (index, &id) in resume.iter().enumerate() {
        text.clear();
        chooser.accept(id).map_err(|error| invalid("resume_ids", format!("token {index}: {error}")))?;
        let mut ended = output.push(id, &mut text);
        if ended.is_none() && chooser.is_complete() {
            ended = Some(output.complete(&mut text));
        }
        if let Some(reason) = ended {
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

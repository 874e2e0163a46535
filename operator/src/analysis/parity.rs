//! Answer parity: two revisions are asked the same prompts greedily, and their tokens compared.
use std::time::Duration;

use belay_crds::{ParitySpec, Reason};
use belay_proto::inference::{
    FinishReason, GenerateRequest, Options, Sampling, generate_request::Prompt,
    inference_client::InferenceClient,
};
use thiserror::Error;
use tonic::transport::Endpoint;

use super::judge::{Check, Verdict};

/// Port of the inference service in every worker pod.
const GRPC_PORT: u16 = 50051;

/// How long one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// What is checked, in `status.rollout.analysis`.
pub const NAME: &str = "Parity";

/// A greedy answer: tokens, and the log-probability of each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Natural logarithms.
    pub logprobs: Vec<f32>,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ParityError {
    /// The address is not one.
    #[error("address {0} is not valid")]
    Address(String),
    /// The worker does not answer, or not to the end.
    #[error("{address}: {message}")]
    Worker {
        /// Who was asked.
        address: String,
        /// Its words, or the transport's.
        message: String,
    },
}

/// Asks one worker all prompts, one after the other.
///
/// # Errors
/// When it does not answer one of them.
pub async fn ask(ip: &str, spec: &ParitySpec) -> Result<Vec<Answer>, ParityError> {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let address = format!("{host}:{GRPC_PORT}");
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| ParityError::Address(address.clone()))?
        .connect_timeout(Duration::from_secs(2))
        .timeout(ANSWER_LIMIT);
    let failed = |message: String| ParityError::Worker { address: address.clone(), message };
    let channel = endpoint.connect().await.map_err(|error| failed(crate::error::describe(&error)))?;
    let mut client = InferenceClient::new(channel);
    let mut answers = Vec::with_capacity(spec.prompts.len());
    for prompt in &spec.prompts {
        let told = |status: tonic::Status| failed(format!("{:?}: {}", status.code(), status.message()));
        let mut pieces = client.generate(request(prompt, spec)).await.map_err(told)?.into_inner();
        let mut answer = Answer::default();
        loop {
            let Some(piece) = pieces.message().await.map_err(told)? else {
                return Err(failed("the answer ended without a finish reason".to_owned()));
            };
            answer.ids.extend_from_slice(&piece.ids);
            answer.logprobs.extend(piece.logprobs.iter().map(|token| token.logprob));
            if piece.finish_reason != FinishReason::Unspecified as i32 {
                break;
            }
        }
        answers.push(answer);
    }
    Ok(answers)
}

fn request(prompt: &str, spec: &ParitySpec) -> GenerateRequest {
    GenerateRequest {
        request_id: "parity".to_owned(),
        prompt: Some(Prompt::Text(prompt.to_owned())),
        sampling: Some(Sampling {
            temperature: Some(0.0),
            max_tokens: u32::try_from(spec.max_tokens).ok(),
            seed: Some(0),
            ..Sampling::default()
        }),
        options: Some(Options { logprobs: Some(0), ..Options::default() }),
        ..GenerateRequest::default()
    }
}

/// Compares answers to the same prompts, in order. Of two answers, what follows the first difference does not count as the same.
pub fn compare(spec: &ParitySpec, new: &[Answer], stable: &[Answer]) -> Check {
    let (mut same, mut all, mut sum) = (0usize, 0usize, 0.0f64);
    let mut first_difference = None;
    for (i, (new, stable)) in new.iter().zip(stable).enumerate() {
        let agreed = new.ids.iter().zip(&stable.ids).take_while(|(a, b)| a == b).count();
        let longer = new.ids.len().max(stable.ids.len());
        if agreed < longer && first_difference.is_none() {
            first_difference = Some((i, agreed));
        }
        same += agreed;
        all += longer;
        let pairs = new.logprobs.iter().zip(&stable.logprobs).take(agreed);
        sum += pairs.map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
    }
    let percent = if all == 0 { 100.0 } else { 100.0 * same as f64 / all as f64 };
    let difference = if same == 0 { 0.0 } else { 1000.0 * sum / same as f64 };
    let limit = spec.max_logprob_difference_thousandths;
    let too_far = limit.is_some_and(|limit| difference > f64::from(limit));
    let mut message = format!(
        "{same} of {all} tokens are the same ({percent:.1} %, at least {} %); log-probabilities differ by {difference:.1} thousandths",
        spec.min_same_percent
    );
    if let Some(limit) = limit {
        message += &format!(" (at most {limit})");
    }
    if let Some((prompt, token)) = first_difference {
        message += &format!("; prompt {} differs first, at token {}", prompt + 1, token + 1);
    }
    let verdict = if percent < f64::from(spec.min_same_percent) || too_far {
        Verdict::Bad(Reason::AnswersDiffer)
    } else {
        Verdict::Good
    };
    Check::new(NAME, verdict, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(min_same_percent: i32, limit: Option<i32>) -> ParitySpec {
        ParitySpec {
            prompts: vec!["a".into(), "b".into()],
            max_tokens: 4,
            min_same_percent,
            max_logprob_difference_thousandths: limit,
        }
    }

    fn answer(ids: &[u32], logprob: f32) -> Answer {
        Answer { ids: ids.to_vec(), logprobs: vec![logprob; ids.len()] }
    }

    #[test]
    fn equal_answers_are_good() {
        let answers = [answer(&[1, 2, 3, 4], -0.5), answer(&[5], -0.1)];
        let check = compare(&spec(100, Some(0)), &answers, &answers);
        assert_eq!(check.verdict, Verdict::Good);
        assert!(check.message.starts_with("5 of 5 tokens are the same"), "{}", check.message);
    }

    #[test]
    fn what_follows_a_difference_does_not_count_and_the_place_is_told() {
        let (new, stable) = ([answer(&[1, 9, 3, 4], 0.0)], [answer(&[1, 2, 3, 4], 0.0)]);
        let check = compare(&spec(100, None), &new, &stable);
        assert_eq!(check.verdict, Verdict::Bad(Reason::AnswersDiffer));
        assert!(check.message.contains("1 of 4 tokens are the same (25.0 %"), "{}", check.message);
        assert!(check.message.contains("prompt 1 differs first, at token 2"), "{}", check.message);
        assert_eq!(compare(&spec(25, None), &new, &stable).verdict, Verdict::Good);
        let longer = compare(&spec(100, None), &[answer(&[1, 2], 0.0)], &[answer(&[1], 0.0)]);
        assert_eq!(longer.verdict, Verdict::Bad(Reason::AnswersDiffer));
    }

    #[test]
    fn the_same_tokens_with_other_probabilities_are_bad_if_that_is_limited() {
        let (new, stable) = ([answer(&[1, 2], -0.25)], [answer(&[1, 2], -0.5)]);
        assert_eq!(compare(&spec(100, Some(250)), &new, &stable).verdict, Verdict::Good);
        let check = compare(&spec(100, Some(249)), &new, &stable);
        assert_eq!(check.verdict, Verdict::Bad(Reason::AnswersDiffer));
        assert!(check.message.contains("differ by 250.0 thousandths (at most 249)"), "{}", check.message);
        assert_eq!(compare(&spec(100, None), &new, &stable).verdict, Verdict::Good);
    }
}

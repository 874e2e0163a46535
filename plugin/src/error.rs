//! Errors in the words that people need: with their causes, each once.
use std::error::Error;

/// An error and its causes in one line. Of an answer of the API server only its message; a cause that is already part
/// of the words before it adds nothing.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        let part = match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => {
                next = None;
                status.message.clone()
            }
            _ => error.to_string(),
        };
        if text.is_empty() {
            text = part;
        } else if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn an_answer_of_the_api_server_is_told_without_its_metadata() {
        let json =
            serde_json::json!({"message": "pods \"a\" is forbidden", "code": 403, "reason": "Forbidden"});
        let status: Box<kube::core::Status> = serde_json::from_value(json).unwrap();
        let error = Err::<(), _>(kube::Error::Api(status)).context("pod a").unwrap_err();
        assert_eq!(describe(error.as_ref()), "pod a: pods \"a\" is forbidden");
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = std::io::Error::other("reset");
        let error = Err::<(), _>(error).context("lost: reset").unwrap_err();
        assert_eq!(describe(error.as_ref()), "lost: reset");
    }
}

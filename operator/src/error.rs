//! Errors in the words that people need: with their causes, without what only a machine wants to know.
use std::error::Error;

/// An error and its causes in one line. Of an answer of the API server only its message.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut parts = vec![];
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(kube::Error::Api(status)) = error.downcast_ref::<kube::Error>() {
            parts.push(status.message.clone());
            break;
        }
        parts.push(error.to_string());
        next = error.source();
    }
    // a cause that is already part of the words before it adds nothing
    let mut text = String::new();
    for part in parts {
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
    use super::*;

    #[test]
    fn api_errors_are_told_once_and_without_their_metadata() {
        let json =
            serde_json::json!({ "message": "pods \"a\" is forbidden", "code": 403, "reason": "Forbidden" });
        let status: Box<kube::core::Status> = serde_json::from_value(json).unwrap();
        assert_eq!(describe(&kube::Error::Api(status)), "pods \"a\" is forbidden");
    }
}

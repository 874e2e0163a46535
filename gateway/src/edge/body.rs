//! Request bodies: bounded, received in time, UTF-8, a JSON object.
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use serde_json::{Map, Value};

use super::ApiError;

/// A client that sends more than this many times the limit is cut off rather than answered.
const PATIENCE: usize = 8;

/// From here on parsing takes so long that other requests would notice.
const LARGE: usize = 64 << 10;

/// Reads a whole body of at most `limit` bytes.
///
/// What exceeds the limit is thrown away while it arrives, within reason: a client that still sends when it is
/// answered would see a broken connection instead of the answer.
pub async fn read(mut body: Body, limit: usize, longest: Duration) -> Result<Bytes, ApiError> {
    let reading = async {
        let mut bytes = Vec::new();
        let mut received = 0usize;
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| ApiError::bad_request(format!("the body broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            received += data.len();
            if received <= limit {
                bytes.extend_from_slice(&data);
            } else if received > limit.saturating_mul(PATIENCE) {
                break;
            }
        }
        if received > limit { Err(ApiError::too_large(limit)) } else { Ok(Bytes::from(bytes)) }
    };
    tokio::time::timeout(longest, reading).await.map_err(|_| ApiError::slow_body(longest))?
}

/// Parses a JSON object; errors say where.
pub async fn object(bytes: Bytes) -> Result<Map<String, Value>, ApiError> {
    if bytes.len() < LARGE {
        return parse(&bytes);
    }
    let parsing = tokio::task::spawn_blocking(move || parse(&bytes));
    parsing.await.map_err(|error| ApiError::bad_request(format!("the body cannot be parsed: {error}")))?
}

fn parse(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        ApiError::bad_request(format!("the body is not UTF-8: invalid byte at {}", error.valid_up_to()))
    })?;
    let value: Value = serde_json::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(ApiError::bad_request("the body must be a JSON object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_say_where() {
        let message = |bytes: &[u8]| parse(bytes).unwrap_err().body.message;
        assert!(message(b"{\"a\": }").contains("line 1 column 7"), "{}", message(b"{\"a\": }"));
        assert!(message(b"").contains("EOF"));
        assert_eq!(message(b"{\"a\": \"\xff\"}"), "the body is not UTF-8: invalid byte at 7");
        assert_eq!(message(b"[1]"), "the body must be a JSON object");
    }

    #[tokio::test]
    async fn a_body_may_be_as_large_as_the_limit_and_no_larger() {
        let body = |bytes: usize| read(Body::from(vec![b'x'; bytes]), 10, Duration::from_secs(5));
        assert_eq!(body(10).await.unwrap().len(), 10);
        assert_eq!(body(11).await.unwrap_err().status, 413);
        assert_eq!(body(1000).await.unwrap_err().status, 413);
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(read(body, 10, Duration::from_millis(10)).await.unwrap_err().status, 408);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }
    }
}

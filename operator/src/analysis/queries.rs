//! Measures of users' own: PromQL queries whose result is one number.
use std::time::Duration;

use belay_crds::{QuerySpec, Reason};
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::Deserialize;
use thiserror::Error;

use super::judge::{Check, Verdict};

/// How long one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Largest answer.
const MOST_BYTES: usize = 1 << 20;

/// Why there is no number.
#[derive(Debug, Error)]
pub enum QueryError {
    /// The address is not one.
    #[error("address {0} is not valid")]
    Address(String),
    /// Nobody answers.
    #[error("no answer from {address}: {message}")]
    Unreachable {
        /// Who was asked.
        address: String,
        /// What the transport says.
        message: String,
    },
    /// The query is not taken.
    #[error("refused: {0}")]
    Refused(String),
    /// What came is not one number.
    #[error("the result is {0}, not one number")]
    Shape(String),
}

/// What the words in a query stand for.
#[derive(Clone, Debug)]
pub struct Words {
    /// The new revision.
    pub revision: String,
    /// The old one.
    pub stable: String,
    /// Namespace of the ModelDeployment.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

#[derive(Debug, Deserialize)]
struct Reply {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: serde_json::Value,
}

/// Asks, and compares with the bounds. A query without an answer says nothing: it is pending.
pub async fn check(query: &QuerySpec, words: &Words) -> Check {
    match ask(query, words).await {
        Ok(Some(value)) => judge(query, value),
        Ok(None) => Check::new(&query.name, Verdict::TooFew, "the result is empty".to_owned()),
        Err(error) => Check::new(&query.name, Verdict::Pending, error.to_string()),
    }
}

fn judge(query: &QuerySpec, value: f64) -> Check {
    let bound = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<f64>().ok());
    let (min, max) = (bound(&query.min), bound(&query.max));
    let told = |bound: Option<f64>| bound.map_or_else(|| "–".to_owned(), |bound| bound.to_string());
    if value.is_nan() {
        // a share of nothing: a revision that has just got its part of the requests has answered none
        return Check::new(&query.name, Verdict::TooFew, "the result is NaN: 0 of 0".to_owned());
    }
    let is_out = min.is_some_and(|min| value < min) || max.is_some_and(|max| value > max);
    let numbers = format!("{value} (bounds {} to {})", told(min), told(max));
    if is_out {
        // it is told as the reason of a rollback, where nothing else says which query it was
        let message = format!("{}: {numbers}", query.name);
        return Check::new(&query.name, Verdict::Bad(Reason::QueryOutOfBounds), message);
    }
    Check::new(&query.name, Verdict::Good, numbers)
}

async fn ask(query: &QuerySpec, words: &Words) -> Result<Option<f64>, QueryError> {
    let text = query
        .query
        .replace("{{revision}}", &words.revision)
        .replace("{{stable}}", &words.stable)
        .replace("{{namespace}}", &words.namespace)
        .replace("{{name}}", &words.name);
    let address = query.address.trim_end_matches('/');
    let uri: Uri = format!("{address}/api/v1/query?query={}", percent_encoded(&text))
        .parse()
        .map_err(|_| QueryError::Address(address.to_owned()))?;
    let unreachable = |message: String| QueryError::Unreachable { address: address.to_owned(), message };
    let request = Request::get(uri)
        .header(header::ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| unreachable(error.to_string()))?;
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let exchange = async {
        let response =
            client.request(request).await.map_err(|error| unreachable(crate::error::describe(&error)))?;
        let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| unreachable(error.to_string()))
    };
    let body = tokio::time::timeout(ANSWER_LIMIT, exchange)
        .await
        .map_err(|_| unreachable(format!("nothing within {} s", ANSWER_LIMIT.as_secs())))??;
    number(&body)
}

/// The one number of an answer; `None`: the result is empty.
fn number(body: &[u8]) -> Result<Option<f64>, QueryError> {
    let reply: Reply = serde_json::from_slice(body).map_err(|error| QueryError::Shape(error.to_string()))?;
    if reply.status != "success" {
        return Err(QueryError::Refused(reply.error));
    }
    let Some(Data { result_type, result }) = reply.data else {
        return Err(QueryError::Shape("without data".to_owned()));
    };
    let sample = match (result_type.as_str(), result.as_array().map(Vec::as_slice)) {
        ("scalar", Some([_, value])) => value,
        ("vector", Some([])) => return Ok(None),
        ("vector", Some([one])) => one.pointer("/value/1").unwrap_or(&serde_json::Value::Null),
        ("vector", Some(many)) => return Err(QueryError::Shape(format!("a vector of {}", many.len()))),
        (kind, _) => return Err(QueryError::Shape(format!("of type {kind}"))),
    };
    let value = sample.as_str().and_then(|text| text.parse().ok());
    value.map(Some).ok_or_else(|| QueryError::Shape(sample.to_string()))
}

/// RFC 3986: everything but unreserved characters.
fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(address: &str, min: Option<&str>, max: Option<&str>) -> QuerySpec {
        QuerySpec {
            name: "Refunds".into(),
            address: address.into(),
            query: "sum(rate(refunds{revision=\"{{revision}}\"}[1m]))".into(),
            min: min.map(Into::into),
            max: max.map(Into::into),
        }
    }

    fn words() -> Words {
        Words { revision: "new".into(), stable: "old".into(), namespace: "ns".into(), name: "n".into() }
    }

    #[test]
    fn answers_are_read_by_their_type() {
        let vector = br#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"0.25"]}]}}"#;
        assert_eq!(number(vector).unwrap(), Some(0.25));
        let scalar = br#"{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}"#;
        assert_eq!(number(scalar).unwrap(), Some(3.0));
        let empty = br#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
        assert_eq!(number(empty).unwrap(), None);
        for (body, words) in [
            (&br#"{"status":"error","error":"parse error"}"#[..], "refused: parse error"),
            (br#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#, "of type matrix"),
            (br#"{"status":"success","data":{"resultType":"vector","result":[1,2]}}"#, "a vector of 2"),
            (b"<html>", "not one number"),
        ] {
            let error = number(body).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn bounds_decide() {
        let verdict = |min, max, value| judge(&query("http://p:9090", min, max), value).verdict;
        let bad = Verdict::Bad(Reason::QueryOutOfBounds);
        assert_eq!(verdict(Some("0.5"), None, 0.4), bad);
        assert_eq!(verdict(Some("0.5"), Some("1"), 0.7), Verdict::Good);
        assert_eq!(verdict(None, Some("-1.5"), -1.4), bad);
        assert_eq!(verdict(None, Some("1"), f64::INFINITY), bad);
        assert_eq!(verdict(None, Some("1"), f64::NAN), Verdict::TooFew, "0 of 0 says nothing");
    }

    #[test]
    fn a_rollback_says_which_query_it_was() {
        let check = judge(&query("http://p:9090", Some("0.5"), None), 0.25);
        assert_eq!(check.message, "Refunds: 0.25 (bounds 0.5 to –)");
    }

    #[tokio::test]
    async fn a_prometheus_is_asked_for_the_query_with_its_words() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/prefix/", listener.local_addr().unwrap());
        let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
        let answer = async move |axum::extract::Query(pairs): axum::extract::Query<Vec<(String, String)>>| {
            asked.send(pairs).unwrap();
            r#"{"status":"success","data":{"resultType":"scalar","result":[1,"2.5"]}}"#
        };
        let router = axum::Router::new().route("/prefix/api/v1/query", axum::routing::get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let check = check(&query(&address, None, Some("2")), &words()).await;
        assert_eq!(check.verdict, Verdict::Bad(Reason::QueryOutOfBounds), "{}", check.message);
        let pairs = was_asked.recv().await.unwrap();
        assert_eq!(pairs, [("query".to_owned(), "sum(rate(refunds{revision=\"new\"}[1m]))".to_owned())]);
        let nobody = super::check(&query("http://127.0.0.1:1", None, Some("2")), &words()).await;
        assert_eq!(nobody.verdict, Verdict::Pending, "{}", nobody.message);
    }
}

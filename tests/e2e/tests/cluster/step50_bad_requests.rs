//! Bad requests get a clear answer in the API's own shape, and the next good request is served.

use anyhow::{Result, ensure};
use belay_e2e::{
    fixture::{NANO, fixture},
    http,
};
use serde_json::{Value, json};

#[tokio::test]
async fn t1_each_kind_of_bad_request_is_answered_clearly() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    let tunnel = fixture.gateway()?;
    let chat = |model: &str, content: &str| {
        json!({"model": model, "messages": [{"role": "user", "content": content}]}).to_string().into_bytes()
    };
    let completion = |prompt: Value| json!({"model": NANO, "prompt": prompt}).to_string().into_bytes();
    let mut not_utf8 = chat(NANO, "x");
    let middle = not_utf8.len() - 5;
    not_utf8[middle] = 0xff;
    let cases: Vec<(&str, &str, Vec<u8>, u16, &str)> = vec![
        ("wrong JSON", "/v1/chat/completions", b"{\"model\": ".to_vec(), 400, "json"),
        ("bad UTF-8", "/v1/chat/completions", not_utf8, 400, "utf-8"),
        ("unknown model", "/v1/chat/completions", chat("gpt-9", "Hi"), 404, "gpt-9"),
        (
            "no messages",
            "/v1/chat/completions",
            json!({"model": NANO}).to_string().into_bytes(),
            400,
            "messages",
        ),
        ("empty prompt", "/v1/completions", completion(json!("")), 400, "prompt"),
        ("prompt of a wrong type", "/v1/completions", completion(json!(5)), 400, "prompt"),
        ("context too long", "/v1/completions", completion(json!("word ".repeat(6000))), 400, "4096"),
        ("body too large", "/v1/completions", completion(json!("x".repeat(9 << 20))), 413, "large"),
        ("unknown path", "/v1/nothing", b"{}".to_vec(), 404, "/v1/nothing"),
    ];
    let http = reqwest::Client::new();
    for (what, path, body, status, word) in cases {
        let response = http
            .post(format!("{}{path}", tunnel.url()))
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await?;
        let (found, text) = (response.status().as_u16(), response.text().await?);
        ensure!(found == status, "{what}: {found} for {status}: {text}");
        let error: Value = serde_json::from_str(&text)?;
        let message = error["error"]["message"].as_str().unwrap_or_default().to_lowercase();
        ensure!(message.contains(word), "{what}: the message does not say {word:?}: {text}");
        ensure!(error["error"]["type"].is_string(), "{what}: no error type: {text}");
    }
    let answer = http::chat(&tunnel.url(), NANO, "What is a node?", 64).await?;
    ensure!(answer == "A node is a machine in the cluster that runs pods.", "{answer:?}");
    Ok(())
}

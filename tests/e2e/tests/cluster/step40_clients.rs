//! Real clients, unmodified: the packages `openai`, `anthropic`, `tritonclient` and `aiperf`, gRPC reflection.

use anyhow::{Result, ensure};
use belay_e2e::{
    fixture::{NANO, fixture},
    kubectl::run,
};

async fn python(script: &str) -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    let tunnel = fixture.gateway()?;
    let path = fixture.env.root.join("tests/e2e/clients").join(script);
    let eval = fixture.env.root.join("tests/fixtures/models/nano/eval.jsonl");
    let address = format!("127.0.0.1:{}", tunnel.port);
    // a client that is ended for standing still prints where each of its threads was
    let python = ["-X".as_ref(), "faulthandler".as_ref(), path.as_os_str()];
    let args = python.into_iter().chain([address.as_ref(), NANO.as_ref(), eval.as_os_str()]);
    let ran = run(&fixture.env.python, args, None)?;
    println!("{}", ran.stdout);
    ensure!(ran.ok, "{script}: {}{}", ran.stdout, ran.stderr);
    Ok(())
}

#[tokio::test]
async fn t1_the_openai_package_streams_and_does_not() -> Result<()> {
    python("openai_client.py").await
}

#[tokio::test]
async fn t2_tritonclient_infers_by_grpc() -> Result<()> {
    python("triton_client.py").await
}

#[tokio::test]
async fn t3_reflection_lists_and_describes_the_services() -> Result<()> {
    python("reflection_client.py").await
}

#[tokio::test]
async fn t4_the_openai_package_calls_tools_follows_schemas_and_sees_probabilities() -> Result<()> {
    python("openai_features.py").await
}

#[tokio::test]
async fn t5_the_anthropic_package_talks_streams_calls_tools_and_thinks() -> Result<()> {
    python("anthropic_client.py").await
}

#[tokio::test]
async fn t6_tritonclient_streams() -> Result<()> {
    python("triton_stream.py").await
}

#[tokio::test]
async fn t7_aiperf_loads_chat_completions_and_messages() -> Result<()> {
    python("aiperf_client.py").await
}

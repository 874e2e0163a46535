//! Two pods with two ranks each give the reference's tokens, and each pod holds only its share.

use anyhow::{Context, Result, ensure};
use belay_e2e::{
    client,
    client::Length,
    fixture::{MODELS, NANO, SYSTEM, fixture},
    http,
    kubectl::{condition, sum},
    oracle,
};
use belay_proto::inference::FinishReason;
use tonic::transport::Endpoint;

#[tokio::test]
async fn t1_apply_leads_to_an_available_group() -> Result<()> {
    let fixture = fixture()?;
    let object = fixture.nano().await?;
    for kind in ["Available", "ExpertsCovered"] {
        let found = condition(&object, kind).context(kind)?;
        ensure!(found.0 == "True", "{kind}: {found:?}");
    }
    ensure!(fixture.system.namespace() == SYSTEM && fixture.models.namespace() == MODELS);
    Ok(())
}

#[tokio::test]
async fn t2_kubectl_get_shows_the_columns() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    let table = fixture.models.run(&["get", "mdep", NANO])?;
    let header = table.lines().next().unwrap_or_default();
    for column in ["READY", "DESIRED", "UPDATED", "REVISION", "EXPERTS", "AGE"] {
        ensure!(header.contains(column), "no column {column}:\n{table}");
    }
    Ok(())
}

#[tokio::test]
async fn t3_two_pods_of_two_ranks_give_the_reference_tokens() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    let tunnel = fixture.gateway()?;
    let channel = Endpoint::from_shared(tunnel.url())?.connect().await?;
    let cases = oracle::cases(&fixture.env)?;
    // every third prompt: each skill is there, long documents included
    let mut equal = 0;
    for case in cases.iter().step_by(3) {
        let answer =
            client::generate(&channel, NANO, &case.prompt_ids, Length::ToEnd { at_most: 128 }).await?;
        ensure!(answer.ids == case.greedy_ids, "{}: {:?} for {:?}", case.id, answer.ids, case.greedy_ids);
        ensure!(answer.text == case.greedy_text, "{}: {:?} for {:?}", case.id, answer.text, case.greedy_text);
        ensure!(answer.finish == FinishReason::Stop, "{}: {:?}", case.id, answer.finish);
        equal += 1;
    }
    println!("{equal} of {equal} answers equal the reference token for token");
    Ok(())
}

#[tokio::test]
async fn t4_a_chat_over_http_gives_the_reference_text() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    let tunnel = fixture.gateway()?;
    for case in fixture.cases(&["fact"], 8)? {
        let question = case.messages[0]["content"].as_str().context("content")?;
        let answer = http::chat(&tunnel.url(), NANO, question, 128).await?;
        ensure!(answer == case.greedy_text, "{}: {answer:?} for {:?}", case.id, case.greedy_text);
    }
    Ok(())
}

#[tokio::test]
async fn t5_each_worker_holds_its_share_of_the_experts() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    let mut shares = Vec::new();
    for pod in fixture.models.workers(NANO)? {
        let name = pod["metadata"]["name"].as_str().context("name")?;
        let metrics = fixture.models.pod_http(name, 9090, "/metrics")?;
        shares.push(sum(&metrics, "belay_expert_bytes")?);
    }
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fixture.env.nano().join("config.json"))?)?;
    let dim = |key: &str| config[key].as_f64().with_context(|| key.to_owned());
    // w1, w2 and w3 of each expert of each layer, two bytes a weight
    let whole = dim("num_hidden_layers")?
        * dim("n_routed_experts")?
        * 3.0
        * dim("hidden_size")?
        * dim("moe_intermediate_size")?
        * 2.0;
    ensure!(shares.len() == 2, "{shares:?}");
    ensure!((shares.iter().sum::<f64>() - whole).abs() < 1.0, "{shares:?} are not {whole} together");
    for share in &shares {
        ensure!((share / whole - 0.5).abs() < 0.05, "{share} of {whole} bytes is not half");
    }
    Ok(())
}

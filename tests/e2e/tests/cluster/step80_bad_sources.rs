//! Models that can't be loaded: the status says why, and no pod crash-loops.

use anyhow::{Result, bail, ensure};
use belay_e2e::{
    fixture::{Fixture, SOON, fixture},
    wait,
};

fn manifest(name: &str, claim: &str, path: &str, workers: u32, devices: u32) -> String {
    format!(
        r#"
apiVersion: serving.belay.dev/v1alpha1
kind: ModelDeployment
metadata: {{ name: {name} }}
spec:
  model: {{ source: {{ persistentVolumeClaim: {{ claimName: {claim}, path: {path} }} }} }}
  replicas: 1
  group: {{ workers: {workers}, device: CPU, devicesPerWorker: {devices} }}
"#
    )
}

/// Applies, waits until some condition's message says all of `words`, checks that nothing restarts, and deletes.
async fn says(fixture: &Fixture, name: &str, manifest: &str, words: &[&str]) -> Result<()> {
    fixture.models.apply(manifest)?;
    wait::until(&format!("{name}: the status says {words:?}"), SOON, || {
        let status = fixture.models.deployment(name)?["status"].clone();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let said = conditions.iter().any(|condition| {
            let text = format!("{} {}", condition["reason"], condition["message"]).to_lowercase();
            words.iter().all(|word| text.contains(&word.to_lowercase()))
        });
        if said { Ok(Some(())) } else { bail!("{conditions:?}") }
    })
    .await?;
    for pod in fixture.models.workers(name)? {
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0);
        ensure!(restarts == 0, "{} restarted {restarts} times", pod["metadata"]["name"]);
    }
    fixture.models.run(&["delete", "mdep", name])?;
    Ok(())
}

#[tokio::test]
async fn t1_a_claim_that_does_not_exist() -> Result<()> {
    let fixture = fixture()?;
    says(&fixture, "no-claim", &manifest("no-claim", "nowhere", "bf16", 1, 1), &["nowhere"]).await
}

#[tokio::test]
async fn t2_a_directory_without_a_checkpoint() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    let manifest = manifest("no-model", "nano", "no/such/dir", 1, 1);
    says(&fixture, "no-model", &manifest, &["CheckpointNotFound", "no/such/dir"]).await
}

#[tokio::test]
async fn t3_more_ranks_than_experts() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    says(&fixture, "too-wide", &manifest("too-wide", "nano", "bf16", 2, 9), &["18", "16"]).await
}

//! The resource as `kubectl` shows it, and what the API server refuses.

use anyhow::{Result, ensure};
use belay_e2e::fixture::fixture;

#[test]
fn t1_kubectl_explain_documents_every_field() -> Result<()> {
    let kubectl = fixture()?.models;
    let resource = "modeldeployments.serving.belay.dev";
    for (field, word) in [
        ("spec.replicas", "group"),
        ("spec.model.source", "exactly one"),
        ("spec.group.devicesPerWorker", "rank"),
        ("spec.rollout.drainSeconds", "seconds"),
        ("status.conditions", "condition"),
    ] {
        let text = kubectl.run(&["explain", &format!("{resource}.{field}")])?;
        ensure!(text.to_lowercase().contains(word), "kubectl explain {field} does not say {word:?}:\n{text}");
    }
    Ok(())
}

/// A sound manifest, changed in one place.
fn manifest(from: &str, to: &str) -> String {
    let sound = r#"
apiVersion: serving.belay.dev/v1alpha1
kind: ModelDeployment
metadata: { name: bad }
spec:
  model:
    source: { persistentVolumeClaim: { claimName: weights, path: bf16 } }
  replicas: 1
  group: { workers: 2, device: CPU, devicesPerWorker: 2 }
  rollout: { maxSurge: 1, maxUnavailable: 0 }
"#;
    assert!(sound.contains(from), "{from}");
    sound.replace(from, to)
}

#[test]
fn t2_a_sound_manifest_is_accepted() -> Result<()> {
    let kubectl = fixture()?.models;
    let ran = kubectl
        .try_run(&["apply", "--dry-run=server", "-f", "-"], Some(&manifest("replicas: 1", "replicas: 0")))?;
    ensure!(ran.ok, "{}", ran.stderr);
    Ok(())
}

#[test]
fn t3_nonsense_is_refused_at_admission_with_the_field_and_the_reason() -> Result<()> {
    let kubectl = fixture()?.models;
    let source = "{ persistentVolumeClaim: { claimName: weights, path: bf16 } }";
    for (from, to, says) in [
        ("replicas: 1", "replicas: -1", vec!["spec.replicas"]),
        (
            source,
            "{ persistentVolumeClaim: { claimName: w }, hostPath: { path: /m } }",
            vec!["source", "exactly one"],
        ),
        (source, "{}", vec!["source", "exactly one"]),
        ("workers: 2", "workers: 0", vec!["spec.group.workers"]),
        ("device: CPU", "device: Abacus", vec!["spec.group.device", "Abacus"]),
        (
            "maxSurge: 1, maxUnavailable: 0",
            "maxSurge: 0, maxUnavailable: 0",
            vec!["maxSurge", "maxUnavailable"],
        ),
        ("name: bad", "name: a-name-so-long-that-no-pod-name-made-of-it-fits-into-63-chars", vec!["name"]),
        ("replicas: 1", "replicas: 1.5", vec!["spec.replicas"]),
        ("  replicas: 1", "  replica: 1", vec!["replica"]),
    ] {
        let said = kubectl.refused(&manifest(from, to))?;
        for word in says {
            ensure!(said.contains(word), "{to}: the refusal does not say {word:?}:\n{said}");
        }
    }
    Ok(())
}

#[test]
fn t4_every_example_is_accepted() -> Result<()> {
    let fixture = fixture()?;
    for name in ["nano.yaml", "nano-image.yaml", "nano-copies.yaml"] {
        let example = std::fs::read_to_string(fixture.env.root.join("examples").join(name))?;
        let ran = fixture.models.try_run(&["apply", "--dry-run=server", "-f", "-"], Some(&example))?;
        ensure!(ran.ok, "{name}: {}", ran.stderr);
    }
    Ok(())
}

//! The chart installs, and what it installs is ready.

use anyhow::{Result, ensure};
use belay_e2e::fixture::fixture;

#[test]
fn t1_the_chart_is_sound() -> Result<()> {
    let fixture = fixture()?;
    let chart = fixture.chart()?;
    fixture.helm(&["lint", "--strict", &chart])?;
    let rendered = fixture.helm(&["template", "belay", &chart])?;
    ensure!(rendered.contains("kind: Deployment"), "no Deployment in\n{rendered}");
    Ok(())
}

#[test]
fn t2_values_of_a_wrong_kind_are_refused_by_name() -> Result<()> {
    let fixture = fixture()?;
    let chart = fixture.chart()?;
    let error = fixture.helm(&["template", "belay", &chart, "--set", "gateway.replicas=many"]).unwrap_err();
    ensure!(format!("{error:#}").contains("replicas"), "{error:#}");
    Ok(())
}

#[test]
fn t3_helm_install_leads_to_ready_pods() -> Result<()> {
    let fixture = fixture()?;
    fixture.install(&[])?;
    let mut pods = fixture.system.list(&["pods"])?;
    // an upgrade's old ones may still finish requests
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    for pod in pods {
        ensure!(
            pod["status"]["containerStatuses"][0]["ready"] == true,
            "{} is not ready",
            pod["metadata"]["name"]
        );
    }
    Ok(())
}

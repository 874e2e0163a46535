//! Deleting the resource leaves nothing behind; uninstalling the chart strands nothing.

use anyhow::{Result, bail, ensure};
use belay_e2e::wait;

use crate::fixture::{NANO, SOON, fixture};

#[tokio::test]
async fn t1_deleting_the_resource_leaves_nothing_behind() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    fixture.models.run(&["delete", "mdep", NANO, "--timeout=60s"])?;
    let label = format!("serving.belay.dev/model-deployment={NANO}");
    let kinds = "pods,services,configmaps,poddisruptionbudgets,controllerrevisions,endpointslices";
    wait::until("nothing is left", SOON, || {
        let left = fixture.models.list(&[kinds, "-l", &label])?;
        if left.is_empty() {
            return Ok(Some(()));
        }
        bail!("left: {:?}", left.iter().map(|object| &object["metadata"]["name"]).collect::<Vec<_>>())
    })
    .await
}

#[tokio::test]
async fn t2_uninstalling_the_chart_strands_nothing() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    fixture.helm(&["uninstall", "belay", "--wait"])?;
    let label = "app.kubernetes.io/instance=belay";
    for kind in
        ["clusterroles", "clusterrolebindings", "deployments,services,pods,leases,poddisruptionbudgets"]
    {
        let left = fixture.system.list(&[kind, "-l", label])?;
        ensure!(left.is_empty(), "left: {left:?}");
    }
    // the user's resource is the user's: it and its pods stay, and can be deleted without the operator
    fixture.models.run(&["delete", "mdep", NANO, "--timeout=60s"])?;
    wait::until("its pods are gone", SOON, || Ok(fixture.models.workers(NANO)?.is_empty().then_some(())))
        .await
}

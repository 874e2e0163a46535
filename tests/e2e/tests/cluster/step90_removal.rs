//! Deleting the resource leaves nothing behind; uninstalling the chart strands nothing.

use anyhow::{Result, bail};
use belay_e2e::{
    fixture::{NANO, SOON, fixture},
    wait,
};

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
    // what the release made goes by its label, the operator's lease by its namespace; pods may still finish requests
    let release = ["-l", "app.kubernetes.io/instance=belay"];
    wait::until("nothing of the release is left", SOON, || {
        let mut left = Vec::new();
        for kinds in ["clusterroles", "clusterrolebindings", "deployments,services,pods,poddisruptionbudgets"]
        {
            left.extend(fixture.system.list(&[kinds, release[0], release[1]])?);
        }
        left.extend(fixture.system.list(&["leases"])?);
        if left.is_empty() {
            return Ok(Some(()));
        }
        bail!("left: {:?}", left.iter().map(|object| &object["metadata"]["name"]).collect::<Vec<_>>())
    })
    .await?;
    // the user's resource is the user's: it and its pods stay, and can be deleted without the operator
    fixture.models.run(&["delete", "mdep", NANO, "--timeout=60s"])?;
    wait::until("its pods are gone", SOON, || Ok(fixture.models.workers(NANO)?.is_empty().then_some(())))
        .await
}

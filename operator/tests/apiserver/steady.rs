//! Many deployments that rest: the operator asks the API server nothing and writes nothing.
use std::time::{Duration, Instant};

use belay_crds::ModelDeployment;
use kube::api::ListParams;

use crate::{
    audit,
    scenarios::{Cluster, spec},
    settled::settled,
};

/// Deployments.
const FLEET: usize = 30;

/// Looks at each of them, on average, in which nothing may be asked.
const LOOKS: u64 = 2;

/// Calls that it may take to bring one deployment of one group of two workers up, watches apart.
const CALLS: u64 = 30;

impl Cluster {
    pub async fn deployments_that_rest_cost_the_api_server_nothing(&mut self) {
        self.stop_operator();
        let mut audit = self.plane.audit();
        self.start_operator("worker:1");
        drop(audit.calls());
        for n in 0..FLEET {
            self.create(&format!("ship-{n}"), spec()).await;
        }
        let end = Instant::now() + Duration::from_secs(180);
        loop {
            let fleet = self.api::<ModelDeployment>().list(&ListParams::default()).await.unwrap().items;
            let at_rest = fleet.iter().filter(|ship| ship.status.as_ref().is_some_and(settled)).count();
            if at_rest == FLEET {
                break;
            }
            assert!(Instant::now() < end, "only {at_rest} of {FLEET} are ready");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let looks = self.reconciles().await;
        let calls = audit::asked(&audit.calls());
        let count: u64 = calls.values().sum();
        eprintln!("{count} calls and {looks} reconciles for {FLEET} deployments: {calls:?}");
        assert!(count <= CALLS * FLEET as u64, "{calls:?}");

        // what followed the last change of status is over once they were looked at again without a call
        let end = Instant::now() + Duration::from_secs(180);
        loop {
            let before = self.reconciles().await;
            drop(audit.calls());
            while self.reconciles().await < before + LOOKS * FLEET as u64 {
                assert!(Instant::now() < end, "they are not looked at any more");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let calls = audit::asked(&audit.calls());
            if calls.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "deployments that rest are not left alone: {calls:?}");
        }
    }

    /// Reconciles of this operator so far.
    async fn reconciles(&self) -> u64 {
        self.metric("belay_operator_reconciles_total").await
    }
}

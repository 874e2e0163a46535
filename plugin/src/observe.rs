//! Looks at a ModelDeployment: what the API server knows, and what every worker says.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::Result;
use futures::future::join_all;
use jiff::Timestamp;

use crate::{
    answers::{Answers, GroupAnswers, PodAnswer},
    cluster::{Cluster, Group},
    workers::{ADMIN_PORT, ANSWER_LIMIT, Workers, port_forward::PortForward},
};

/// Looks again and again, over connections that it keeps.
pub struct Observer {
    cluster: Cluster,
    workers: Arc<Workers>,
    tally: Arc<Tally>,
}

/// How many workers were asked, and how many have answered.
#[derive(Debug, Default)]
pub struct Tally {
    asked: AtomicUsize,
    answered: AtomicUsize,
}

impl Tally {
    /// For people who wait.
    pub fn words(&self) -> String {
        match (self.answered.load(Ordering::Relaxed), self.asked.load(Ordering::Relaxed)) {
            (_, 0) => "asking the API server ...".to_owned(),
            (answered, asked) => format!("{answered} of {asked} workers answered ..."),
        }
    }
}

impl Observer {
    /// Workers are reached by port-forward.
    pub fn new(cluster: Cluster) -> Self {
        let reach = PortForward::new(cluster.pods(), ADMIN_PORT);
        Self {
            workers: Arc::new(Workers::new(Arc::new(reach), ANSWER_LIMIT)),
            cluster,
            tally: Arc::default(),
        }
    }

    /// The cluster that is looked at.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The workers behind it.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// How far the look under way is.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Everything about a deployment, of all groups or of one.
    ///
    /// # Errors
    /// When the API server does not tell. A worker that does not answer is an observation, not an error.
    pub async fn look(&self, name: &str, group: Option<&str>) -> Result<Answers> {
        self.tally.asked.store(0, Ordering::Relaxed);
        self.tally.answered.store(0, Ordering::Relaxed);
        let deployment = self.cluster.deployment(name).await?;
        let groups = self.cluster.groups(&deployment, group).await?;
        let pods = groups.iter().map(|group| group.pods.len()).sum();
        self.tally.asked.store(pods, Ordering::Relaxed);
        let groups = join_all(groups.into_iter().map(|group| ask(&self.workers, group, &self.tally))).await;
        Ok(Answers {
            deployment: deployment.name.clone(),
            namespace: self.cluster.namespace().to_owned(),
            troubles: deployment.troubles(),
            groups,
            taken: Timestamp::now(),
        })
    }
}

/// Asks the workers of a group, all at once.
pub async fn ask(workers: &Workers, group: Group, tally: &Tally) -> GroupAnswers {
    let pods = group.pods.into_iter().map(|pod| async {
        let worker = match pod.node.as_str() {
            // nothing runs yet
            "" => Err("it has no node yet".to_owned()),
            _ => workers.look(&pod.name).await.map_err(|error| error.to_string()),
        };
        tally.answered.fetch_add(1, Ordering::Relaxed);
        PodAnswer { pod, worker }
    });
    GroupAnswers { pods: join_all(pods).await, ..group.known }
}

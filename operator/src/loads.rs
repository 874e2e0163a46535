//! Load of the experts, as the workers count it: asked for now and then, not at each look.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use belay_proto::admin::{ExpertLoad, Placement};
use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;

use crate::{group::Group, placement::Load, recovery::model_of, worker_client::WorkerClient};

/// Tokens that went to the experts of a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupLoad {
    /// Summed over the workers that asked for them.
    pub load: Load,
    /// What was counted so many seconds ago counts half.
    pub half_life_seconds: f64,
    /// When it was asked for.
    pub measured: Timestamp,
}

impl GroupLoad {
    /// The sum of what workers say; `None` if none says anything.
    pub fn sum(placement: &Placement, answers: &[ExpertLoad], measured: Timestamp) -> Option<Self> {
        let half_life_seconds =
            answers.iter().map(|answer| answer.half_life_seconds).find(|&half| half > 0.0)?;
        Some(Self { load: Load::sum(&model_of(placement), answers), half_life_seconds, measured })
    }
}

type Known = BTreeMap<(String, String), (Timestamp, Option<Arc<GroupLoad>>)>;

/// The last load of each group, by namespace and name.
#[derive(Debug, Default)]
pub struct Loads {
    known: Mutex<Known>,
}

impl Loads {
    /// Gives each group its load, asking its workers if the last answer is older than `every_seconds`, or if `asked` (the
    /// annotation's value) asks for a rebalance of it. A worker that does not answer counts nothing this time.
    pub async fn refresh(
        &self,
        workers: &WorkerClient,
        namespace: &str,
        groups: &mut [Group],
        every_seconds: i64,
        asked: Option<&str>,
        now: Timestamp,
    ) {
        let asked = groups.iter_mut().map(async |group| {
            let key = (namespace.to_owned(), group.name.clone());
            let known = self.lock().get(&key).cloned();
            if let Some((at, load)) = known
                && now.as_second() - at.as_second() < every_seconds
                && !group.rebalances.is_news(asked)
            {
                group.load = load;
                return;
            }
            let Some(placement) = group.placement() else { return };
            let serving = group.pods().filter(|(_, pod)| pod.serves()).filter_map(|(_, pod)| pod.ip.clone());
            let answers = join_all(serving.map(async |ip| workers.expert_load(&ip).await.ok())).await;
            let answers: Vec<ExpertLoad> = answers.into_iter().flatten().collect();
            let load = GroupLoad::sum(placement, &answers, now).map(Arc::new);
            group.load = load;
            self.lock().insert(key, (now, group.load.clone()));
        });
        join_all(asked).await;
        // what was not asked for in a while belongs to groups that are gone
        let oldest = now.as_second() - 10 * every_seconds.max(60);
        self.lock().retain(|_, (at, _)| at.as_second() >= oldest);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

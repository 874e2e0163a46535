//! Faults, done to a group that runs.

use std::time::Duration;

use anyhow::{Context, Result};
use belay_e2e::{
    campaign::scenario::{CHAOS, Fault, POINTS, Scenario, point},
    coverage::Sampler,
    fixture::{Fixture, SOON},
    ledger::Ledger,
    node::{self, Process, Undo},
    variant::Variant,
};
use belay_epoch::Phase;
use serde_json::json;

/// The worker that is hit.
const VICTIM: u32 = 1;
/// How long a fault lasts that passes by itself.
const PASSING: Duration = Duration::from_secs(5);
/// Copies a layer that come and go for the sake of a move.
const MOVED: u32 = 8;

/// All that a strike needs to know, looked up beforehand: what takes time must not lie between the clock and the blow.
pub struct Target {
    scenario: Scenario,
    fixture: Fixture,
    processes: Vec<Process>,
    pods: Vec<serde_json::Value>,
    operator: Option<Process>,
    /// Name of the operator's pod.
    operator_pod: String,
    /// Workers that are hit.
    pub struck: Vec<u32>,
    /// The node that stops.
    pub node: Option<String>,
    /// How long the undisturbed change takes, where the operator is killed in one.
    whole: Duration,
}

impl Target {
    /// Of a group that is well. `whole` is how long an undisturbed recovery or move takes.
    pub async fn find(fixture: &Fixture, scenario: Scenario, whole: Duration) -> Result<Self> {
        let pod = |worker| fixture.worker(CHAOS, worker);
        let victim = pod(VICTIM)?;
        let node = match scenario.fault {
            Fault::StopNode => Some(node::of(&victim)?.to_owned()),
            _ => None,
        };
        let mut struck = match scenario.fault {
            Fault::KillTwo => vec![VICTIM, VICTIM + 1],
            Fault::OperatorInMove => vec![],
            _ => vec![VICTIM],
        };
        if let Some(node) = &node {
            let on_it =
                |worker: &u32| pod(*worker).is_ok_and(|pod| node::of(&pod).is_ok_and(|on| on == node));
            struck = (0..scenario.layout.workers).filter(on_it).collect();
        }
        let pods = match scenario.fault {
            Fault::Partition => vec![pod(0)?, victim],
            _ => struck.iter().map(|&worker| pod(worker)).collect::<Result<_>>()?,
        };
        let kills_operator = matches!(scenario.fault, Fault::OperatorInRecovery | Fault::OperatorInMove);
        let leader = if kills_operator { Some(node::leading_operator(&fixture.system).await?) } else { None };
        Ok(Self {
            scenario,
            processes: pods.iter().map(Process::of).collect::<Result<_>>()?,
            operator: leader.as_ref().map(Process::of).transpose()?,
            operator_pod: leader.as_ref().map(node::name).transpose()?.unwrap_or_default().to_owned(),
            fixture: fixture.clone(),
            pods,
            struck,
            node,
            whole,
        })
    }

    /// Strikes. Returns when a fault that passes is over, else at once, with what undoes a fault that does not.
    pub async fn strike(&self, sampler: &Sampler, ledger: &Ledger) -> Result<Option<Undo>> {
        match self.scenario.fault {
            Fault::Kill | Fault::KillTwo => self.kill()?,
            Fault::DeletePod => self.delete()?,
            Fault::StopNode => {
                let node = self.node.clone().context("a node to stop")?;
                let stop = tokio::task::spawn_blocking(move || node::stop(&node));
                return Ok(Some(stop.await??));
            }
            Fault::Starve => {
                let starving = self.processes[0].starve()?;
                tokio::time::sleep(PASSING).await;
                starving.now()?;
            }
            Fault::Partition => {
                let cut = node::partition(&self.pods[0], &self.pods[1])?;
                tokio::time::sleep(PASSING).await;
                cut.now()?;
            }
            Fault::KillInMove => {
                let since = sampler.now();
                respecify(&self.fixture, &self.scenario, MOVED)?;
                let phases = [Phase::Prepare, Phase::Commit, Phase::Retire];
                let phase = ledger.until_phase(since, &phases, SOON).await?;
                self.kill()?;
                println!("    killed in {phase:?}");
            }
            Fault::OperatorInRecovery => {
                self.delete()?;
                self.kill_operator().await?;
            }
            Fault::OperatorInMove => {
                respecify(&self.fixture, &self.scenario, MOVED)?;
                self.kill_operator().await?;
            }
        }
        Ok(None)
    }

    fn kill(&self) -> Result<()> {
        self.processes.iter().try_for_each(|process| process.signal("KILL"))
    }

    fn delete(&self) -> Result<()> {
        let name = node::name(&self.pods[0])?;
        let args = ["delete", "pod", name, "--grace-period=0", "--force", "--wait=false"];
        self.fixture.models.run(&args).map(|_| ())
    }

    /// At its point of the change. The pod goes as well: the kubelet would wait longer after each of twenty kills.
    async fn kill_operator(&self) -> Result<()> {
        let delay = point(self.whole, self.scenario.repetition, POINTS);
        tokio::time::sleep(delay).await;
        self.operator.as_ref().context("an operator to kill")?.signal("KILL")?;
        println!("    operator killed after {:.2} of {:.1} s", delay.as_secs_f64(), self.whole.as_secs_f64());
        let args = ["delete", "pod", &self.operator_pod, "--grace-period=0", "--force", "--wait=false"];
        self.fixture.system.run(&args).map(|_| ())
    }
}

/// Makes half of a move, undisturbed: how long one takes.
pub async fn time_a_move(
    fixture: &Fixture,
    scenario: &Scenario,
    sampler: &Sampler,
    ledger: &Ledger,
) -> Result<Duration> {
    let since = sampler.now();
    respecify(fixture, scenario, MOVED / 2)?;
    Ok(ledger.until_over(since, SOON).await? - since)
}

/// Other copies are asked for, so that some move: the same operation that a rebalance is.
fn respecify(fixture: &Fixture, scenario: &Scenario, redundant: u32) -> Result<()> {
    let variant = Variant { redundant, ..scenario.variant() };
    let patch = json!({"spec": {"experts": variant.experts()}}).to_string();
    fixture.models.run(&["patch", "mdep", CHAOS, "--type=merge", "-p", &patch]).map(|_| ())
}

//! A group on eight simulated NPUs in two pods: the nodes say that they have NPUs, the workers load a library with CANN's
//! interface. What is real: the API server, the scheduler, the kubelets, the containers, the operator, the gateway, the clients.
//! In a namespace of its own, since pods with NPUs mount files of their nodes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use belay_e2e::{
    coverage::Sampler,
    fixture::{Fixture, SOON, fixture, uids},
    kubectl::{Kubectl, condition, sum},
    ledger::Ledger,
    node::{self, Process, docker},
    oracle::{Expected, LoneWorker},
    traffic::Traffic,
    tunnel::Tunnel,
    wait,
};
use serde_json::{Value, json};

const NAMESPACE: &str = "npus";
const NAME: &str = "nano-npu";
const RESOURCE: &str = "huawei.com/Ascend910";
const WORKERS: u32 = 2;
/// NPUs of a pod.
const DEVICES: u32 = 4;
/// Copies of every expert.
const COPIES: u32 = 2;
/// What a simulator obeys, in the memory of its pod.
const CONTROL: &str = "/dev/shm/simulator";
/// The longest that a stream may stand still: simulated NPUs are slow where two processors compute for eight.
const LONGEST_STALL: Duration = Duration::from_secs(20);

/// Every node that takes pods has eight NPUs, and what Ascend's software leaves on a node.
async fn give_npus(fixture: &Fixture) -> Result<()> {
    for node in fixture.system.list(&["nodes"])? {
        let name = node::name(&node)?;
        let patch = json!([{"op": "add", "path": "/status/capacity/huawei.com~1Ascend910", "value": "8"}]);
        let patch = patch.to_string();
        fixture.system.run(&["patch", "node", name, "--subresource=status", "--type=json", "-p", &patch])?;
        fixture.system.run(&["label", "node", name, "accelerator=huawei-Ascend910", "--overwrite"])?;
        let files = "mkdir -p $tools && touch /etc/hccn.conf $tools/hccn_tool";
        let tools = "tools=/usr/local/Ascend/driver/tools";
        docker(&["exec", name, "sh", "-c", &format!("{tools}; {files}")])?;
        // what an earlier run has left would be older than the pods: it would only be told
        report(fixture, name, &json!([]))?;
    }
    // a kubelet takes a new resource over into what can be had
    wait::until("NPUs can be had on every node", SOON, || {
        let nodes = fixture.system.list(&["nodes"])?;
        Ok(nodes.iter().all(|node| node["status"]["allocatable"][RESOURCE] == "8").then_some(()))
    })
    .await
}

fn manifest() -> String {
    let simulator = json!({"control": CONTROL, "memory_bytes": 512 << 20}).to_string();
    let namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
    });
    let deployment = json!({
        "apiVersion": "serving.belay.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "model": {
                "source": {"hostPath": {"path": "/belay/models/nano/bf16"}},
                "chat": {"defaultThinking": "Disabled"},
            },
            "replicas": 1,
            "group": {
                "workers": WORKERS,
                "device": "Ascend",
                "devicesPerWorker": DEVICES,
                "ascend": {"chip": "A2", "sharedMemory": "64Mi"},
                "cache": {"memory": "16Mi"},
                "template": {
                    "image": "belay.test/belay-worker-npu:test",
                    "imagePullPolicy": "Never",
                    "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}},
                    "env": [
                        {"name": "BELAY_CANN_LIBRARY", "value": "/lib/libbelay_ascend_sim.so"},
                        {"name": "BELAY_ASCEND_SIM", "value": simulator},
                    ],
                },
            },
            "experts": {"minCopies": COPIES, "redundant": 0, "rebalance": {"policy": "Off"}},
        },
    });
    format!("{namespace}\n---\n{deployment}")
}

/// The group under load.
struct Scene {
    fixture: Fixture,
    sampler: Sampler,
    ledger: Ledger,
    traffic: Traffic,
    _tunnel: Tunnel,
}

impl Scene {
    async fn begin() -> Result<Self> {
        let mut fixture = fixture()?;
        fixture.models = Kubectl::new(&fixture.env, NAMESPACE);
        give_npus(&fixture).await?;
        fixture.models.apply(&manifest())?;
        fixture.settled(NAME, 1).await?;
        let began = Instant::now();
        let sampler = Sampler::start(&fixture.models, NAME, began);
        let ledger = Ledger::start(&fixture.models, NAME, began);
        sampler.until_restored(Duration::ZERO, WORKERS, COPIES, SOON).await?;
        in_circle(&fixture).await?;
        let streams = streams(&fixture).await?;
        let tunnel = fixture.gateway()?;
        let traffic = Traffic::start(&tunnel.url(), NAME, &streams, 2)?;
        let scene = Self { fixture, sampler, ledger, traffic, _tunnel: tunnel };
        scene.more_answers(4).await?;
        Ok(scene)
    }

    async fn more_answers(&self, count: usize) -> Result<()> {
        let before = self.traffic.answered();
        let enough = || Ok((self.traffic.answered() >= before + count).then_some(()));
        wait::until("traffic", SOON, enough).await
    }

    /// Waits until worker 1 is another pod and all is as before, and judges what clients and workers saw.
    async fn end(self, since: Duration, before: &[(String, String)]) -> Result<()> {
        wait::until("worker 1 is made anew", SOON, || {
            Ok((uids(&self.fixture.models.workers(NAME)?) != before).then_some(()))
        })
        .await?;
        let restored = self.sampler.until_restored(since, WORKERS, COPIES, SOON).await?;
        self.ledger.until_quiet(SOON).await?;
        self.fixture.settled(NAME, 1).await?;
        in_circle(&self.fixture).await?;
        let again = rounds(&self.fixture)?;
        self.more_answers(4).await?;
        ensure!(rounds(&self.fixture)? > again, "rows go by HCCL again");
        let report = self.traffic.stop().await;
        println!("{report}");
        println!("all copies again after {:.2} s", restored.as_secs_f64());
        report.all_right(8)?;
        report.stalled_at_most(LONGEST_STALL)?;
        self.ledger.check()?;
        let after = uids(&self.fixture.models.workers(NAME)?);
        ensure!(after[0] == before[0] && after[1] != before[1], "{before:?} became {after:?}");
        Ok(())
    }
}

/// A metric of every worker.
fn metrics(fixture: &Fixture, metric: &str) -> Result<Vec<f64>> {
    let workers = fixture.models.workers(NAME)?;
    let of = |pod: &Value| sum(&fixture.models.pod_http(node::name(pod)?, 9090, "/metrics")?, metric);
    workers.iter().map(of).collect()
}

/// Waits until the NPUs of all workers exchange rows by themselves.
async fn in_circle(fixture: &Fixture) -> Result<()> {
    wait::until("NPUs of both pods exchange rows by HCCL", SOON, || {
        let workers = metrics(fixture, "belay_fabric_circle_workers")?;
        let all = workers.iter().all(|count| *count == f64::from(WORKERS));
        if all { Ok(Some(())) } else { bail!("{workers:?}") }
    })
    .await
}

/// Exchanges of all workers that went by HCCL, of those pods that are there.
fn rounds(fixture: &Fixture) -> Result<f64> {
    Ok(metrics(fixture, "belay_fabric_rounds_total")?.iter().sum())
}

/// What streams must be: the tokens of a lone worker on one simulated NPU.
async fn streams(fixture: &Fixture) -> Result<Vec<Expected>> {
    let worker = LoneWorker::on_npu(&fixture.env).await?;
    worker.long_streams(&fixture.cases(&["fact"], 4)?, 40).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t1_eight_npus_in_two_pods_serve_and_one_is_lost() -> Result<()> {
    let scene = Scene::begin().await?;
    let pods = scene.fixture.models.workers(NAME)?;
    for pod in &pods {
        let asked = &pod["spec"]["containers"][0]["resources"]["limits"][RESOURCE];
        ensure!(*asked == DEVICES.to_string().as_str(), "{asked}");
    }
    let (by_hccl, over_tcp) = (
        rounds(&scene.fixture)?,
        metrics(&scene.fixture, "belay_fabric_rows_sent_total")?.iter().sum::<f64>(),
    );
    println!("{by_hccl} exchanges by HCCL, {over_tcp} rows over TCP");
    ensure!(by_hccl > 100.0, "streams were answered by HCCL");
    let before = uids(&pods);
    let victim = Process::of(&scene.fixture.worker(NAME, 1)?)?;
    let since = scene.sampler.now();
    victim.append(CONTROL, "lose 2 507901")?;
    scene.end(since, &before).await
}

/// What the device plugin writes about a node.
fn report(fixture: &Fixture, node: &str, faults: &Value) -> Result<()> {
    let info = json!({
        "DeviceInfo": {
            "DeviceList": {
                RESOURCE: "",
                format!("{RESOURCE}-Fault"): faults.to_string(),
                format!("{RESOURCE}-NetworkUnhealthy"): "",
                format!("{RESOURCE}-Recovering"): "",
                format!("{RESOURCE}-Unhealthy"): "",
            },
            "UpdateTime": 1_800_000_000,
        },
        "SuperPodID": -2,
        "ServerIndex": -2,
    });
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": format!("mindx-dl-deviceinfo-{node}")},
        "data": {"DeviceInfoCfg": info.to_string(), "ManuallySeparateNPU": ""},
    });
    Kubectl::new(&fixture.env, "kube-system").apply(&object.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t2_what_a_device_plugin_reports_moves_the_worker_off_the_device() -> Result<()> {
    let scene = Scene::begin().await?;
    let before = uids(&scene.fixture.models.workers(NAME)?);
    let pod = scene.fixture.worker(NAME, 1)?;
    let (name, node) = (node::name(&pod)?, node::of(&pod)?.to_owned());
    let devices = "huawei.com/AscendReal=Ascend910-4,Ascend910-5,Ascend910-6,Ascend910-7";
    scene.fixture.models.run(&["annotate", "pod", name, devices])?;
    let since = scene.sampler.now();
    let fault = json!([{
        "fault_type": "CardUnhealthy",
        "npu_name": "Ascend910-5",
        "large_model_fault_level": "PreSeparateNPU",
        "fault_level": "PreSeparateNPU",
        "fault_handling": "PreSeparateNPU",
        "fault_code": "80E01801",
        "fault_time_and_level_map": {"80E01801": {"fault_time": 0, "fault_level": "PreSeparateNPU"}},
    }]);
    report(&scene.fixture, &node, &fault)?;
    let fixture = scene.fixture.clone();
    wait::until("device, code and level are told", SOON, || {
        let object = fixture.models.deployment(NAME)?;
        let told = condition(&object, "Degraded").context("no condition Degraded")?;
        let words = ["DeviceFault", "80E01801", "PreSeparateNPU", "Ascend910-5"];
        let is_told = words.iter().all(|word| format!("{told:?}").contains(word));
        if is_told { Ok(Some(())) } else { bail!("{told:?}") }
    })
    .await?;
    scene.end(since, &before).await?;
    report(&fixture, &node, &json!([]))?;
    fixture.remove(NAME).await?;
    fixture.system.run(&["delete", "namespace", NAMESPACE]).map(|_| ())
}

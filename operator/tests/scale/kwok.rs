//! Nodes and kubelets by kwok, and a real scheduler: pods are bound, run and get an address on loopback.
use std::{fs, path::Path};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use serde_json::json;

use crate::{
    control_plane::{ADMIN, ControlPlane},
    until,
};

/// What happens to nodes and pods: a node is there and ready at once; a pod with a node runs at once. The worker in it is not
/// kwok's, nor is its end: see `workers.rs`.
const STAGES: &str = r#"
kind: Stage
apiVersion: kwok.x-k8s.io/v1alpha1
metadata: { name: node-is-ready }
spec:
  resourceRef: { apiGroup: v1, kind: Node }
  selector:
    matchExpressions:
    - { key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: NotIn, values: ["True"] }
  next:
    statusTemplate: |
      capacity: { cpu: "64", memory: 512Gi, pods: "250" }
      allocatable: { cpu: "64", memory: 512Gi, pods: "250" }
      conditions:
      - { type: Ready, status: "True", reason: KubeletReady, lastHeartbeatTime: {{ Now | Quote }}, lastTransitionTime: {{ Now | Quote }} }
---
kind: Stage
apiVersion: kwok.x-k8s.io/v1alpha1
metadata: { name: pod-runs }
spec:
  resourceRef: { apiGroup: v1, kind: Pod }
  selector:
    matchExpressions:
    - { key: .metadata.deletionTimestamp, operator: DoesNotExist }
    - { key: .status.podIP, operator: DoesNotExist }
  next:
    statusTemplate: |
      phase: Running
      startTime: {{ Now | Quote }}
      conditions:
      - { type: Ready, status: "True", lastTransitionTime: {{ Now | Quote }} }
      - { type: ContainersReady, status: "True", lastTransitionTime: {{ Now | Quote }} }
      {{ $addresses := PodIPsWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace }}
      podIP: {{ index $addresses 0 | Quote }}
      podIPs:
      - ip: {{ index $addresses 0 | Quote }}
      containerStatuses:
      {{ range .spec.containers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        imageID: ""
        ready: true
        restartCount: 0
        state: { running: { startedAt: {{ Now | Quote }} } }
      {{ end }}
"#;

/// Starts kwok and the scheduler, and waits until there are `count` nodes that are ready.
pub async fn start(plane: &mut ControlPlane, programs: &Path, client: &Client, count: usize) {
    let config = plane.dir().join("kwok.yaml");
    fs::write(&config, STAGES).unwrap();
    let kubeconfig = plane.kubeconfig(ADMIN).display().to_string();
    plane.spawn(
        &programs.join("kwok"),
        &[
            "--kubeconfig",
            &kubeconfig,
            "--config",
            &config.display().to_string(),
            "--manage-all-nodes",
            // the addresses of pods are all this machine: one process answers for all workers
            "--cidr",
            "127.64.0.0/10",
            "--node-lease-duration-seconds",
            "40",
        ],
    );
    let scheduler = plane.dir().join("scheduler.yaml");
    let clients = json!({ "kubeconfig": kubeconfig, "qps": 500, "burst": 1000 });
    let text = json!({ "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "leaderElection": { "leaderElect": false }, "clientConnection": clients });
    fs::write(&scheduler, text.to_string()).unwrap();
    plane.spawn(
        &programs.join("kube-scheduler"),
        &["--config", &scheduler.display().to_string(), "--secure-port=0"],
    );
    let nodes: Api<Node> = Api::all(client.clone());
    let make = |n: usize| {
        let name = format!("node-{n}");
        let labels = json!({ "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{}", n % 3) });
        let node: Node =
            serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap();
        let nodes = nodes.clone();
        async move { drop(nodes.create(&PostParams::default(), &node).await.unwrap()) }
    };
    stream::iter(0..count).map(make).buffer_unordered(8).collect::<Vec<()>>().await;
    until("all nodes are ready", 120, async || {
        let list = nodes.list(&ListParams::default()).await.unwrap();
        let ready = |node: &&Node| {
            let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        };
        list.iter().filter(ready).count() == count
    })
    .await;
}

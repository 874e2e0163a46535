//! `kubectl belay plan` against a real API server: admission refuses, nothing is stored. Needs the programs in
//! `BELAY_KUBERNETES_BIN`, which `make unit` sets; says so and passes where that is not set.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]

#[path = "../../operator/tests/apiserver/audit.rs"]
#[allow(dead_code, reason = "the operator's tests use it")]
mod audit;
#[path = "../../operator/tests/apiserver/control_plane.rs"]
#[allow(dead_code, reason = "the operator's tests use the rest")]
mod control_plane;

use std::{io::Write as _, process::Stdio};

use belay_crds::ModelDeployment;
use k8s_openapi::{
    api::core::v1::Node, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, CustomResourceExt as _, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::control_plane::{ADMIN, ControlPlane};

const FILE: &str = "apiVersion: serving.belay.dev/v1alpha1
kind: ModelDeployment
metadata: {name: nano}
spec:
  replicas: 2
  model: {source: {hostPath: {path: /models/nano}}}
  group:
    workers: 2
    device: CPU
    template: {image: 'worker:1', resources: {requests: {cpu: 1500m, memory: 1Gi}}}
";

struct Cluster {
    plane: ControlPlane,
    client: Client,
}

impl Cluster {
    /// Plans what the text says: exit code, reports, standard error.
    fn plan(&self, text: &str) -> (i32, Value, String) {
        let (code, stdout, stderr) = self.run(&["plan", "-f", "-", "-o", "json"], text);
        (code, serde_json::from_str(&stdout).unwrap_or_default(), stderr)
    }

    fn run(&self, arguments: &[&str], input: &str) -> (i32, String, String) {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_kubectl-belay"))
            .args(arguments)
            .arg("--kubeconfig")
            .arg(self.plane.kubeconfig(ADMIN))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn deployments(&self) -> Api<ModelDeployment> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn node(&self, name: &str, cpu: &str) {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        api.create(&PostParams::default(), &node).await.unwrap();
        let status = json!({"status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        // the API server taints nodes that nobody has reported ready yet
        let spec = json!({"spec": {"taints": null}});
        api.patch(name, &PatchParams::default(), &Patch::Merge(spec)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_against_a_real_api_server() {
    let Some(programs) = control_plane::programs() else {
        eprintln!("SKIPPED: BELAY_KUBERNETES_BIN is not set; run it with `make unit`");
        return;
    };
    let plane = ControlPlane::start(&programs).await;
    let client = plane.client(ADMIN).await;
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    crds.create(&PostParams::default(), &ModelDeployment::crd()).await.unwrap();
    let established = kube::runtime::wait::conditions::is_crd_established();
    kube::runtime::wait::await_condition(crds, ModelDeployment::crd_name(), established).await.unwrap();
    let cluster = Cluster { plane, client };
    cluster.node("node-a", "3").await;
    cluster.node("node-b", "3").await;

    what_is_new(&cluster).await;
    what_is_refused(&cluster);
    what_changes(&cluster).await;
    what_was_applied_on_the_client(&cluster).await;
}

async fn what_is_new(cluster: &Cluster) {
    let (code, reports, stderr) = cluster.plan(FILE);
    assert_eq!((code, stderr.as_str()), (0, ""), "{reports:#}");
    assert_eq!((&reports[0]["verdict"], &reports[0]["change"]["kind"]), (&json!("fits"), &json!("creation")));
    assert_eq!(reports[0]["course"]["rounds"][0]["create"].as_array().unwrap().len(), 2);
    assert!(
        cluster.deployments().list(&ListParams::default()).await.unwrap().items.is_empty(),
        "nothing is stored"
    );
    let (code, reports, _) = cluster.plan(&FILE.replace("replicas: 2", "replicas: 3"));
    assert_eq!(code, 1);
    assert!(
        reports[0]["reasons"][0]
            .as_str()
            .unwrap()
            .contains("0/2 nodes take it: 2 with too little cpu (asks 1500m"),
        "{reports:#}"
    );
    let two = format!("{FILE}---\n{}", FILE.replace("nano}", "giga}"));
    assert_eq!(cluster.plan(&two).1.as_array().unwrap().len(), 2);
}

fn what_is_refused(cluster: &Cluster) {
    let wrong = FILE.replace("  group:\n", "  rollout: {maxSurge: 0}\n  group:\n");
    let (code, reports, _) = cluster.plan(&wrong);
    let refusal = &reports[0]["refusals"][0];
    assert_eq!((code, &reports[0]["verdict"]), (1, &json!("refused")), "{reports:#}");
    assert_eq!(refusal["field"], "spec.rollout.maxSurge");
    assert!(refusal["message"].as_str().unwrap().contains("must not both be 0"), "{refusal}");
    let (code, text, _) = cluster.run(&["plan", "-f", "-"], &wrong);
    assert!(
        code == 1 && text.starts_with("modeldeployment default/nano: is refused\n  spec.rollout.maxSurge: "),
        "{text}"
    );
    let unknown = FILE.replace("replicas: 2", "replicas: 2\n  strategy: None");
    let (code, reports, _) = cluster.plan(&unknown);
    assert_eq!(code, 1, "{reports:#}");
    assert!(reports[0]["refusals"][0].to_string().contains("strategy"), "{reports:#}");
    for (text, words) in [("a: [", "error: "), ("kind: Service", "there is no ModelDeployment in it")] {
        let (code, _, stderr) = cluster.plan(text);
        assert!(code == 2 && stderr.contains(words), "{stderr}");
    }
    let (code, _, stderr) = cluster.run(&["plan", "giga"], "");
    assert!(code == 2 && stderr.contains("modeldeployment default/giga"), "{stderr}");
}

async fn what_changes(cluster: &Cluster) {
    let api = cluster.deployments();
    let object: Value = serde_saphyr::from_str(FILE).unwrap();
    let params = PatchParams::apply("kubectl");
    let stored = api.patch("nano", &params, &Patch::Apply(&object)).await.unwrap();
    let kind = |reports: &Value| reports[0]["change"]["kind"].as_str().unwrap().to_owned();
    let (code, reports, _) = cluster.plan(FILE);
    assert_eq!((code, kind(&reports).as_str()), (0, "none"), "{reports:#}");
    let (_, reports, _) = cluster.plan(&FILE.replace("worker:1", "worker:2"));
    assert_eq!(kind(&reports), "revision");
    let field = &reports[0]["change"]["fields"][0];
    assert_eq!((&field["field"], &field["new"]), (&json!("spec.group.template.image"), &json!("worker:2")));
    let (_, reports, _) = cluster.plan(&FILE.replace("replicas: 2", "replicas: 1"));
    assert_eq!(kind(&reports), "settings");
    // what was applied once and is not in the file any more goes
    let (_, reports, _) = cluster.plan(&FILE.replace("image: 'worker:1', ", ""));
    assert_eq!(reports[0]["change"]["fields"][0]["new"], Value::Null, "{reports:#}");
    let (code, text, _) = cluster.run(&["plan", "nano"], "");
    assert!(code == 0 && text.contains("nothing: revision stays"), "{text}");
    let after = api.get("nano").await.unwrap();
    assert_eq!(after.resource_version(), stored.resource_version(), "nothing is stored");
}

async fn what_was_applied_on_the_client(cluster: &Cluster) {
    let mut object: Value = serde_saphyr::from_str(&FILE.replace("nano}", "client}")).unwrap();
    let last = object.to_string();
    object["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": last});
    let typed = serde_json::from_value(object).unwrap();
    cluster.deployments().create(&PostParams::default(), &typed).await.unwrap();
    let changed = FILE.replace("nano}", "client}").replace("image: 'worker:1', ", "");
    let (_, reports, stderr) = cluster.plan(&changed);
    assert_eq!(reports[0]["change"]["fields"][0]["new"], Value::Null, "{reports:#} {stderr}");
}

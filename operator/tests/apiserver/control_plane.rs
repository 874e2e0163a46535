//! etcd, kube-apiserver and the garbage collector on loopback, for the length of a test.
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kube::{Client, Config, config::Kubeconfig};
use serde_json::json;

use crate::audit::AuditLog;

/// User of the tests: may do everything.
pub const ADMIN: &str = "admin";
/// User of the operator: may do what its role allows.
pub const OPERATOR: &str = "operator";

/// A control plane of its own. Its processes end with it.
pub struct ControlPlane {
    children: Vec<Child>,
    dir: tempfile::TempDir,
    port: u16,
}

/// Where the programs are: `BELAY_KUBERNETES_BIN`, which `make unit` sets; `None` if it is not set.
///
/// # Panics
/// If it is set, and one of the programs is not there.
pub fn programs() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("BELAY_KUBERNETES_BIN")?);
    for program in ["etcd", "kube-apiserver", "kube-controller-manager"] {
        assert!(dir.join(program).exists(), "BELAY_KUBERNETES_BIN: {} has no {program}", dir.display());
    }
    Some(dir)
}

/// A port of loopback that nobody listens at.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl ControlPlane {
    /// Starts everything and waits until it answers.
    pub async fn start(programs: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (etcd, peer, port) = (free_port(), free_port(), free_port());
        let at = |name: &str| dir.path().join(name).display().to_string();
        let users =
            format!("{ADMIN}-token,{ADMIN},{ADMIN},system:masters\n{OPERATOR}-token,{OPERATOR},{OPERATOR}\n");
        fs::write(at("users.csv"), users).unwrap();
        let key = Command::new("openssl").args(["genrsa", "-out", &at("sa.key"), "2048"]).output().unwrap();
        assert!(key.status.success(), "openssl genrsa");
        let rules = [json!({ "level": "Metadata", "users": [OPERATOR] }), json!({ "level": "None" })];
        let policy = json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"], "rules": rules });
        fs::write(at("audit-policy.yaml"), policy.to_string()).unwrap();
        let mut this = Self { children: vec![], dir, port };
        let etcd_url = format!("http://127.0.0.1:{etcd}");
        let peer_url = format!("http://127.0.0.1:{peer}");
        this.spawn(
            &programs.join("etcd"),
            &[
                "--data-dir",
                &at_dir(&this, "etcd"),
                "--unsafe-no-fsync",
                "--listen-client-urls",
                &etcd_url,
                "--advertise-client-urls",
                &etcd_url,
                "--listen-peer-urls",
                &peer_url,
            ],
        );
        this.spawn(
            &programs.join("kube-apiserver"),
            &[
                "--etcd-servers",
                &etcd_url,
                "--bind-address",
                "127.0.0.1",
                "--secure-port",
                &port.to_string(),
                "--cert-dir",
                &at_dir(&this, "certs"),
                "--service-account-key-file",
                &at_dir(&this, "sa.key"),
                "--service-account-signing-key-file",
                &at_dir(&this, "sa.key"),
                "--service-account-issuer",
                "https://kubernetes.default.svc",
                "--token-auth-file",
                &at_dir(&this, "users.csv"),
                "--authorization-mode",
                "RBAC",
                "--service-cluster-ip-range",
                "10.96.0.0/16",
                // there are no controllers that would make service accounts and take taints away
                "--disable-admission-plugins",
                "ServiceAccount,TaintNodesByCondition",
                // PodGroups
                "--feature-gates",
                "GenericWorkload=true",
                "--runtime-config",
                "scheduling.k8s.io/v1beta1=true",
                "--enable-admission-plugins",
                "OwnerReferencesPermissionEnforcement",
                // what the operator asks, written before it is answered
                "--audit-policy-file",
                &at_dir(&this, "audit-policy.yaml"),
                "--audit-log-path",
                &at_dir(&this, "audit.log"),
            ],
        );
        this.wait_ready().await;
        let kubeconfig = this.kubeconfig(ADMIN).display().to_string();
        this.spawn(
            &programs.join("kube-controller-manager"),
            &[
                "--kubeconfig",
                &kubeconfig,
                "--leader-elect=false",
                "--secure-port=0",
                "--controllers=garbage-collector-controller,disruption-controller",
                "--kube-api-qps=500",
                "--kube-api-burst=500",
            ],
        );
        this
    }

    /// Starts another program, which ends with the rest.
    pub fn spawn(&mut self, program: &Path, args: &[&str]) {
        let name = program.file_name().unwrap().display().to_string();
        let log = fs::File::create(self.dir.path().join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(program);
        command.args(args).stdout(Stdio::null()).stderr(log);
        self.children.push(command.spawn().unwrap());
    }

    async fn wait_ready(&self) {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            if self.dir.path().join("certs/apiserver.crt").exists() {
                let request = http::Request::get("/readyz").body(vec![]).unwrap();
                if self.client(ADMIN).await.request_text(request).await.is_ok_and(|text| text == "ok") {
                    return;
                }
            }
            assert!(
                Instant::now() < end,
                "kube-apiserver does not get ready; see {}",
                self.dir.path().display()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the operator has asked the API server so far.
    pub fn audit(&self) -> AuditLog {
        AuditLog::new(self.dir.path().join("audit.log"))
    }

    /// A kubeconfig for a user.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        let path = self.dir.path().join(format!("{user}.kubeconfig"));
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port),
                "certificate-authority": self.dir.path().join("certs/apiserver.crt") } }],
            "users": [{ "name": "it", "user": { "token": format!("{user}-token") } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it", "namespace": "default" } }],
        });
        fs::write(&path, text.to_string()).unwrap();
        path
    }

    /// A client of a user.
    pub async fn client(&self, user: &str) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(user)).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        // a refused eviction (429) is an answer here, not something to ask again for
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }
}

fn at_dir(plane: &ControlPlane, name: &str) -> String {
    plane.dir.path().join(name).display().to_string()
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

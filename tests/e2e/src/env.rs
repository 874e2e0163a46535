//! Where the cluster, its tools and our build are; all of it from environment variables that `make` sets.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The places a cluster test needs.
#[derive(Clone, Debug)]
pub struct Env {
    /// Folder with `kubectl`, `helm` and `kind` (`BELAY_BIN`).
    pub bin: PathBuf,
    /// Name of the kind cluster (`BELAY_CLUSTER`).
    pub cluster: String,
    /// The checkout.
    pub root: PathBuf,
    /// A `belay-worker` built for this machine (`BELAY_WORKER`), used as the oracle.
    pub worker: PathBuf,
    /// Folder with a `belay-worker` that can load CANN, and the simulator's library (`BELAY_NPU`).
    pub npu: PathBuf,
    /// A Python with the client packages of `tests/e2e/clients/requirements.txt` (`BELAY_PYTHON`).
    pub python: PathBuf,
}

impl Env {
    /// Reads the environment.
    ///
    /// # Errors
    /// Names the variable that is missing. `KUBECONFIG` and `DOCKER_HOST` are read by the tools themselves, but
    /// a test run without `KUBECONFIG` could hit somebody's real cluster, so it is required here too.
    pub fn read() -> Result<Self> {
        var("KUBECONFIG")?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .context("tests/e2e lies two folders below the checkout")?;
        Ok(Self {
            bin: var("BELAY_BIN")?.into(),
            cluster: var("BELAY_CLUSTER")?,
            root: root.to_path_buf(),
            worker: var("BELAY_WORKER")?.into(),
            npu: var("BELAY_NPU")?.into(),
            python: var("BELAY_PYTHON")?.into(),
        })
    }

    /// A tool of the tools folder.
    #[must_use]
    pub fn tool(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The nano model's bf16 directory in the checkout.
    #[must_use]
    pub fn nano(&self) -> PathBuf {
        self.root.join("tests/fixtures/models/nano/bf16")
    }
}

fn var(name: &str) -> Result<String> {
    env::var(name)
        .with_context(|| format!("{name} is not set; run the cluster tests with `make test-cluster`"))
}

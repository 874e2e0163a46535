//! `kubectl`, `helm` and other programs, run as a user runs them.

use std::{
    ffi::OsStr,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::env::Env;

/// What a program printed, and whether it succeeded.
#[derive(Debug)]
pub struct Ran {
    /// Exit status 0.
    pub ok: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// How long a program may run, in seconds: more than any of them needs.
const LIMIT: &str = "660";

/// Runs a program to its end, without judging the exit status. One that stands still is ended by SIGABRT, at which Go's and
/// Python's runtimes print where each of their threads was.
///
/// # Errors
/// If it can't be started.
pub fn run<I, S>(program: &Path, args: I, stdin: Option<&str>) -> Result<Ran>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new("timeout");
    command.args(["--verbose", "--signal=ABRT", "--kill-after=10", LIMIT]).arg(program).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
        pipe.write_all(text.as_bytes())?;
    }
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    Ok(Ran {
        ok: status.success(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    })
}

/// `kubectl` against the test cluster.
#[derive(Clone, Debug)]
pub struct Kubectl {
    env: Env,
    namespace: String,
}

impl Kubectl {
    /// For one namespace.
    #[must_use]
    pub fn new(env: &Env, namespace: &str) -> Self {
        Self { env: env.clone(), namespace: namespace.to_owned() }
    }

    /// The namespace of every call.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A `kubectl` call that is yet to be started, for those that go on for long.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.env.tool("kubectl"));
        command.args(["--namespace", &self.namespace]).args(args);
        command
    }

    /// Any `kubectl` call; the result says whether it succeeded.
    ///
    /// # Errors
    /// If `kubectl` can't be started.
    pub fn try_run(&self, args: &[&str], stdin: Option<&str>) -> Result<Ran> {
        let mut all = vec!["--namespace", &self.namespace];
        all.extend_from_slice(args);
        run(&self.env.tool("kubectl"), all, stdin)
    }

    /// A call that must succeed; its standard output.
    ///
    /// # Errors
    /// With what `kubectl` said.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let ran = self.try_run(args, None)?;
        if !ran.ok {
            bail!("kubectl {}: {}{}", args.join(" "), ran.stderr, ran.stdout);
        }
        Ok(ran.stdout)
    }

    /// `kubectl apply` of a manifest that must be accepted.
    ///
    /// # Errors
    /// With what the API server said.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let ran = self.try_run(&["apply", "-f", "-"], Some(manifest))?;
        if !ran.ok {
            bail!("kubectl apply: {}", ran.stderr);
        }
        Ok(())
    }

    /// What the API server says to a manifest that it must refuse.
    ///
    /// # Errors
    /// If it was accepted.
    pub fn refused(&self, manifest: &str) -> Result<String> {
        let ran = self.try_run(&["apply", "-f", "-"], Some(manifest))?;
        if ran.ok {
            bail!("accepted, though it must be refused:\n{manifest}");
        }
        Ok(ran.stderr)
    }

    /// `kubectl get … -o json`.
    ///
    /// # Errors
    /// With what `kubectl` said.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get"];
        all.extend_from_slice(args);
        all.extend_from_slice(&["-o", "json"]);
        Ok(serde_json::from_str(&self.run(&all)?)?)
    }

    /// The items of a list.
    ///
    /// # Errors
    /// With what `kubectl` said.
    pub fn list(&self, args: &[&str]) -> Result<Vec<Value>> {
        match self.get(args)?["items"].take() {
            Value::Array(items) => Ok(items),
            other => bail!("kubectl get {}: no list but {other}", args.join(" ")),
        }
    }

    /// The ModelDeployment of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn deployment(&self, name: &str) -> Result<Value> {
        self.get(&["modeldeployments.serving.belay.dev", name])
    }

    /// The worker pods of a ModelDeployment.
    ///
    /// # Errors
    /// With what `kubectl` said.
    pub fn workers(&self, deployment: &str) -> Result<Vec<Value>> {
        self.list(&["pods", "-l", &format!("serving.belay.dev/model-deployment={deployment}")])
    }

    /// The text that a pod's HTTP port answers, through the API server.
    ///
    /// # Errors
    /// With what `kubectl` said.
    pub fn pod_http(&self, pod: &str, port: u16, path: &str) -> Result<String> {
        self.run(&[
            "get",
            "--raw",
            &format!("/api/v1/namespaces/{}/pods/{pod}:{port}/proxy{path}", self.namespace),
        ])
    }
}

/// Sum of all series of a metric, in the text form of Prometheus.
///
/// # Errors
/// If there is none.
pub fn sum(metrics: &str, name: &str) -> Result<f64> {
    let values: Vec<f64> = metrics
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    ensure!(!values.is_empty(), "no metric {name} in\n{metrics}");
    Ok(values.iter().sum())
}

/// Status and reason of a condition: `("True", "AllGroupsReady")`.
#[must_use]
pub fn condition(object: &Value, name: &str) -> Option<(String, String, String)> {
    let condition =
        object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == name)?;
    let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

//! What happens to machines and processes: signals to a container's process, a stopped node, a cut between two pods.
//! All of it from outside, by Docker, in which the nodes run; nothing in the product is asked to play dead.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    fixture::SOON,
    kubectl::{Kubectl, run},
    wait,
};

/// Runs `docker`.
///
/// # Errors
/// With what it said.
pub fn docker(args: &[&str]) -> Result<String> {
    let ran = run(Path::new("docker"), args, None)?;
    ensure!(ran.ok, "docker {}: {}{}", args.join(" "), ran.stderr, ran.stdout);
    Ok(ran.stdout)
}

/// The node that a pod runs on.
///
/// # Errors
/// If it runs on none yet.
pub fn of(pod: &Value) -> Result<&str> {
    pod["spec"]["nodeName"].as_str().with_context(|| format!("{} is on no node", pod["metadata"]["name"]))
}

/// A pod's name.
///
/// # Errors
/// If it has none.
pub fn name(pod: &Value) -> Result<&str> {
    pod["metadata"]["name"].as_str().context("a pod without a name")
}

/// The first process of a pod's only container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    node: String,
    /// As the node counts processes.
    id: u32,
}

impl Process {
    /// That of a pod that runs.
    ///
    /// # Errors
    /// If its container does not run.
    pub fn of(pod: &Value) -> Result<Self> {
        let node = of(pod)?;
        let container = pod["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .and_then(|id| id.strip_prefix("containerd://"))
            .with_context(|| format!("{} has no container", pod["metadata"]["name"]))?;
        let tasks = docker(&["exec", node, "ctr", "--namespace", "k8s.io", "tasks", "ls"])?;
        let id = process_id(&tasks, container)
            .with_context(|| format!("{} does not run on {node}:\n{tasks}", pod["metadata"]["name"]))?;
        Ok(Self { node: node.to_owned(), id })
    }

    /// Sends a signal: `KILL`, `STOP`, `CONT`.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: &str) -> Result<()> {
        docker(&["exec", &self.node, "sh", "-c", &format!("kill -s {signal} {}", self.id)]).map(|_| ())
    }

    /// Appends a line to a file as the process sees it.
    ///
    /// # Errors
    /// If the process is gone, or the file can't be written.
    pub fn append(&self, file: &str, line: &str) -> Result<()> {
        let script = format!("echo '{line}' >> /proc/{}/root{file}", self.id);
        docker(&["exec", &self.node, "sh", "-c", &script]).map(|_| ())
    }

    /// Stops it until what is returned is dropped. Its connections stay open, and nothing answers on them.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn starve(&self) -> Result<Undo> {
        self.signal("STOP")?;
        let process = self.clone();
        Ok(Undo::new(format!("{} goes on", self.node), move || process.signal("CONT")))
    }
}

/// The line of `ctr tasks ls` is `CONTAINER PID STATUS`.
fn process_id(tasks: &str, container: &str) -> Option<u32> {
    tasks.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == container).then(|| words.next()?.parse().ok()).flatten()
    })
}

/// Undoes a fault, at the latest when it is dropped, so that a test that fails leaves a sound cluster.
#[must_use = "dropping it undoes the fault at once"]
pub struct Undo {
    what: String,
    undo: Option<Box<dyn FnOnce() -> Result<()> + Send>>,
}

impl Undo {
    /// Of these faults together.
    pub fn new(what: String, undo: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self { what, undo: Some(Box::new(undo)) }
    }

    /// Undoes it now.
    ///
    /// # Errors
    /// If that fails.
    pub fn now(mut self) -> Result<()> {
        self.undo.take().map_or(Ok(()), |undo| undo()).with_context(|| self.what.clone())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.undo.take().map(|undo| undo()) {
            eprintln!("{}: {error:#}", self.what);
        }
    }
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Undo").field("what", &self.what).finish_non_exhaustive()
    }
}

/// `docker stop` of a node with hardly a second of warning; it starts again when what is returned is dropped.
///
/// # Errors
/// If Docker refuses.
pub fn stop(node: &str) -> Result<Undo> {
    docker(&["stop", "-t", "1", node])?;
    let node = node.to_owned();
    Ok(Undo::new(format!("{node} starts again"), move || docker(&["start", &node]).map(|_| ())))
}

/// Nothing passes between two pods, in either direction, until what is returned is dropped; connections stay open.
///
/// # Errors
/// If a pod has no address, or the node's packet filter can't be changed.
pub fn partition(one: &Value, other: &Value) -> Result<Undo> {
    let address = |pod: &Value| {
        let address = pod["status"]["podIP"].as_str();
        address.map(str::to_owned).with_context(|| format!("{} has no address", pod["metadata"]["name"]))
    };
    let (one_at, other_at) = (address(one)?, address(other)?);
    // both directions pass the node of either pod
    let node = of(one)?.to_owned();
    let filter = move |verb: &str| {
        let rule = |from: &str, to: &str| format!("iptables -w {verb} FORWARD -s {from} -d {to} -j DROP");
        let script = format!("{} && {}", rule(&one_at, &other_at), rule(&other_at, &one_at));
        docker(&["exec", &node, "sh", "-c", &script]).map(|_| ())
    };
    filter("-I")?;
    Ok(Undo::new("the pods reach each other again".to_owned(), move || filter("-D")))
}

/// `kubectl drain`, with whatever it says; the node takes pods again when what is returned is dropped.
///
/// # Errors
/// If the drain did not end within `seconds`; the node takes pods again then, too.
pub fn drain(kubectl: &Kubectl, node: &str, seconds: u32) -> Result<Undo> {
    let undo = {
        let (kubectl, node) = (kubectl.clone(), node.to_owned());
        Undo::new(format!("{node} takes pods again"), move || kubectl.run(&["uncordon", &node]).map(|_| ()))
    };
    let timeout = format!("--timeout={seconds}s");
    kubectl.run(&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", &timeout])?;
    Ok(undo)
}

/// The pod of the operator that leads.
///
/// # Errors
/// If none does before long: after the death of one, its lease has to run out.
pub async fn leading_operator(system: &Kubectl) -> Result<Value> {
    wait::until("an operator that leads", SOON, || find_leading_operator(system).map(Some)).await
}

fn find_leading_operator(system: &Kubectl) -> Result<Value> {
    let lease = system.get(&["lease", "belay-operator"])?;
    let holder = lease["spec"]["holderIdentity"]
        .as_str()
        .filter(|holder| !holder.is_empty())
        .context("nobody leads")?;
    let pods = system.list(&["pods", "-l", "app.kubernetes.io/component=operator"])?;
    pods.into_iter()
        .find(|pod| name(pod).is_ok_and(|name| holder.starts_with(name)))
        .with_context(|| format!("{holder}, which leads, is no pod"))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn a_process_is_found_by_its_container() {
        let tasks = "TASK    PID     STATUS    \nabcd    1234    RUNNING\nabc     77      RUNNING\n";
        assert_eq!(process_id(tasks, "abc"), Some(77));
        assert_eq!(process_id(tasks, "abcd"), Some(1234));
        assert_eq!(process_id(tasks, "ab"), None);
    }

    #[test]
    fn a_fault_is_undone_once() {
        let undone = Arc::new(AtomicUsize::new(0));
        let undo = || {
            let undone = Arc::clone(&undone);
            Undo::new("it".into(), move || {
                undone.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        };
        undo().now().unwrap();
        assert_eq!(undone.load(Ordering::Relaxed), 1);
        drop(undo());
        assert_eq!(undone.load(Ordering::Relaxed), 2);
    }
}

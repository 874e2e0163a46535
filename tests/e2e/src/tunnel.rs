//! A way into the cluster from this machine: `kubectl port-forward` to one pod, on a loopback port.

use std::{
    io::{self, BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::kubectl::Kubectl;

/// `kubectl` that says nothing for this long won't.
const OPENS: Duration = Duration::from_secs(60);

/// An open tunnel; closed when dropped.
#[derive(Debug)]
pub struct Tunnel {
    child: Child,
    /// Reads what `kubectl` says of each connection: it ends when nobody does.
    reader: Option<JoinHandle<()>>,
    /// Loopback port on this machine.
    pub port: u16,
    /// The pod at the other end.
    pub pod: String,
}

impl Tunnel {
    /// To the first ready gateway pod that does not run on `avoid_node`.
    ///
    /// # Errors
    /// If there is none, or the tunnel doesn't open.
    pub fn to_gateway(kubectl: &Kubectl, avoid_node: Option<&str>) -> Result<Self> {
        let pods = kubectl.list(&["pods", "-l", "app.kubernetes.io/component=gateway"])?;
        let pod = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter(|pod| pod["status"]["containerStatuses"][0]["ready"] == true)
            .find(|pod| avoid_node.is_none_or(|node| pod["spec"]["nodeName"] != node))
            .and_then(|pod| pod["metadata"]["name"].as_str())
            .context("no gateway pod is ready")?;
        Self::open(kubectl, pod, 8080, Stdio::inherit())
    }

    /// To any port of any pod. `complaints` is where `kubectl` says what went wrong.
    ///
    /// # Errors
    /// If `kubectl` ends, or says something unexpected, before the tunnel is open.
    pub fn open(kubectl: &Kubectl, pod: &str, port: u16, complaints: Stdio) -> Result<Self> {
        let mut child = kubectl
            .command(&["port-forward", &format!("pod/{pod}"), &format!(":{port}")])
            .stdout(Stdio::piped())
            .stderr(complaints)
            .stdin(Stdio::null())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("no standard output")?);
        let (first, line) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut said = String::new();
            // an error is the end as well
            let _ = output.read_line(&mut said);
            let _ = first.send(said);
            let _ = io::copy(&mut output, &mut io::sink());
        });
        let said = line.recv_timeout(OPENS).unwrap_or_default();
        // "Forwarding from 127.0.0.1:41234 -> 8080"
        let local = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        match local {
            Some(local) => Ok(Self { child, reader: Some(reader), port: local, pod: pod.to_owned() }),
            None => {
                let _ = child.kill(); // it has ended, as a rule
                let _ = child.wait();
                bail!("kubectl port-forward to {pod} said {said:?}")
            }
        }
    }

    /// Whether it is still open: it closes by itself when its pod goes, or a connection fails.
    pub fn is_open(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // it may have ended by itself with its pod
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

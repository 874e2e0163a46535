//! The two processes: this one asks, the child has all experts.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use belay_backend::{ExpertCompute, Fabric, FabricError, Route};
use belay_fabric::{Group, Health, Identity, InProcess, Options, Placement, Table, WorkerEntry};

use super::bare;
use super::shape::{EXPERTS, Shape};

/// How long the processes may take to connect.
const START: Duration = Duration::from_secs(30);

/// Gives one channel back and does nothing else, as the bare server does nothing: what remains is the fabric.
struct Echo(usize);

impl ExpertCompute for Echo {
    fn compute(&self, _: u32, x: &[f32], routes: &[Route], y: &mut [f32]) -> Result<(), FabricError> {
        for (route, out) in routes.iter().zip(y.chunks_exact_mut(self.0)) {
            out[0] = x[route.row as usize * self.0];
        }
        Ok(())
    }

    fn holds(&self, _: u32, _: u32) -> bool {
        true
    }
}

/// The other process.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    bare: SocketAddr,
}

impl Child {
    /// Starts this program as the other end.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start() -> Result<Self> {
        let own = std::env::current_exe().context("this program's file")?;
        let mut process = Command::new(own)
            .args(["fabric", "--serve"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the other process")?;
        let input = process.stdin.take().context("its input")?;
        let output = BufReader::new(process.stdout.take().context("its output")?);
        let mut child = Self { process, input, output, bare: SocketAddr::from(([127, 0, 0, 1], 0)) };
        child.bare = child.line()?;
        Ok(child)
    }

    fn line(&mut self) -> Result<SocketAddr> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("the other process said {line:?}"))
    }

    /// Where its bare server listens.
    #[must_use]
    pub fn bare(&self) -> SocketAddr {
        self.bare
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This process' end of a fabric.
pub struct Here(Group);

impl Here {
    /// Makes a fabric for messages of this shape with the child.
    ///
    /// # Errors
    /// They do not connect.
    pub fn connect(child: &mut Child, shape: &Shape) -> Result<Self> {
        let number = Shape::ALL.iter().position(|other| other == shape).context("an unknown shape")?;
        let group = start(0, shape)?;
        writeln!(child.input, "{number} {}", group.local_addr())?;
        let there = child.line()?;
        let table = table(group.local_addr(), there)?;
        group.update(Some(table), None, vec![Arc::new(Echo(shape.hidden))])?;
        wait(&group)?;
        Ok(Self(group))
    }

    /// To ask through.
    #[must_use]
    pub fn fabric(&self) -> &dyn Fabric {
        &self.0
    }
}

/// A fabric of one process.
///
/// # Errors
/// None in practice.
pub fn in_process() -> Result<InProcess> {
    let shape = &Shape::ALL[0];
    let table = Table::stand_alone(1, EXPERTS as usize, 1)?;
    Ok(InProcess::new(table, vec![Arc::new(Echo(shape.hidden))], shape.hidden).with_format(shape.format))
}

/// Body of the child: serves until its input ends. A line `shape address` begins a fabric with whoever is there.
///
/// # Errors
/// A line that is none of these, or a fabric that can't be started.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    std::thread::spawn(move || bare::serve(&listener));
    let mut open = None;
    for line in std::io::stdin().lines() {
        let line = line?;
        let (number, address) = line.split_once(' ').with_context(|| line.clone())?;
        let shape = Shape::ALL.get(number.parse::<usize>()?).context("an unknown shape")?;
        let group = start(1, shape)?;
        let table = table(address.parse()?, group.local_addr())?;
        group.update(Some(table), None, vec![Arc::new(Echo(shape.hidden))])?;
        println!("{}", group.local_addr());
        open = Some(group);
    }
    drop(open);
    Ok(())
}

fn start(worker: u32, shape: &Shape) -> Result<Group> {
    let identity = Identity {
        group: "echo".into(),
        revision: String::new(),
        digest: String::new(),
        worker,
        uid: worker.to_string(),
        hidden: shape.hidden as u32,
        format: shape.format,
    };
    let options = Options { ask_bytes: shape.limit(), ..Options::default() };
    Ok(Group::start(identity, TcpListener::bind("127.0.0.1:0")?, options, || {})?)
}

/// All experts at worker 1.
fn table(here: SocketAddr, there: SocketAddr) -> Result<Table> {
    let entry = |(index, address): (usize, &SocketAddr)| WorkerEntry {
        index: index as u32,
        address: address.to_string(),
        uid: index.to_string(),
        expert_bytes_limit: 0,
    };
    Ok(Table::new(Placement {
        epoch: 1,
        ranks_per_worker: 1,
        workers: [here, there].iter().enumerate().map(entry).collect(),
        layers: vec![vec![vec![1]; EXPERTS as usize]],
        expert_bytes: 0,
    })?)
}

fn wait(group: &Group) -> Result<()> {
    let begin = Instant::now();
    while group.peers().iter().any(|peer| peer.health != Health::Live) {
        ensure!(begin.elapsed() < START, "the two processes do not connect: {:?}", group.peers());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

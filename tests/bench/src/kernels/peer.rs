//! A process whose kernels are measured: ours, or another engine's.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::work::Timing;

/// One that waits for commands. While it does, it is stopped: some engines' threads spin.
pub struct Peer {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it, and waits until it is ready.
    ///
    /// # Errors
    /// It does not start, or ends at once.
    pub fn start(name: &str, mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{name}: {command:?}"))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        let mut peer = Self { name: name.to_owned(), child, input, output };
        let ready = peer.line()?;
        eprintln!("{name}: {}", ready.trim());
        peer.signal("STOP")?;
        Ok(peer)
    }

    /// Its name in tables.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do something.
    ///
    /// # Errors
    /// It ended, or answered something else.
    pub fn ask(&mut self, command: &str) -> Result<Timing> {
        self.signal("CONT")?;
        let input = self.input.as_mut().context("closed")?;
        writeln!(input, "{command}")?;
        input.flush()?;
        let line = self.line()?;
        self.signal("STOP")?;
        serde_json::from_str(&line).with_context(|| format!("{}: {command}: {line}", self.name))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line)?;
        ensure!(read > 0, "{} has ended", self.name);
        Ok(line)
    }

    fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status()?;
        ensure!(status.success(), "kill -s {name} {}", self.pid());
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! The command line.
use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Args, Parser};

use crate::{commands::Command, error::describe};

/// Shows how ModelDeployments do, tells what a change of one would bring, follows and steers rollouts, shows logs and experts, talks
/// with models, and breaks workers on purpose.
///
/// Exit codes: 0 done; 1 failed; 2 wrong arguments; 3 not confirmed.
#[derive(Debug, Parser)]
#[command(name = "kubectl-belay", bin_name = "kubectl belay", version)]
pub struct Cli {
    /// Which cluster
    #[command(flatten)]
    pub access: Access,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster and namespace: as kubectl's flags of these names.
#[derive(Args, Clone, Debug, Default)]
pub struct Access {
    /// Namespace of the ModelDeployment [default: that of the context]
    #[arg(short, long, global = true, help_heading = "Cluster", value_name = "NAME")]
    pub namespace: Option<String>,

    /// Context of the kubeconfig file [default: the current one]
    #[arg(long, global = true, help_heading = "Cluster", value_name = "NAME")]
    pub context: Option<String>,

    /// The kubeconfig file [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, global = true, help_heading = "Cluster", value_name = "FILE")]
    pub kubeconfig: Option<std::path::PathBuf>,
}

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// It asked, and the answer was no: nothing was done.
    NotConfirmed,
    /// What was asked about does not fit, or is refused.
    DoesNotFit,
    /// It could not be found out; why has been told.
    NoVerdict,
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// Whatever stopped it.
    pub async fn run(self) -> Result<Outcome> {
        self.command.run(&self.access).await
    }
}

/// The exit code of an outcome; an error is told on standard error first.
pub fn finish(outcome: Result<Outcome>) -> ExitCode {
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::NotConfirmed) => ExitCode::from(3),
        Ok(Outcome::DoesNotFit) => ExitCode::FAILURE,
        Ok(Outcome::NoVerdict) => ExitCode::from(2),
        // `| head` has seen enough
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // nobody is left to tell if standard error is closed as well
            let _ = writeln!(io::stderr(), "error: {}", describe(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_the_cluster_go_before_or_behind_the_command() {
        for line in
            ["kubectl-belay -n a --context c experts nano", "kubectl-belay experts nano -n a --context c"]
        {
            let cli = Cli::parse_from(line.split(' '));
            assert_eq!(
                (cli.access.namespace.as_deref(), cli.access.context.as_deref()),
                (Some("a"), Some("c"))
            );
        }
    }

    #[test]
    fn exit_codes() {
        assert_eq!(finish(Ok(Outcome::Done)), ExitCode::SUCCESS);
        assert_eq!(finish(Ok(Outcome::NotConfirmed)), ExitCode::from(3));
        assert_eq!(finish(Err(io::Error::from(io::ErrorKind::BrokenPipe).into())), ExitCode::SUCCESS);
        assert_eq!(finish(Err(anyhow::anyhow!("no"))), ExitCode::FAILURE);
    }
}

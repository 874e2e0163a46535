//! belay-operator
use belay_operator::{generate, run};
use clap::{Parser, Subcommand};

/// Runs models on Kubernetes: turns ModelDeployments into groups of worker pods.
#[derive(Parser)]
#[command(name = "belay-operator", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator.
    Run(Box<run::RunArgs>),
    /// Print the CustomResourceDefinition as YAML.
    Crd,
    /// Print a ClusterRole with what the operator needs as YAML.
    Rbac,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Run(args) => run::run(*args).await?,
        Command::Crd => print!("{}", generate::crd_yaml()?),
        Command::Rbac => print!("{}", generate::rbac_yaml()?),
    }
    Ok(())
}

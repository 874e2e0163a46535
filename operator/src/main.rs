//! belay-operator
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
    /// Print the CustomResourceDefinition as YAML.
    Crd,
    /// Print a ClusterRole with what the operator needs as YAML.
    Rbac,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Crd => print!("{}", belay_operator::generate::crd_yaml()?),
        Command::Rbac => print!("{}", belay_operator::generate::rbac_yaml()?),
    }
    Ok(())
}

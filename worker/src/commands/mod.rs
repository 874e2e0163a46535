//! The subcommands, one file each.

pub mod chat_prompt;
pub mod generate;
pub mod logits;
pub mod serve;

use clap::{Parser, Subcommand};

use crate::config::{LogFormat, ServeConfig};

/// A worker of a Belay group: serves a DeepSeek-V4 model, or a shard of one.
#[derive(Debug, Parser)]
#[command(name = "belay-worker", version)]
pub struct Cli {
    /// Shape of log lines, on standard error
    #[arg(long, env = "BELAY_LOG_FORMAT", value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,

    /// What to log, as in `info` or `belay_worker=debug,info`
    #[arg(long, env = "BELAY_LOG", default_value = "info", global = true)]
    pub log: String,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve requests until SIGTERM, which drains
    Serve(Box<ServeConfig>),
    /// Complete one prompt and print the completion
    Generate(Box<generate::GenerateArgs>),
    /// Write the logits and routes of given token sequences
    Logits(Box<logits::LogitsArgs>),
    /// Print the prompt text of an OpenAI chat completion request
    ChatPrompt(chat_prompt::ChatPromptArgs),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever stopped it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Serve(config) => serve::run(*config),
            Self::Generate(args) => generate::run(*args),
            Self::Logits(args) => logits::run(&args),
            Self::ChatPrompt(args) => chat_prompt::run(&args),
        }
    }
}

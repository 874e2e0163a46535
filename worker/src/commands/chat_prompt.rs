//! `belay-worker chat-prompt`: the prompt text of an OpenAI chat completion request, as the server would make it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use belay_engine::chat::{self, Defaults, Encoding};
use clap::Args;

use crate::config::Switch;

/// Options of `chat-prompt`.
#[derive(Debug, Args)]
pub struct ChatPromptArgs {
    /// File with the body of the request; `-`: standard input
    #[arg(long, value_name = "FILE.json")]
    request: PathBuf,

    /// Edition of the chat format: april (V4-Flash, V4-Pro and -DSpark) or 0731 (V4-Flash-0731, V4-Pro-0813)
    #[arg(long, default_value = "april")]
    encoding: Encoding,

    /// Thinking of a request that says nothing about it
    #[arg(long, value_enum, default_value = "on")]
    thinking: Switch,
}

/// Prints the text to standard output, and nothing after it.
///
/// A conversation that ends with a whole reply is printed as well, with a warning: the server would refuse it.
///
/// # Errors
/// What is wrong with the file or the request, by field.
pub fn run(args: &ChatPromptArgs) -> anyhow::Result<()> {
    let request = read(&args.request)?;
    let defaults = Defaults { encoding: args.encoding, thinking: args.thinking == Switch::On };
    let conversation = chat::from_openai(&request, defaults)?;
    let text = chat::render(&conversation)?;
    if let Err(error) = chat::encode(&conversation) {
        tracing::warn!("the server would refuse this: {error}");
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
    } else {
        text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    }
    Ok(text)
}

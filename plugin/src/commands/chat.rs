//! `kubectl belay chat`: a conversation with a deployment's model.
use std::{
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    thread,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use futures::FutureExt as _;
use tokio::sync::mpsc;

use crate::{
    chat::{
        session::Session,
        source::{self, Via},
        talk::{Manner, Talk},
    },
    cli::{Access, Outcome},
    cluster::{Cluster, Deployment},
    error::describe,
    terminal::{
        line::{Line, Style},
        output::Output,
        progress,
    },
};

/// Options of `chat`.
#[derive(Args, Debug)]
pub struct ChatArgs {
    /// The ModelDeployment
    pub name: String,

    /// One question, then the end; - takes it from standard input. Without a terminal, only the answer is printed
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// What the model is told first
    #[arg(short, long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Most tokens of an answer, reasoning included [default: what the context holds]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,

    /// 0 takes the likeliest token each time [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = temperature)]
    pub temperature: Option<f32>,

    /// Whether the model reasons before it answers [default: as the deployment says]
    #[arg(long, value_enum)]
    pub thinking: Option<Thinking>,

    /// Who is asked
    #[arg(long, value_enum, default_value_t = Via::Any)]
    pub via: Via,

    /// For gateways that ask for one
    #[arg(long, value_name = "KEY", env = "BELAY_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// No colours
    #[arg(long)]
    pub no_color: bool,
}

/// Whether the model reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Thinking {
    /// It does
    On,
    /// It does not
    Off,
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("must be a number from 0 on".to_owned()),
    }
}

/// Talks.
///
/// # Errors
/// When there is nobody to talk with, or the one question is not answered.
pub async fn run(args: &ChatArgs, access: &Access) -> Result<Outcome> {
    let prompt = match args.prompt.as_deref() {
        Some("-") => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).context("standard input")?;
            Some(text)
        }
        prompt => prompt.map(str::to_owned),
    };
    if prompt.as_ref().is_some_and(|prompt| prompt.trim().is_empty()) {
        bail!("the question is empty");
    }
    let cluster = Cluster::open(access).await?;
    let deployment = cluster.deployment(&args.name).await?;
    let search = source::find(&cluster, &deployment, args.via);
    let sources = progress::during(|| "looking for somebody who answers ...".to_owned(), search).await?;
    let output = Output::standard(args.no_color);
    let mut session =
        Session::new(sources, args.api_key.clone(), Talk::new(manner(args, &deployment)), output);
    match prompt {
        Some(prompt) => session.answer(&prompt, std::future::pending(), &mut io::stdout()).await?,
        None => Dialogue { session, output }.converse().await?,
    }
    Ok(Outcome::Done)
}

fn manner(args: &ChatArgs, deployment: &Deployment) -> Manner {
    let model = match deployment.word("/spec/model/name") {
        "" => deployment.name.clone(),
        name => name.to_owned(),
    };
    Manner {
        model,
        system: args.system.clone(),
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        thinking: args.thinking.map(|thinking| thinking == Thinking::On),
    }
}

/// Questions from standard input.
struct Dialogue {
    session: Session,
    output: Output,
}

impl Dialogue {
    /// Question after question, until Ctrl-D.
    async fn converse(&mut self) -> Result<()> {
        let people = io::stdin().is_terminal() && self.output.is_terminal;
        if people {
            let with = self.session.partner();
            self.tell(&format!("{with} answers. Ctrl-C stops an answer, Ctrl-D ends."))?;
        }
        let mut lines = lines();
        loop {
            if people {
                write!(io::stdout(), "> ")?;
                io::stdout().flush()?;
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                // where nobody types, it ends the program as it always does
                stop = tokio::signal::ctrl_c(), if people => {
                    stop.context("Ctrl-C")?;
                    writeln!(io::stdout())?;
                    self.tell("Ctrl-D ends.")?;
                    continue;
                }
            };
            let Some(line) = line else { break };
            let question = line.context("standard input")?;
            if question.trim().is_empty() {
                continue;
            }
            let stop = match people {
                true => tokio::signal::ctrl_c().map(drop).boxed(),
                false => std::future::pending().boxed(),
            };
            if let Err(error) = self.session.answer(&question, stop, &mut io::stdout()).await {
                // the next question may do better; a program that asks is told at once
                if !people || error.is::<io::Error>() {
                    return Err(error);
                }
                self.warn(&describe(error.as_ref()))?;
            }
        }
        if people {
            writeln!(io::stdout())?;
        }
        Ok(())
    }

    fn tell(&self, text: &str) -> io::Result<()> {
        self.styled(text, Style::FAINT)
    }

    fn warn(&self, text: &str) -> io::Result<()> {
        self.styled(text, Style::BAD)
    }

    fn styled(&self, text: &str, style: Style) -> io::Result<()> {
        let line = Line::default().with(text, style);
        let text = if self.output.coloured { line.coloured() } else { line.plain() };
        writeln!(io::stdout(), "{text}")
    }
}

/// Lines of standard input, read by a thread of their own: it ends with the input, or with the program.
fn lines() -> mpsc::Receiver<io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

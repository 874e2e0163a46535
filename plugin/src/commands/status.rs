//! `kubectl belay status`: a deployment as a tree, or all of them in a line each.
use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::{
    cli::{Access, Outcome},
    cluster::Cluster,
    picture::text::Options,
    status::{
        grow,
        look::Look,
        overview::{self, Overview},
        pace::Pace,
        text,
        tree::Tree,
    },
    terminal::{
        line::Line,
        output::{self, Output},
        progress,
        screen::{self, Choice},
    },
};

/// How often `--watch` looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Options of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The ModelDeployment [default: a line for each one]
    pub name: Option<String>,

    /// A line for each one of all namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["name", "namespace"])]
    pub all_namespaces: bool,

    /// Look every second, until q or Ctrl-C; without a terminal, tell what has changed
    #[arg(short, long)]
    pub watch: bool,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,

    /// No colours
    #[arg(long)]
    pub no_color: bool,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs; with --watch one line for each change. Field names: docs/reference/plugin.md
    Json,
}

/// What one look shows.
#[derive(Serialize)]
#[serde(untagged)]
enum Shown {
    One(Box<Tree>),
    All(Vec<Overview>),
}

impl Shown {
    fn lines(&self, everywhere: bool, width: usize) -> Vec<Line> {
        match self {
            Self::One(tree) => text::render(tree, width),
            Self::All(list) => overview::render(list, everywhere, width),
        }
    }
}

struct Eye<'a> {
    args: &'a StatusArgs,
    cluster: Cluster,
    look: Look,
    pace: Pace,
}

impl Eye<'_> {
    async fn look(&mut self) -> Result<Shown> {
        if let Some(name) = &self.args.name {
            let seen = self.look.at(name).await?;
            return Ok(Shown::One(Box::new(grow::tree(&seen, &mut self.pace))));
        }
        let now = Timestamp::now();
        let list = self.cluster.list_deployments(self.args.all_namespaces).await?;
        Ok(Shown::All(list.iter().map(|deployment| Overview::of(deployment, now)).collect()))
    }
}

/// Shows it.
///
/// # Errors
/// When the API server does not answer, or there is no such deployment.
pub async fn run(args: &StatusArgs, access: &Access) -> Result<Outcome> {
    let cluster = Cluster::open(access).await?;
    let output = Output::standard(args.no_color);
    let look = Look::new(cluster.clone());
    let mut eye = Eye { args, cluster, look, pace: Pace::default() };
    let first =
        progress::during(|| "asking the API server and the workers ...".to_owned(), eye.look()).await?;
    if matches!(&first, Shown::All(list) if list.is_empty()) && !args.watch && args.output == Format::Text {
        match args.all_namespaces {
            true => bail!("no namespace has modeldeployments"),
            false => bail!("namespace {} has no modeldeployments", eye.cluster.namespace()),
        }
    }
    match (args.watch, args.output) {
        (false, _) => print(&first, args, output)?,
        (true, Format::Text) if output.is_terminal => watch(eye, first, output).await?,
        (true, _) => repeat(eye, first, output).await?,
    }
    Ok(Outcome::Done)
}

fn print(shown: &Shown, args: &StatusArgs, output: Output) -> Result<()> {
    let mut to = io::stdout().lock();
    match (args.output, args.watch) {
        (Format::Text, _) => {
            output::print(&mut to, &shown.lines(args.all_namespaces, output.width), output.coloured)?;
        }
        (Format::Json, true) => writeln!(to, "{}", serde_json::to_string(shown)?)?,
        (Format::Json, false) => writeln!(to, "{}", serde_json::to_string_pretty(shown)?)?,
    }
    to.flush()?;
    Ok(())
}

/// What differs from the look before, for who is no terminal: until the reader goes, or Ctrl-C.
async fn repeat(mut eye: Eye<'_>, first: Shown, output: Output) -> Result<()> {
    let mut told = None;
    let mut shown = first;
    loop {
        let next = Instant::now() + PERIOD;
        let sight = timeless(&shown)?;
        if told.as_ref() != Some(&sight) {
            if told.is_some() && eye.args.output == Format::Text {
                writeln!(io::stdout())?;
            }
            print(&shown, eye.args, output)?;
            told = Some(sight);
        }
        sleep_until(next).await;
        shown = eye.look().await?;
    }
}

/// What is shown, but for what every second changes.
fn timeless(shown: &Shown) -> Result<serde_json::Value> {
    let mut value = serde_json::to_value(shown)?;
    forget_times(&mut value);
    Ok(value)
}

fn forget_times(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|key, _| !matches!(key.as_str(), "time" | "ageSeconds" | "etaSeconds"));
            fields.values_mut().for_each(forget_times);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(forget_times),
        _ => (),
    }
}

/// In place, on a terminal.
async fn watch(mut eye: Eye<'_>, first: Shown, output: Output) -> Result<()> {
    let everywhere = eye.args.all_namespaces;
    let mut screen = screen::Screen::open(output.coloured, None)?;
    let (mut shown, mut trouble, mut time) = (first, None, Timestamp::now());
    loop {
        let next = Instant::now() + PERIOD;
        let draw = |options: Options, _: Option<u32>| {
            // what was seen last stays: workers go on without the API server
            let above =
                trouble.as_ref().map(|error| screen::trouble(error, &time.to_string(), options.width));
            above.into_iter().flatten().chain(shown.lines(everywhere, options.width)).collect()
        };
        let looked = async {
            sleep_until(next).await;
            eye.look().await
        };
        match screen.show_until(draw, looked).await? {
            Choice::Goes(Ok(looked)) => (shown, trouble, time) = (looked, None, Timestamp::now()),
            Choice::Goes(Err(error)) => trouble = Some(error),
            Choice::Quit => return Ok(()),
        }
    }
}

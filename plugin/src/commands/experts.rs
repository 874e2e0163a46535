//! `kubectl belay experts`: the picture of a deployment's experts, once or every second.
use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use tokio::time::{Instant, sleep_until};

use crate::{
    cli::{Access, Outcome},
    cluster::Cluster,
    observe::Observer,
    picture::{
        text::{self, Options},
        view::View,
    },
    terminal::{
        output::{self, Output},
        progress,
        screen::{self, Choice},
    },
};

/// How often `--watch` looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Options of `experts`.
#[derive(Args, Debug)]
pub struct ExpertsArgs {
    /// The ModelDeployment
    pub name: String,

    /// One group only [default: all]
    #[arg(short, long, value_name = "NAME")]
    pub group: Option<String>,

    /// One layer only, from 0 [default: all layers together]
    #[arg(short, long, value_name = "NUMBER")]
    pub layer: Option<u32>,

    /// Look every second, until q or Ctrl-C
    #[arg(short, long)]
    pub watch: bool,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,

    /// No colours: digits tell the load
    #[arg(long)]
    pub no_color: bool,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The picture
    Text,
    /// Every copy of every expert; with --watch one line for each look
    Json,
}

/// Shows the picture.
///
/// # Errors
/// When the API server does not answer, or there is no such deployment, group or layer.
pub async fn run(args: &ExpertsArgs, access: &Access) -> Result<Outcome> {
    let observer = Observer::new(Cluster::open(access).await?);
    let output = Output::standard(args.no_color);
    match (args.watch, args.output) {
        (true, Format::Text) if output.is_terminal => watch(args, &observer, output).await?,
        (true, _) => repeat(args, &observer, output).await?,
        (false, _) => {
            let tally = observer.tally();
            let look = look(&observer, &args.name, args.group.as_deref(), args.layer);
            let view = progress::during(|| tally.words(), look).await?;
            print(&view, args, output)?;
        }
    }
    Ok(Outcome::Done)
}

async fn look(observer: &Observer, name: &str, group: Option<&str>, layer: Option<u32>) -> Result<View> {
    let view = View::of(&observer.look(name, group).await?);
    match layer {
        Some(layer) => restrict(view, layer),
        None => Ok(view),
    }
}

/// The view of one layer.
fn restrict(mut view: View, layer: u32) -> Result<View> {
    let layers = view.groups.iter().map(|group| group.copies.shape.layers).max().unwrap_or(0);
    if layers > 0 && layer >= layers {
        bail!("{}/{}: no layer {layer}; it has layers 0 to {}", view.namespace, view.deployment, layers - 1);
    }
    for group in &mut view.groups {
        group.copies = group.copies.of_layer(layer);
    }
    Ok(view)
}

fn print(view: &View, args: &ExpertsArgs, output: Output) -> Result<()> {
    let mut to = io::stdout().lock();
    match args.output {
        Format::Text => {
            let options = Options { width: output.width, coloured: output.coloured };
            output::print(&mut to, &text::render(view, options), output.coloured)?;
        }
        Format::Json => {
            // one look a line, so that a reader of many can tell them apart
            let text = match args.watch {
                true => serde_json::to_string(view),
                false => serde_json::to_string_pretty(view),
            };
            writeln!(to, "{}", text.context("writing JSON")?)?;
            to.flush()?;
        }
    }
    Ok(())
}

/// One look after the other, for who is no terminal: until the reader goes, or Ctrl-C.
async fn repeat(args: &ExpertsArgs, observer: &Observer, output: Output) -> Result<()> {
    loop {
        let next = Instant::now() + PERIOD;
        let view = look(observer, &args.name, args.group.as_deref(), args.layer).await?;
        print(&view, args, output)?;
        if args.output == Format::Text {
            writeln!(io::stdout())?;
        }
        sleep_until(next).await;
    }
}

/// In place, on a terminal.
async fn watch(args: &ExpertsArgs, observer: &Observer, output: Output) -> Result<()> {
    // what is wrong with the command line is told before the screen is taken
    let first = {
        let tally = observer.tally();
        let look = look(observer, &args.name, args.group.as_deref(), args.layer);
        progress::during(|| tally.words(), look).await?
    };
    let mut screen = screen::Screen::open(output.coloured, args.layer)?;
    let (mut view, mut trouble) = (first, None);
    loop {
        let next = Instant::now() + PERIOD;
        screen.layers(view.groups.iter().map(|group| group.copies.shape.layers).max().unwrap_or(0));
        let draw = |options: Options, layer: Option<u32>| {
            let picture = match layer.map(|layer| restrict(view.clone(), layer)) {
                Some(Ok(view)) => text::render(&view, options),
                _ => text::render(&view, options),
            };
            // what was seen last stays: workers go on without the API server
            let above = trouble.as_ref().map(|error| screen::trouble(error, &view.time, options.width));
            above.into_iter().flatten().chain(picture).collect()
        };
        let looked = async {
            sleep_until(next).await;
            look(observer, &args.name, args.group.as_deref(), None).await
        };
        match screen.show_until(draw, looked).await? {
            Choice::Goes(Ok(looked)) => (view, trouble) = (looked, None),
            Choice::Goes(Err(error)) => trouble = Some(error),
            Choice::Quit => return Ok(()),
        }
    }
}

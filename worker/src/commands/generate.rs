//! `belay-worker generate`: one completion on the command line, by the same engine that serves.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, bail, ensure};
use belay_backend::ExpertCompute;
use belay_cpu::CpuBackend;
use belay_engine::{Engine, EngineConfig, Event, Request, Sampling, ServedModel, Stop, Tokenizer};
use belay_fabric::{InProcess, Table};
use belay_model::{CacheOptions, Checkpoint, ExpertBank, Model, Numerics};
use clap::Args;
use serde::Serialize;

use crate::config::CpuOptions;
use crate::devices;

/// Options of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Checkpoint directory
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    /// File with the final prompt text: special tokens written out, nothing is added or trimmed
    #[arg(long, value_name = "FILE", required_unless_present = "prompt_ids")]
    prompt_file: Option<PathBuf>,

    /// JSON file with the prompt's token ids, `[…]` or `{"prompt_ids": […]}`; used in place of the text
    #[arg(long, value_name = "FILE.json")]
    prompt_ids: Option<PathBuf>,

    /// Tokens to produce at most; default: as many as the context holds
    #[arg(long)]
    max_tokens: Option<u32>,

    /// 0 always takes the most likely token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,

    /// Draw from the most likely tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,

    /// Draw from this many most likely tokens; 0: from all
    #[arg(long, default_value_t = 0)]
    top_k: u32,

    /// The same seed draws the same tokens
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// End before this text; may be repeated
    #[arg(long)]
    stop: Vec<String>,

    /// Go on after end-of-sequence
    #[arg(long)]
    ignore_eos: bool,

    /// f32 math without any simulated rounding; the default
    #[arg(long, conflicts_with = "rounded")]
    exact: bool,

    /// Repeat the roundings of the published inference code (FP8 keys and activations, FP4 indexer)
    #[arg(long)]
    rounded: bool,

    #[command(flatten)]
    cpu: CpuOptions,

    /// Spread the experts over this many ranks in this process
    #[arg(long, default_value_t = 1)]
    ranks: u32,

    /// Print one JSON object at the end instead of text as it comes
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Completion<'a> {
    prompt_ids: &'a [u32],
    ids: Vec<u32>,
    text: String,
    finish_reason: &'static str,
}

/// Generates, and prints to standard output.
///
/// # Errors
/// What is wrong with the checkpoint, the prompt or an option, by name.
pub fn run(args: GenerateArgs) -> anyhow::Result<()> {
    let checkpoint = Arc::new(Checkpoint::open(&args.model)?);
    let tokenizer = Arc::new(Tokenizer::load(&args.model)?);
    let prompt = match (&args.prompt_ids, &args.prompt_file) {
        (Some(path), _) => read_ids(path)?,
        (None, Some(path)) => tokenizer.encode(&read_text(path)?)?,
        (None, None) => bail!("either --prompt-file or --prompt-ids is needed"),
    };
    let numerics = if args.rounded { Numerics::REFERENCE } else { Numerics::EXACT };
    let model = load(&checkpoint, numerics, args.cpu, args.ranks)?;
    let engine =
        Engine::start(model, tokenizer, EngineConfig { max_sessions: 1, ..EngineConfig::default() })?;

    let (sender, events) = channel();
    let request = Request {
        id: "generate".into(),
        prompt: prompt.clone(),
        sampling: Sampling {
            temperature: args.temperature,
            top_p: args.top_p,
            top_k: args.top_k,
            seed: args.seed,
            ..Sampling::default()
        },
        stop: Stop {
            max_tokens: args.max_tokens,
            strings: args.stop,
            ignore_eos: args.ignore_eos,
            ..Stop::default()
        },
        ..Request::default()
    };
    engine.submit(request, Box::new(move |event| sender.send(event).is_ok()))?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let completion = collect(&events, &prompt)?;
        serde_json::to_writer(&mut stdout, &completion)?;
    } else {
        stream(&events, &mut stdout)?;
    }
    writeln!(stdout)?;
    Ok(())
}

fn collect<'a>(events: &Receiver<Event>, prompt_ids: &'a [u32]) -> anyhow::Result<Completion<'a>> {
    let mut completion = Completion { prompt_ids, ids: Vec::new(), text: String::new(), finish_reason: "" };
    loop {
        match events.recv()? {
            Event::Tokens { ids, text, .. } => {
                completion.ids.extend(ids);
                completion.text.push_str(&text);
            }
            Event::Finished { reason, .. } => {
                completion.finish_reason = reason.as_str();
                return Ok(completion);
            }
            Event::Failed { message, .. } => bail!(message),
            Event::Prompt { .. } => {}
        }
    }
}

fn stream(events: &Receiver<Event>, out: &mut impl Write) -> anyhow::Result<()> {
    loop {
        match events.recv()? {
            Event::Tokens { text, .. } => {
                out.write_all(text.as_bytes())?;
                out.flush()?;
            }
            Event::Finished { .. } => return Ok(()),
            Event::Failed { message, .. } => bail!(message),
            Event::Prompt { .. } => {}
        }
    }
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("--prompt-file {}", path.display()))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!("--prompt-file {}: not UTF-8 at byte {at}", path.display())
    })
}

fn read_ids(path: &Path) -> anyhow::Result<Vec<u32>> {
    let context = || format!("--prompt-ids {}", path.display());
    let bytes = std::fs::read(path).with_context(context)?;
    let mut value: serde_json::Value = serde_json::from_slice(&bytes).with_context(context)?;
    if let Some(ids) = value.get_mut("prompt_ids") {
        value = ids.take();
    }
    serde_json::from_value(value)
        .with_context(context)
        .context("expected a list of token ids, or an object with one under \"prompt_ids\"")
}

/// The whole model in this process, its experts over `ranks` ranks.
fn load(
    checkpoint: &Arc<Checkpoint>,
    numerics: Numerics,
    cpu: CpuOptions,
    ranks: u32,
) -> anyhow::Result<ServedModel<CpuBackend>> {
    let backend = Arc::new(devices::cpu(cpu)?);
    let card = checkpoint.card();
    ensure!(
        (1..=card.experts).contains(&ranks),
        "--ranks {ranks}: must be from 1 to {}, the experts of a layer",
        card.experts
    );
    let table = Table::stand_alone(card.layers as usize, card.experts as usize, ranks)?;
    let model =
        Model::load(Arc::clone(&backend), checkpoint, numerics, CacheOptions::default(), &mut |_, _| {})?;
    let mut banks: Vec<Arc<dyn ExpertCompute>> = Vec::new();
    for rank in 0..ranks {
        let bank = ExpertBank::new(Arc::clone(&backend), Arc::clone(checkpoint), numerics);
        bank.load(table.of_rank(rank), &mut |_, _| {})?;
        banks.push(Arc::new(bank));
    }
    Ok(ServedModel::new(model, Arc::new(InProcess::new(table, banks, checkpoint.config().hidden_size))))
}

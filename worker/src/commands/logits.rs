//! `belay-worker logits`: the forward's numbers, to be held against other reference data.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use belay_backend::{Backend, ExpertCompute, Fabric, Route};
use belay_fabric::{InProcess, Table};
use belay_model::{CacheOptions, Checkpoint, ExpertBank, Logits, Model, Numerics, Scratch, Segment, Trace};
use clap::{Args, ValueEnum};
use safetensors::{Dtype, View};
use serde::Deserialize;

use crate::config::{Device, DeviceOptions, quantity};
use crate::devices::{self, Devices};

/// Options of `logits`.
#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// Checkpoint directory
    #[arg(long)]
    pub model: PathBuf,

    /// JSON: {"sequences": [{"name": "s0", "ids": [...]}]}
    #[arg(long)]
    pub ids: PathBuf,

    /// Written as safetensors: NAME.logits f32 [tokens, vocab], NAME.router.LAYER i32 [tokens, k] ascending
    #[arg(long)]
    pub out: PathBuf,

    /// What to compute on
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Bytes for the state of a sequence, such as 500M or 4Gi
    #[arg(long, value_name = "BYTES", default_value = "4Gi", value_parser = quantity)]
    pub memory: usize,

    /// Ranks of this process that the experts are dealt to
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub ranks: u32,

    /// Which roundings of the published code to repeat
    #[arg(long, value_enum, default_value = "exact")]
    pub numerics: NumericsOption,

    /// Tokens to feed in one step
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk: u32,
}

/// How to round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NumericsOption {
    /// f32 everywhere
    Exact,
    /// Keys and indexer as the published code rounds them, linears exact
    RoundedCache,
    /// Inputs of FP8 and FP4 linears as well
    Reference,
}

impl From<NumericsOption> for Numerics {
    fn from(option: NumericsOption) -> Self {
        match option {
            NumericsOption::Exact => Self::EXACT,
            NumericsOption::RoundedCache => Self::ROUNDED_CACHE,
            NumericsOption::Reference => Self::REFERENCE,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    sequences: Vec<Sequence>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sequence {
    name: String,
    ids: Vec<u32>,
}

/// Computes and writes the logits of every token of every sequence.
///
/// # Errors
/// A checkpoint, an input file or a sequence that cannot be used, by name.
pub fn run(args: &LogitsArgs) -> anyhow::Result<()> {
    let input = read_input(&args.ids)?;
    match args.device.kind {
        Device::Cpu => compute(args, &input, &Devices::one(devices::cpu(args.device.cpu)?)),
        Device::Ascend => compute(args, &input, &devices::ascend(&args.device, args.ranks)?),
    }
}

fn compute<B: Backend>(args: &LogitsArgs, input: &Input, devices: &Devices<B>) -> anyhow::Result<()> {
    let forward = Forward::load(args, devices)?;
    let mut tensors = Vec::new();
    for sequence in &input.sequences {
        let context = || format!("sequence {:?}", sequence.name);
        forward.sequence(sequence, args.chunk as usize, &mut tensors).with_context(context)?;
    }
    safetensors::serialize_to_file(tensors, None, &args.out)
        .with_context(|| format!("cannot write {}", args.out.display()))
}

fn read_input(path: &Path) -> anyhow::Result<Input> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let input: Input = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
    let mut names = HashSet::new();
    for sequence in &input.sequences {
        ensure!(names.insert(&sequence.name), "sequences: the name {:?} is used twice", sequence.name);
        ensure!(!sequence.ids.is_empty(), "sequence {:?}: ids is empty", sequence.name);
    }
    Ok(input)
}

/// A loaded model with its experts dealt to ranks.
struct Forward<B: Backend> {
    model: Model<B>,
    fabric: InProcess,
}

impl<B: Backend> Forward<B> {
    fn load(args: &LogitsArgs, devices: &Devices<B>) -> anyhow::Result<Self> {
        let numerics = args.numerics.into();
        let checkpoint = Arc::new(Checkpoint::open(&args.model)?);
        devices.describe().for_each(|device| tracing::info!(device, ranks = args.ranks, "loading"));
        let dense = Arc::clone(devices.dense());
        let cache = CacheOptions { memory: args.memory, ..CacheOptions::default() };
        let model = Model::load(dense, &checkpoint, numerics, cache, &mut |_, _| {})?;
        let card = checkpoint.card();
        if args.ranks > card.experts {
            bail!("--ranks: {} ranks for {} experts", args.ranks, card.experts);
        }
        let table = Table::stand_alone(card.layers as usize, card.experts as usize, args.ranks)?;
        let mut ranks: Vec<Arc<dyn ExpertCompute>> = Vec::new();
        for rank in 0..args.ranks {
            let device = Arc::clone(devices.of_rank(rank));
            let bank = ExpertBank::new(device, Arc::clone(&checkpoint), numerics);
            bank.load(table.of_rank(rank), &mut |_, _| {})?;
            ranks.push(Arc::new(bank));
        }
        let hidden = model.config().hidden_size;
        Ok(Self { model, fabric: InProcess::new(table, ranks, hidden) })
    }

    fn sequence(
        &self,
        sequence: &Sequence,
        chunk: usize,
        tensors: &mut Vec<(String, Tensor)>,
    ) -> anyhow::Result<()> {
        let config = self.model.config();
        let mut state = self.model.new_state();
        let mut scratch = Scratch::default();
        let mut routes = Routes(vec![Vec::new(); config.depth()]);
        let (mut all, mut logits) = (Vec::new(), Vec::new());
        for tokens in sequence.ids.chunks(chunk) {
            let mut segments =
                [Segment { state: &mut state, tokens, logits: Logits::All, rewindable: false }];
            let fabric: &dyn Fabric = &self.fabric;
            self.model.forward_traced(&mut scratch, &mut segments, fabric, &mut logits, &mut routes)?;
            all.extend(logits.iter().flat_map(|logit| logit.to_le_bytes()));
        }
        let (name, rows) = (&sequence.name, sequence.ids.len());
        let shape = vec![rows, config.vocab_size];
        tensors.push((format!("{name}.logits"), Tensor { dtype: Dtype::F32, shape, data: all }));
        for (layer, data) in routes.0.into_iter().enumerate() {
            let shape = vec![rows, config.experts_per_token];
            tensors.push((format!("{name}.router.{layer}"), Tensor { dtype: Dtype::I32, shape, data }));
        }
        Ok(())
    }
}

/// Bytes of the chosen experts by layer.
struct Routes(Vec<Vec<u8>>);

impl Trace for Routes {
    fn routes(&mut self, layer: usize, routes: &[Route]) {
        self.0[layer].extend(routes.iter().flat_map(|route| (route.expert as i32).to_le_bytes()));
    }
}

/// A tensor to write.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

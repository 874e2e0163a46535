//! `belay-bench forward`.

use std::path::PathBuf;

use anyhow::Result;
use belay_cpu::{Level, Products};
use belay_worker::config::CpuWeights;
use clap::{Args, builder::PossibleValuesParser};

use super::kernels::ProductsOption;
use super::{MODELS, commit, model_directory, root};
use crate::forward::{self, Plan};
use crate::kernels::{self, KernelRow};
use crate::process::Machine;

/// Options of `forward`.
#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// Model to measure
    #[arg(long, default_value = "7b", value_parser = PossibleValuesParser::new(MODELS))]
    model: String,

    /// Where random models are kept
    #[arg(long, env = "BELAY_CACHE", value_name = "DIR")]
    cache: PathBuf,

    /// Tokens of the prompt
    #[arg(long, default_value_t = 512)]
    prompt: usize,

    /// Tokens one by one
    #[arg(long, default_value_t = 64)]
    tokens: usize,

    /// Times that each is measured
    #[arg(long, default_value_t = 7)]
    rounds: usize,

    /// Numbers of threads [default: all]
    #[arg(long, value_delimiter = ',')]
    threads: Vec<usize>,

    /// What inputs of linears are multiplied as
    #[arg(long, value_enum, default_value = "bf16")]
    products: ProductsOption,

    /// Where weights lie
    #[arg(long, value_enum, default_value = "copied")]
    weights: CpuWeights,

    /// llama.cpp's llama-bench
    #[arg(long, value_name = "FILE", requires = "llama_model")]
    llama: Option<PathBuf>,

    /// A GGUF model of the same sizes for it
    #[arg(long, value_name = "FILE", requires = "llama")]
    llama_model: Option<PathBuf>,

    /// CSV file to write [default: by day and commit, in docs/operations/bench]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Measures, writes the rows, and prints the table.
///
/// # Errors
/// Whatever stopped it; rows that were measured until then are in the file.
pub fn run(args: &ForwardArgs) -> Result<()> {
    let products = Products::from(args.products);
    let (date, commit) = (jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(), commit()?);
    let out = match &args.out {
        Some(out) => out.clone(),
        None => root().join(format!("docs/operations/bench/forward-{date}-{commit}.csv")),
    };
    let Machine { processor, cores, memory_gib } = Machine::this()?;
    let machine = format!("{processor}; {}; {products}; {cores} cores; {memory_gib} GiB", Level::detect());
    let plan = Plan {
        dir: model_directory(&args.model, &args.cache)?,
        products,
        weights: args.weights.into(),
        prompt: args.prompt,
        tokens: args.tokens,
        rounds: args.rounds,
        threads: if args.threads.is_empty() { vec![cores] } else { args.threads.clone() },
        peer: args.llama.clone().zip(args.llama_model.clone()),
        stamp: KernelRow { date, commit, machine, ..KernelRow::default() },
    };
    let mut rows = Vec::new();
    let mut written = Ok(());
    forward::run(&plan, |row| {
        rows.push(row);
        written = kernels::write(&out, &rows);
    })?;
    written?;
    print!("{}", forward::markdown(&rows));
    Ok(())
}

//! `belay-bench kernels`.

use std::path::PathBuf;

use anyhow::Result;
use belay_cpu::{Level, Products};
use clap::{Args, ValueEnum};

use super::{commit, root};
use crate::kernels::work::{self, Setup};
use crate::kernels::{self, KernelRow, Plan};
use crate::process::Machine;

/// Options of `kernels`.
#[derive(Debug, Args)]
pub struct KernelsArgs {
    /// Times that each case is measured, in turn with limits and other engines
    #[arg(long, default_value_t = 9)]
    rounds: usize,

    /// Numbers of threads [default: 1 and all]
    #[arg(long, value_delimiter = ',')]
    threads: Vec<usize>,

    /// Leave out cases of more tokens than this
    #[arg(long, default_value_t = 2048)]
    most_tokens: usize,

    /// Only cases with this in their names: `index`, `batch 2048`
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,

    /// Other engines, as tests/bench/peers.sh builds them
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,

    /// CSV file to write, a row for each command [default: by day and commit, in docs/operations/bench]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Be the process that computes: commands on standard input, a line of JSON for each on standard output
    #[arg(long)]
    work: bool,

    /// Instruction set [default: the best of this machine]
    #[arg(long)]
    isa: Option<Level>,

    /// What inputs of linears are multiplied as
    #[arg(long, value_enum, default_value = "bf16")]
    products: ProductsOption,
}

/// [`Products`] by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ProductsOption {
    /// f32
    F32,
    /// bf16
    Bf16,
}

impl From<ProductsOption> for Products {
    fn from(option: ProductsOption) -> Self {
        match option {
            ProductsOption::F32 => Self::F32,
            ProductsOption::Bf16 => Self::Bf16,
        }
    }
}

/// Measures, writes the rows, and prints the table.
///
/// # Errors
/// Whatever stopped it; rows that were measured until then are in the file.
pub fn run(args: &KernelsArgs) -> Result<()> {
    let products = Products::from(args.products);
    if args.work {
        let threads = args.threads.first().copied().unwrap_or(1);
        return work::serve(Setup { level: args.isa, products, threads });
    }
    let (date, commit) = (jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(), commit()?);
    let out = match &args.out {
        Some(out) => out.clone(),
        None => root().join(format!("docs/operations/bench/kernels-{date}-{commit}.csv")),
    };
    let Machine { processor, cores, memory_gib } = Machine::this()?;
    let isa = args.isa.unwrap_or_else(Level::detect);
    let machine = format!("{processor}; {isa}; {products}; {cores} cores; {memory_gib} GiB");
    let mut options = vec!["--products".to_owned(), products.to_string()];
    options.extend(args.isa.iter().flat_map(|isa| ["--isa".to_owned(), isa.to_string()]));
    let mut threads = args.threads.clone();
    if threads.is_empty() {
        threads = if cores > 1 { vec![1, cores] } else { vec![1] };
    }
    let stamp = KernelRow { date, commit, machine, ..KernelRow::default() };
    let (rounds, most) = (args.rounds, args.most_tokens);
    let (only, peers) = (args.only.clone(), args.peers.clone());
    let plan = Plan { rounds, threads, most, only, peers, options, stamp };
    let mut rows = Vec::new();
    let mut written = Ok(());
    kernels::run(&plan, |row| {
        rows.push(row);
        written = kernels::write(&out, &rows);
    })?;
    written?;
    print!("{}", kernels::markdown(&rows));
    Ok(())
}

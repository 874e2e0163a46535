//! `belay-bench kernels`.

use anyhow::Result;
use belay_cpu::{Level, Products};
use clap::{Args, ValueEnum};

use crate::kernels::work::{self, Setup};

/// Options of `kernels`.
#[derive(Debug, Args)]
pub struct KernelsArgs {
    /// Be the process that computes: commands on standard input, a line of JSON for each on standard output
    #[arg(long)]
    work: bool,

    /// Threads of it
    #[arg(long, default_value_t = 1)]
    threads: usize,

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

/// Measures.
///
/// # Errors
/// Whatever stopped it.
pub fn run(args: &KernelsArgs) -> Result<()> {
    let products = match args.products {
        ProductsOption::F32 => Products::F32,
        ProductsOption::Bf16 => Products::Bf16,
    };
    work::serve(Setup { level: args.isa, products, threads: args.threads })
}

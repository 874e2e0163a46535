//! `belay-bench make-model`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, builder::PossibleValuesParser};

use crate::model::{self, Preset};

/// Options of `make-model`.
#[derive(Debug, Args)]
pub struct MakeModelArgs {
    /// Size of the model
    #[arg(long, default_value = "1b", value_parser = PossibleValuesParser::new(Preset::ALL.map(|preset| preset.name)))]
    preset: String,

    /// The same preset and seed give the same bytes
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Directory to make; default: one below the cache, kept for the next time
    #[arg(long, value_name = "DIR", required_unless_present = "cache")]
    out: Option<PathBuf>,

    /// Where what is expensive is kept
    #[arg(long, env = "BELAY_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// Makes the model.
///
/// # Errors
/// What the file system says.
pub fn run(args: &MakeModelArgs) -> Result<()> {
    let preset = Preset::named(&args.preset).context("--preset: no such size")?;
    let dir = match (&args.out, &args.cache) {
        (Some(out), _) => {
            model::write(&preset, args.seed, out)?;
            out.clone()
        }
        (None, Some(cache)) => model::cached(&preset, args.seed, cache)?,
        (None, None) => anyhow::bail!("either --out or BELAY_CACHE is needed"),
    };
    println!("{}", dir.display());
    Ok(())
}

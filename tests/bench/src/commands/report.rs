//! `belay-bench report`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::report;

/// Options of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// CSV file of `serving`
    file: PathBuf,
}

/// Prints the table.
///
/// # Errors
/// The file can't be read.
pub fn run(args: &ReportArgs) -> Result<()> {
    print!("{}", report::markdown(&report::read(&args.file)?));
    Ok(())
}

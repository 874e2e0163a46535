//! `belay-images write`: a static binary becomes a container image, without a container engine.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Context;
use belay_images::{Compression, ImageName, ImageSpec, Layer, write};
use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(version, about = "Writes reproducible one-layer container images, without a container engine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write an archive for `docker load`, `ctr image import` and `kind load image-archive`; print the digest
    Write(WriteArgs),
}

#[derive(Args)]
struct WriteArgs {
    /// Complete name of the image: registry/repository:tag
    #[arg(long)]
    name: ImageName,
    /// Archive to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Program of the image, put at the path of its entrypoint
    #[arg(long, value_name = "FILE", requires = "entrypoint")]
    binary: Option<PathBuf>,
    /// Further file or folder to put into the image (may be repeated)
    #[arg(long, value_name = "FROM=TO", value_parser = pair)]
    add: Vec<(String, String)>,
    /// Absolute path of the program in the image
    #[arg(long, value_name = "PATH")]
    entrypoint: Option<String>,
    /// Numeric user that the program runs as
    #[arg(long)]
    user: Option<u32>,
    /// Environment variable (may be repeated)
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Label, such as org.opencontainers.image.version=0.1.0 (may be repeated)
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Seconds since 1970 to write as the time of creation
    #[arg(long, env = "SOURCE_DATE_EPOCH", default_value_t = 0, value_name = "SECONDS")]
    created: u64,
    /// How the layer is stored
    #[arg(long, value_enum, default_value = "gzip")]
    compression: CompressionArg,
}

#[derive(Clone, Copy, ValueEnum)]
enum CompressionArg {
    Gzip,
    None,
}

fn main() -> anyhow::Result<()> {
    let Command::Write(args) = Cli::parse().command;
    let mut layer = Layer::new();
    if let (Some(binary), Some(entrypoint)) = (&args.binary, &args.entrypoint) {
        layer.add(binary, entrypoint)?;
    }
    for (from, to) in &args.add {
        layer.add(from.as_ref(), to)?;
    }
    let spec = ImageSpec {
        entrypoint: args.entrypoint.into_iter().collect(),
        user: args.user,
        env: args.env,
        labels: args.label.into_iter().collect(),
        created: args.created,
        compression: match args.compression {
            CompressionArg::Gzip => Compression::Gzip,
            CompressionArg::None => Compression::None,
        },
    };
    let written =
        write(&args.name, &spec, &layer, &args.out).with_context(|| format!("image {}", args.name))?;
    println!("{}@{}", args.name, written.digest);
    Ok(())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((left, right)) if !left.is_empty() => Ok((left.to_owned(), right.to_owned())),
        _ => Err(format!("{text:?} is not of the form A=B")),
    }
}

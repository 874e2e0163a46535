//! Writes a model's directory, tensor by tensor: memory stays at a few buffers whatever the model's size.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::config::config;
use super::preset::Preset;
use super::tensors::{Tensor, shards};
use super::values;

/// Goes up when the same preset and seed give other bytes.
const VERSION: u32 = 1;

const TOKENIZER: &[u8] = include_bytes!("../../../fixtures/models/nano/fp4/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../../fixtures/models/nano/fp4/tokenizer_config.json");

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Files with tensors.
    pub files: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// The model's directory below `cache`, made if it is not there. Its name has the preset, the seed and a hash of both and
/// of the generator's version.
///
/// # Errors
/// What the file system says.
pub fn cached(preset: &Preset, seed: u64, cache: &Path) -> Result<PathBuf> {
    let key = json!({ "version": VERSION, "preset": preset, "seed": seed }).to_string();
    let hash: String = Sha256::digest(key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let dir = cache.join("models").join(format!("{}-{seed}-{hash}", preset.name));
    if !dir.is_dir() {
        write(preset, seed, &dir)?;
    }
    Ok(dir)
}

/// Writes a model to `dir`, which appears when it is complete.
///
/// # Errors
/// What the file system says; `dir` exists already.
pub fn write(preset: &Preset, seed: u64, dir: &Path) -> Result<Written> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = dir.file_name().with_context(|| format!("{} names no directory", dir.display()))?;
    anyhow::ensure!(!dir.exists(), "{} exists already", dir.display());
    // a name of its own, so that two who make the same model do not write into each other's files
    let partial = parent.join(format!(".{}.{}", name.display(), std::process::id()));
    let about = || format!("cannot write {}", partial.display());
    fs::create_dir_all(&partial).with_context(about)?;
    let written = fill(preset, seed, &partial).with_context(about);
    match written.and_then(|written| {
        fs::rename(&partial, dir).with_context(|| format!("cannot rename to {}", dir.display()))?;
        Ok(written)
    }) {
        Ok(written) => Ok(written),
        Err(error) => {
            let _ = fs::remove_dir_all(&partial);
            Err(error)
        }
    }
}

fn fill(preset: &Preset, seed: u64, dir: &Path) -> Result<Written> {
    let shards = shards(preset);
    let mut weight_map = Map::new();
    let mut bytes = 0;
    for (number, tensors) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        bytes += shard(tensors, seed, &dir.join(&name))?;
        for tensor in tensors {
            weight_map.insert(tensor.name.clone(), Value::from(name.as_str()));
        }
    }
    let index = json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map });
    fs::write(dir.join("model.safetensors.index.json"), pretty(&index)?)?;
    fs::write(dir.join("config.json"), pretty(&config(preset))?)?;
    fs::write(dir.join("tokenizer.json"), TOKENIZER)?;
    fs::write(dir.join("tokenizer_config.json"), TOKENIZER_CONFIG)?;
    Ok(Written { files: shards.len(), bytes })
}

/// One safetensors file: length of the header, header, tensors without gaps. Returns the bytes of its tensors.
fn shard(tensors: &[Tensor], seed: u64, path: &Path) -> Result<u64> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for tensor in tensors {
        let begin = end;
        end += tensor.bytes() as u64;
        let entry =
            json!({ "dtype": tensor.kind.name(), "shape": tensor.shape, "data_offsets": [begin, end] });
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for tensor in tensors {
        values::write(tensor, seed, &mut file)?;
    }
    file.flush()?;
    Ok(end)
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

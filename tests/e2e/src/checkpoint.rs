//! A checkpoint that loads like the right one and answers otherwise.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The file with the weights.
const WEIGHTS: &str = "model.safetensors";

/// Copies the checkpoint in `from` to `to`, and changes its weights: every third bf16 number of the routed experts gets the
/// other sign. (The nano model is so sure of its answers that an error of a tenth of each number changes none.)
///
/// # Errors
/// If a file can't be read or written, or is not a checkpoint.
pub fn perturb(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for file in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let file = file?;
        if file.file_name() != WEIGHTS {
            fs::copy(file.path(), to.join(file.file_name()))?;
        }
    }
    let mut bytes = fs::read(from.join(WEIGHTS)).context(WEIGHTS)?;
    let changed = change(&mut bytes)?;
    ensure!(changed > 0, "no routed expert in {}", from.display());
    fs::write(to.join(WEIGHTS), bytes).context(WEIGHTS)?;
    Ok(())
}

/// Changes the numbers of a safetensors file; gives how many.
fn change(bytes: &mut [u8]) -> Result<usize> {
    let length: [u8; 8] = bytes.get(..8).context("too short for a length")?.try_into()?;
    let start = 8 + usize::try_from(u64::from_le_bytes(length))?;
    let header: Value = serde_json::from_slice(bytes.get(8..start).context("too short for a header")?)?;
    let mut changed = 0;
    for (name, tensor) in header.as_object().context("the header is no object")? {
        if !name.contains(".experts.") || tensor["dtype"] != "BF16" {
            continue;
        }
        let offset = |i: usize| tensor["data_offsets"][i].as_u64().and_then(|at| usize::try_from(at).ok());
        let (from, to) = offset(0).zip(offset(1)).with_context(|| format!("{name}: data_offsets"))?;
        let data =
            bytes.get_mut(start + from..start + to).with_context(|| format!("{name}: out of bounds"))?;
        // little endian: the sign is the highest bit of the second byte
        for high in data.iter_mut().skip(1).step_by(6) {
            *high ^= 0x80;
            changed += 1;
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_experts_are_changed() {
        let header = br#"{"layers.0.ffn.experts.1.w1.weight":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"head.weight":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        let start = bytes.len();
        bytes.extend_from_slice(&[0x80, 0x3f, 0x00, 0x40, 0x80, 0x3f]);
        assert_eq!(change(&mut bytes).unwrap(), 1);
        assert_eq!(bytes[start..], [0x80, 0xbf, 0x00, 0x40, 0x80, 0x3f]);
        assert!(change(&mut [1, 2, 3]).is_err());
    }
}

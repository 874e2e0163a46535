//! A published checkpoint: one safetensors file, or an index with shards; mapped, never copied.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use belay_backend::{Format, StoredMatrix};
use safetensors::Dtype;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::card::ModelCard;
use crate::config::Config;

mod error;
mod file;
pub(crate) mod layout;
mod stage;

pub use error::CheckpointError;
use file::{Tensor, TensorFile};
use layout::{Expected, Shape};
pub use stage::{Drafting, DraftingError};

pub(crate) const CONFIG_FILE: &str = "config.json";
const INDEX_FILE: &str = "model.safetensors.index.json";
const SINGLE_FILE: &str = "model.safetensors";

/// A directory whose headers were all checked against its configuration. Data is read when a weight is loaded.
pub struct Checkpoint {
    config: Config,
    card: ModelCard,
    files: Vec<TensorFile>,
    tensors: HashMap<String, Place>,
    /// Named in messages about tensors that are in no file.
    index_name: &'static str,
}

struct Place {
    file: usize,
    tensor: Tensor,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a directory for the trunk alone: [`Self::open_with`] without drafting.
    ///
    /// # Errors
    /// As [`Self::open_with`].
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        Self::open_with(dir, Drafting::OFF)
    }

    /// Opens a directory: reads `config.json` and all headers, and checks that every tensor of the trunk, and of the
    /// draft stage if it is to be used, is there with the right shape and type. Touches no weight.
    ///
    /// # Errors
    /// The first thing that is wrong, by file and tensor.
    pub fn open_with(dir: &Path, drafting: Drafting) -> Result<Self, CheckpointError> {
        let config_text = read_config(dir)?;
        let config = Config::parse(&config_text)?;
        let (index_name, files, tensors) = open_files(dir)?;
        let mut checkpoint = Self { config, card: ModelCard::default(), files, tensors, index_name };
        let draft_tokens = checkpoint.draft_tokens(drafting)?;
        if draft_tokens > 0 {
            checkpoint.config.add_draft_stage(draft_tokens)?;
        }
        let expected = layout::expected(&checkpoint.config);
        checkpoint.check(&expected)?;
        checkpoint.warn_about_unknown(&expected);
        checkpoint.card = checkpoint.make_card(&expected, &config_text);
        Ok(checkpoint)
    }

    /// Sizes and constants of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What placement needs to know.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Weight of the linear `name`, without suffix.
    pub(crate) fn linear(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<StoredMatrix, CheckpointError> {
        let weight_name = format!("{name}.weight");
        let place = self.place(&weight_name)?;
        let (format, stored_shape) = match place.tensor.dtype {
            Dtype::BF16 => (Format::Bf16, [rows, cols]),
            Dtype::F32 => (Format::F32, [rows, cols]),
            Dtype::F8_E4M3 => (Format::Fp8, [rows, cols]),
            Dtype::I8 => (Format::Fp4, [rows, cols.div_ceil(2)]),
            _ => return Err(self.wrong_dtype(&weight_name, place, "BF16, F32, F8_E4M3 or I8")),
        };
        self.expect_shape(&weight_name, place, &stored_shape)?;
        let scale_shape = match format {
            Format::F32 | Format::Bf16 => None,
            Format::Fp8 => {
                Some([rows.div_ceil(belay_backend::FP8_BLOCK), cols.div_ceil(belay_backend::FP8_BLOCK)])
            }
            Format::Fp4 => Some([rows, cols.div_ceil(belay_backend::FP4_BLOCK)]),
        };
        let scale = match scale_shape {
            None => Vec::new().into(),
            Some(shape) => {
                let scale_name = format!("{name}.scale");
                let scale = self.place(&scale_name)?;
                if scale.tensor.dtype != Dtype::F8_E8M0 {
                    return Err(self.wrong_dtype(&scale_name, scale, "F8_E8M0"));
                }
                self.expect_shape(&scale_name, scale, &shape)?;
                scale.tensor.data.clone()
            }
        };
        StoredMatrix::new(rows, cols, format, place.tensor.data.clone(), scale)
            .map_err(|cause| self.refused(&weight_name, cause))
    }

    /// An f32 matrix whose name has no suffix.
    pub(crate) fn matrix(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<StoredMatrix, CheckpointError> {
        let place = self.f32_matrix(name, rows, cols)?;
        StoredMatrix::new(rows, cols, Format::F32, place.tensor.data.clone(), Vec::new().into())
            .map_err(|cause| self.refused(name, cause))
    }

    /// A vector, or a matrix of f32 taken as one, widened.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
        Ok(widen(&self.vector_place(name, len)?.tensor))
    }

    /// The values of an f32 matrix.
    pub(crate) fn matrix_values(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<f32>, CheckpointError> {
        Ok(widen(&self.f32_matrix(name, rows, cols)?.tensor))
    }

    /// An integer table with values below `limit`.
    pub(crate) fn table(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
        limit: usize,
    ) -> Result<Vec<u32>, CheckpointError> {
        let place = self.table_place(name, rows, cols)?;
        let values: Vec<i64> = match place.tensor.dtype {
            Dtype::I64 => integers(&place.tensor.data, i64::from_le_bytes),
            _ => integers(&place.tensor.data, |bytes| i64::from(i32::from_le_bytes(bytes))),
        };
        values
            .into_iter()
            .enumerate()
            .map(|(at, value)| match u32::try_from(value) {
                Ok(id) if (id as usize) < limit => Ok(id),
                _ => Err(CheckpointError::Value {
                    file: self.file_of(place).to_owned(),
                    tensor: name.to_owned(),
                    message: format!("[{}, {}] is {value}, expected 0..{limit}", at / cols, at % cols),
                }),
            })
            .collect()
    }

    /// Gate (w1), up (w3) and down (w2) projection of a routed expert.
    pub(crate) fn expert(&self, layer: u32, expert: u32) -> Result<[StoredMatrix; 3], CheckpointError> {
        let prefix = layout::expert_prefix(&self.config, layer, expert);
        let (inner, width) = (self.config.expert_width, self.config.hidden_size);
        Ok([
            self.linear(&format!("{prefix}.w1"), inner, width)?,
            self.linear(&format!("{prefix}.w3"), inner, width)?,
            self.linear(&format!("{prefix}.w2"), width, inner)?,
        ])
    }

    /// Bytes of a routed expert as stored, scales included.
    pub fn expert_bytes(&self, layer: u32, expert: u32) -> u64 {
        let prefix = layout::expert_prefix(&self.config, layer, expert);
        ["w1", "w3", "w2"].iter().map(|name| self.stored_bytes(&format!("{prefix}.{name}"))).sum()
    }

    /// The error for a weight that the backend refused.
    pub(crate) fn refused(&self, name: &str, cause: belay_backend::BackendError) -> CheckpointError {
        CheckpointError::Backend { file: self.file_name(name).to_owned(), tensor: name.to_owned(), cause }
    }

    fn check(&self, expected: &[Expected]) -> Result<(), CheckpointError> {
        for Expected { name, shape, .. } in expected {
            match *shape {
                Shape::Linear(rows, cols) => drop(self.linear(name, rows, cols)?),
                Shape::Matrix(rows, cols) => drop(self.f32_matrix(name, rows, cols)?),
                Shape::Vector(len) => drop(self.vector_place(name, len)?),
                Shape::Table(rows, cols) => drop(self.table_place(name, rows, cols)?),
            }
        }
        Ok(())
    }

    /// One line for all tensors that nothing here uses.
    fn warn_about_unknown(&self, expected: &[Expected]) {
        let known: HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
        let is_known = |name: &str| {
            let stem = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".scale"));
            (self.config.draft_tokens == 0 && name.starts_with(layout::MTP_PREFIX))
                || known.contains(name)
                || stem.is_some_and(|stem| known.contains(stem))
        };
        let mut unknown: Vec<&str> =
            self.tensors.keys().map(String::as_str).filter(|name| !is_known(name)).collect();
        if unknown.is_empty() {
            return;
        }
        unknown.sort_unstable();
        let shown = unknown[..unknown.len().min(8)].join(", ");
        tracing::warn!(count = unknown.len(), tensors = %shown, "the checkpoint holds tensors that are not used");
    }

    fn make_card(&self, expected: &[Expected], config_text: &str) -> ModelCard {
        let dense = expected.iter().filter(|tensor| tensor.expert.is_none());
        let layers = self.config.layers.len() as u32;
        let experts =
            (0..layers).flat_map(|layer| (0..self.config.experts as u32).map(move |expert| (layer, expert)));
        ModelCard {
            layers,
            experts: self.config.experts as u32,
            experts_per_token: self.config.experts_per_token as u32,
            expert_bytes: experts.map(|(layer, expert)| self.expert_bytes(layer, expert)).max().unwrap_or(0),
            dense_bytes: dense.map(|tensor| self.stored_bytes(&tensor.name)).sum(),
            max_context_tokens: self.config.max_positions as u32,
            digest: self.digest(config_text),
        }
    }

    /// SHA-256 over `config.json` and the name, type and shape of every tensor, in hex. The draft stage counts if it is
    /// used: workers of one group must agree on that.
    fn digest(&self, config_text: &str) -> String {
        let mut names: Vec<&String> = self.tensors.keys().collect();
        names.sort_unstable();
        let mut hash = Sha256::new();
        hash.update(config_text);
        for name in names {
            let tensor = &self.tensors[name].tensor;
            hash.update(format!("\n{name} {:?} {:?}", tensor.dtype, tensor.shape));
        }
        if self.config.draft_tokens > 0 {
            hash.update("\nwith the draft stage");
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn stored_bytes(&self, name: &str) -> u64 {
        ["", ".weight", ".scale"]
            .iter()
            .filter_map(|suffix| self.tensors.get(&format!("{name}{suffix}")))
            .map(|place| place.tensor.data.len() as u64)
            .sum()
    }

    fn place(&self, name: &str) -> Result<&Place, CheckpointError> {
        self.tensors.get(name).ok_or_else(|| CheckpointError::Missing {
            file: self.index_name.to_owned(),
            tensor: name.to_owned(),
        })
    }

    fn f32_matrix(&self, name: &str, rows: usize, cols: usize) -> Result<&Place, CheckpointError> {
        let place = self.place(name)?;
        if place.tensor.dtype != Dtype::F32 {
            return Err(self.wrong_dtype(name, place, "F32"));
        }
        self.expect_shape(name, place, &[rows, cols])?;
        Ok(place)
    }

    fn vector_place(&self, name: &str, len: usize) -> Result<&Place, CheckpointError> {
        let place = self.place(name)?;
        if !matches!(place.tensor.dtype, Dtype::F32 | Dtype::BF16) {
            return Err(self.wrong_dtype(name, place, "F32 or BF16"));
        }
        self.expect_shape(name, place, &[len])?;
        Ok(place)
    }

    fn table_place(&self, name: &str, rows: usize, cols: usize) -> Result<&Place, CheckpointError> {
        let place = self.place(name)?;
        if !matches!(place.tensor.dtype, Dtype::I64 | Dtype::I32) {
            return Err(self.wrong_dtype(name, place, "I64 or I32"));
        }
        self.expect_shape(name, place, &[rows, cols])?;
        Ok(place)
    }

    fn expect_shape(&self, name: &str, place: &Place, expected: &[usize]) -> Result<(), CheckpointError> {
        if place.tensor.shape == expected {
            return Ok(());
        }
        Err(CheckpointError::Shape {
            file: self.file_of(place).to_owned(),
            tensor: name.to_owned(),
            expected: expected.to_vec(),
            found: place.tensor.shape.clone(),
        })
    }

    fn wrong_dtype(&self, name: &str, place: &Place, expected: &'static str) -> CheckpointError {
        CheckpointError::Dtype {
            file: self.file_of(place).to_owned(),
            tensor: name.to_owned(),
            expected,
            found: place.tensor.dtype.to_string(),
        }
    }

    fn file_of(&self, place: &Place) -> &str {
        &self.files[place.file].name
    }

    fn file_name(&self, tensor: &str) -> &str {
        self.tensors.get(tensor).map_or(self.index_name, |place| self.file_of(place))
    }
}

fn read_config(dir: &Path) -> Result<String, CheckpointError> {
    if !dir.is_dir() {
        return Err(CheckpointError::NoDirectory { dir: dir.display().to_string() });
    }
    std::fs::read_to_string(dir.join(CONFIG_FILE)).map_err(|cause| match cause.kind() {
        std::io::ErrorKind::NotFound => {
            CheckpointError::NoFile { dir: dir.display().to_string(), file: CONFIG_FILE.to_owned() }
        }
        _ => CheckpointError::Io { file: CONFIG_FILE.to_owned(), cause },
    })
}

type OpenFiles = (&'static str, Vec<TensorFile>, HashMap<String, Place>);

fn open_files(dir: &Path) -> Result<OpenFiles, CheckpointError> {
    let mut files = Vec::new();
    let mut tensors = HashMap::new();
    if !dir.join(INDEX_FILE).exists() {
        add_file(dir, SINGLE_FILE, &mut files, &mut tensors)?;
        return Ok((SINGLE_FILE, files, tensors));
    }
    let malformed = |message: String| CheckpointError::Malformed { file: INDEX_FILE.to_owned(), message };
    let text = std::fs::read_to_string(dir.join(INDEX_FILE))
        .map_err(|cause| CheckpointError::Io { file: INDEX_FILE.to_owned(), cause })?;
    let index: Index =
        serde_json::from_str(&text).map_err(|error| malformed(format!("bad index: {error}")))?;
    let mut names: Vec<&String> = index.weight_map.values().collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        if Path::new(name).components().count() != 1 || name.starts_with('.') {
            return Err(malformed(format!("{name:?} is not a file name")));
        }
        add_file(dir, name, &mut files, &mut tensors)?;
    }
    for (tensor, file) in &index.weight_map {
        let found = tensors.get(tensor).map(|place: &Place| &files[place.file].name);
        if found != Some(file) {
            return Err(CheckpointError::Missing { file: file.clone(), tensor: tensor.clone() });
        }
    }
    Ok((INDEX_FILE, files, tensors))
}

fn add_file(
    dir: &Path,
    name: &str,
    files: &mut Vec<TensorFile>,
    tensors: &mut HashMap<String, Place>,
) -> Result<(), CheckpointError> {
    let (file, metadata) = TensorFile::open(dir, name)?;
    for (tensor_name, info) in metadata.tensors() {
        let tensor = file.tensor(info).ok_or_else(|| CheckpointError::Malformed {
            file: name.to_owned(),
            message: format!("tensor {tensor_name} lies outside the file"),
        })?;
        if let Some(other) = tensors.insert(tensor_name.clone(), Place { file: files.len(), tensor }) {
            let message = format!("tensor {tensor_name} is in {} as well", files[other.file].name);
            return Err(CheckpointError::Malformed { file: name.to_owned(), message });
        }
    }
    files.push(file);
    Ok(())
}

/// Values of an f32 or bf16 tensor.
fn widen(tensor: &Tensor) -> Vec<f32> {
    match tensor.dtype {
        Dtype::BF16 => tensor
            .data
            .chunks_exact(2)
            .map(|bytes| belay_backend::dtype::bf16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]])))
            .collect(),
        _ => integers(&tensor.data, f32::from_le_bytes),
    }
}

/// Decodes elements of N bytes.
fn integers<const N: usize, T>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).filter_map(|chunk| chunk.try_into().ok()).map(decode).collect()
}

use belay_backend::BackendError;

use crate::{CacheError, ConfigError};

/// Why a checkpoint was refused. Each message names the file, and the tensor where there is one.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The directory is not there.
    #[error("{dir}: no such directory")]
    NoDirectory {
        /// The directory that was asked for.
        dir: String,
    },
    /// The directory holds no model, or not all of it.
    #[error("{dir}: {file} is missing")]
    NoFile {
        /// Checkpoint directory.
        dir: String,
        /// The file that should be there.
        file: String,
    },
    /// A file cannot be read.
    #[error("{file}: {cause}")]
    Io {
        /// File name.
        file: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// `config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no memory for decode states.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A header or an index is broken.
    #[error("{file}: {message}")]
    Malformed {
        /// File name.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// A file is shorter than its header says.
    #[error("{file}: truncated: tensor {tensor} needs {expected} bytes of data, the file holds {found}")]
    Truncated {
        /// File name.
        file: String,
        /// First tensor that is not complete.
        tensor: String,
        /// Where that tensor ends.
        expected: usize,
        /// Where the file's data ends.
        found: usize,
    },
    /// A tensor that the configuration asks for is in no file.
    #[error("{file}: tensor {tensor} is missing")]
    Missing {
        /// Where it was looked for.
        file: String,
        /// Tensor name.
        tensor: String,
    },
    /// Wrong shape.
    #[error("{file}: tensor {tensor}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// Wrong element type.
    #[error("{file}: tensor {tensor}: expected dtype {expected}, found {found}")]
    Dtype {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// Types that would do.
        expected: &'static str,
        /// Type in the file.
        found: String,
    },
    /// A value that cannot be used.
    #[error("{file}: tensor {tensor}: {message}")]
    Value {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// Drafting was asked for, but there is no stage for it that is computed here.
    #[error(
        "{file}: tensor {tensor} {problem}: draft-tokens must be 0 or auto for this checkpoint, not {asked}"
    )]
    DraftStage {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// What is the matter with it.
        problem: &'static str,
        /// How many draft tokens were asked for.
        asked: usize,
    },
    /// The backend could not take the weight.
    #[error("{file}: tensor {tensor}: {cause}")]
    Backend {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// What the backend said.
        cause: BackendError,
    },
}

impl CheckpointError {
    /// Whether there is no checkpoint at all, rather than a broken one.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NoDirectory { .. } => true,
            Self::NoFile { file, .. } => file == super::CONFIG_FILE,
            _ => false,
        }
    }
}

//! What can go wrong while an image is written.

use std::path::PathBuf;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The archive could not be written.
    #[error("write {}: {source}", path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The image name has no registry host, repository or tag, or odd characters.
    #[error("image name {name:?}: {reason}")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A path inside the image is not absolute, or steps outside the root.
    #[error("path {path:?} in the image: {reason}")]
    Path {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two inputs want the same path in the image.
    #[error("path {0:?} in the image is given twice")]
    Twice(String),
    /// A device, socket or pipe: these have no place in an image.
    #[error("{}: neither a file, a folder nor a symbolic link", .0.display())]
    Special(PathBuf),
    /// JSON of the configuration or a manifest could not be made.
    #[error("encode image metadata: {0}")]
    Encode(#[from] serde_json::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

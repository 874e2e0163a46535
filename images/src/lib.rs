//! Writes reproducible one-layer container images from static binaries, without a container engine.
//!
//! The same input gives the same bytes: entries are sorted, owners and times are fixed, permission bits are
//! reduced to "executable or not", and the build's clock, user and paths never reach the archive.
//!
//! * [`layer`]: files on disk become one deterministic tar
//! * [`image`]: names, configuration and labels of an image
//! * [`archive`]: both become one file that `docker load`, `ctr image import` and `kind load image-archive` read
#![forbid(unsafe_code)]

pub mod archive;
pub mod error;
pub mod image;
pub mod layer;

pub use archive::{Written, write};
pub use error::Error;
pub use image::{Compression, ImageName, ImageSpec};
pub use layer::Layer;

//! One mapped safetensors file.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use belay_backend::Bytes;
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::CheckpointError;

/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;
/// What the format allows.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// A mapped file; pages are read when something looks at them.
pub(super) struct TensorFile {
    pub(super) name: String,
    map: Arc<Mmap>,
    data_start: usize,
}

/// Type, shape and bytes of one tensor.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) data: Bytes,
}

impl TensorFile {
    /// Maps the file and reads its header.
    pub(super) fn open(dir: &Path, name: &str) -> Result<(Self, Metadata), CheckpointError> {
        let path = dir.join(name);
        let file = File::open(&path).map_err(|cause| match cause.kind() {
            std::io::ErrorKind::NotFound => {
                CheckpointError::NoFile { dir: dir.display().to_string(), file: name.to_owned() }
            }
            _ => CheckpointError::Io { file: name.to_owned(), cause },
        })?;
        let io = |cause| CheckpointError::Io { file: name.to_owned(), cause };
        let map = map_file(&file).map_err(io)?;
        let malformed = |message: String| CheckpointError::Malformed { file: name.to_owned(), message };

        let length: [u8; LENGTH_BYTES] = map
            .get(..LENGTH_BYTES)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| malformed(format!("truncated: {} bytes are no safetensors file", map.len())))?;
        let header_bytes = u64::from_le_bytes(length);
        let header_bytes = usize::try_from(header_bytes)
            .ok()
            .filter(|&bytes| bytes <= MAX_HEADER_BYTES)
            .ok_or_else(|| malformed(format!("not a safetensors file: a header of {header_bytes} bytes")))?;
        let data_start = LENGTH_BYTES + header_bytes;
        let header = map.get(LENGTH_BYTES..data_start).ok_or_else(|| {
            malformed(format!("truncated: a header of {header_bytes} bytes in a file of {}", map.len()))
        })?;
        let metadata: Metadata = serde_json::from_slice(header)
            .map_err(|error| malformed(format!("bad safetensors header: {error}")))?;
        let held = map.len() - data_start;
        check_length(name, &metadata, held)?;
        Ok((Self { name: name.to_owned(), map: Arc::new(map), data_start }, metadata))
    }

    /// A tensor of this file's header.
    pub(super) fn tensor(&self, info: &safetensors::tensor::TensorInfo) -> Option<Tensor> {
        let (start, end) = info.data_offsets;
        let data = Bytes::new(self.map.clone(), self.data_start + start..self.data_start + end)?;
        Some(Tensor { dtype: info.dtype, shape: info.shape.clone(), data })
    }
}

fn check_length(file: &str, metadata: &Metadata, held: usize) -> Result<(), CheckpointError> {
    let needed = metadata.data_len();
    if held > needed {
        let message = format!("{} bytes after the last tensor", held - needed);
        return Err(CheckpointError::Malformed { file: file.to_owned(), message });
    }
    if held == needed {
        return Ok(());
    }
    let cut = metadata.offset_keys().into_iter().find_map(|name| {
        let end = metadata.info(&name)?.data_offsets.1;
        (end > held).then_some((name, end))
    });
    let (tensor, expected) = cut.unwrap_or((String::from("(unknown)"), needed));
    Err(CheckpointError::Truncated { file: file.to_owned(), tensor, expected, found: held })
}

/// The one place where a file is mapped.
#[allow(unsafe_code)]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read. A checkpoint is immutable while it is served (it is mounted read-only); a file
    // that is changed or cut under the map could at worst change weights or raise SIGBUS, as for any mapped model.
    unsafe { Mmap::map(file) }
}

//! Copies of fixtures that a test may change.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// A copy of a fixture that a test may break.
pub fn copy_of(dir: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().starts_with("golden") {
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

pub type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// Rewrites a file with changed tensors.
pub fn rewrite(dir: &TempDir, file: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let path = dir.path().join(file);
    let bytes = fs::read(&path).unwrap();
    let mut tensors: BTreeMap<String, Tensor> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

use crate::tensor::{DataType, Layout, View};
use crate::{Region, Result};

/// f32 array in device memory.
#[derive(Debug)]
pub struct AscendBuffer {
    region: Region,
    len: usize,
}

impl AscendBuffer {
    pub(super) fn new(region: Region, len: usize) -> Self {
        Self { region, len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Its first elements as a tensor.
    pub(super) fn view(&self, dims: &[usize]) -> Result<View> {
        View::new(self.region.clone(), Layout::contiguous(DataType::F32, dims)?)
    }
}

/// i32 array. It is kept by the host: what was selected decides which rows of the cache are read, and their addresses are
/// made here.
#[derive(Debug)]
pub struct AscendIndices(pub(super) Vec<i32>);

/// Pages of the caches.
#[derive(Debug)]
pub struct AscendArena {
    region: Region,
    page_bytes: usize,
}

impl AscendArena {
    pub(super) fn new(region: Region, page_bytes: usize) -> Self {
        Self { region, page_bytes }
    }

    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    pub(super) fn page_bytes(&self) -> usize {
        self.page_bytes
    }
}

//! Weights on the device, and how they get there.

use belay_backend::{Backend, Format, Precision, Rows, StoredMatrix};

use crate::checkpoint::{Checkpoint, CheckpointError};

/// Activation channels that share a scale in the rounding mode.
const ACTIVATION_BLOCK: usize = 128;

/// Says how much of a load is done: bytes so far, bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Takes weights from a checkpoint to a backend and counts bytes.
pub(crate) struct Loader<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) total: u64,
    pub(crate) done: u64,
    pub(crate) progress: Progress<'a>,
}

impl<B: Backend> Loader<'_, B> {
    pub(crate) fn linear(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Linear<B>, CheckpointError> {
        self.linear_in(Precision::Working, name, rows, cols)
    }

    /// A linear that has to be more precise than most.
    pub(crate) fn linear_in(
        &mut self,
        precision: Precision,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Linear<B>, CheckpointError> {
        let stored = self.checkpoint.linear(name, rows, cols)?;
        self.place(&format!("{name}.weight"), stored, precision)
    }

    /// A linear whose name has no suffix and that is f32.
    pub(crate) fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Linear<B>, CheckpointError> {
        let stored = self.checkpoint.matrix(name, rows, cols)?;
        self.place(name, stored, Precision::Full)
    }

    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<B::Buffer, CheckpointError> {
        let values = self.checkpoint.vector(name, len)?;
        self.upload(name, &values)
    }

    pub(crate) fn values(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<B::Buffer, CheckpointError> {
        let values = self.checkpoint.matrix_values(name, rows, cols)?;
        self.upload(name, &values)
    }

    pub(crate) fn place(
        &mut self,
        name: &str,
        stored: StoredMatrix,
        precision: Precision,
    ) -> Result<Linear<B>, CheckpointError> {
        let (bytes, cols, format) = (stored.bytes(), stored.cols, stored.format);
        let matrix =
            self.backend.matrix(stored, precision).map_err(|cause| self.checkpoint.refused(name, cause))?;
        self.count(bytes);
        Ok(Linear { matrix, inputs: cols, format })
    }

    fn upload(&mut self, name: &str, values: &[f32]) -> Result<B::Buffer, CheckpointError> {
        let upload = || {
            let mut buffer = self.backend.alloc(values.len())?;
            self.backend.write(&mut buffer, 0, values)?;
            Ok(buffer)
        };
        let buffer = upload().map_err(|cause| self.checkpoint.refused(name, cause))?;
        self.count(4 * values.len() as u64);
        Ok(buffer)
    }

    fn count(&mut self, bytes: u64) {
        // vectors are widened, so the stored total can be passed by a little
        self.done = (self.done + bytes).min(self.total);
        (self.progress)(self.done, self.total);
    }
}

/// A linear's weight.
pub(crate) struct Linear<B: Backend> {
    matrix: B::Matrix,
    inputs: usize,
    format: Format,
}

impl<B: Backend> Linear<B> {
    pub(crate) fn matrix(&self) -> &B::Matrix {
        &self.matrix
    }

    /// y = W x.
    pub(crate) fn apply(
        &self,
        backend: &B,
        x: &B::Buffer,
        rows: usize,
        y: &mut B::Buffer,
    ) -> belay_backend::Result<()> {
        backend.linear(&self.matrix, x, rows, y)
    }

    /// W is split into groups that each see their part of x.
    pub(crate) fn apply_grouped(
        &self,
        backend: &B,
        groups: usize,
        x: &B::Buffer,
        rows: usize,
        y: &mut B::Buffer,
    ) -> belay_backend::Result<()> {
        backend.linear_grouped(&self.matrix, groups, x, rows, y)
    }

    /// y = W x, where the published code rounds x if W is quantised. `rounded` is scratch.
    pub(crate) fn apply_rounded(
        &self,
        backend: &B,
        round: bool,
        x: &B::Buffer,
        rows: usize,
        y: &mut B::Buffer,
        rounded: &mut B::Buffer,
    ) -> belay_backend::Result<()> {
        if !(round && self.format.is_quantised()) {
            return self.apply(backend, x, rows, y);
        }
        let all = Rows { first: 0, count: rows, width: self.inputs };
        backend.copy(x, 0..rows * self.inputs, rounded, 0)?;
        backend.round_e4m3(rounded, all, 0..self.inputs, ACTIVATION_BLOCK)?;
        self.apply(backend, rounded, rows, y)
    }
}

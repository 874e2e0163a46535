//! The op set that the model is written in.
//!
//! A buffer is an array of f32 in the device's memory; the model never looks inside except through
//! [`Backend::read`]. Matrices are row-major. "Rows" are tokens of a step: several sequences lie one after the other
//! in the same buffer.
//!
//! Contract 1 (exact): the result of a row has the same bits whatever other rows are in the call. Reductions have an
//! order that depends on the shape alone.

use std::ops::Range;

use crate::{PagedRows, Precision, Result, Route, StoredMatrix};

/// Rows `first .. first + count` of a matrix with `width` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// First row.
    pub first: usize,
    /// Number of rows.
    pub count: usize,
    /// Columns of the matrix.
    pub width: usize,
}

/// Where the rotary channels lie: each of the `heads` equal parts of a row ends in `channels` rotary ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotary {
    /// Heads in a row.
    pub heads: usize,
    /// Rotary channels of a head; even.
    pub channels: usize,
    /// Rotate back (attention output) instead of forth.
    pub inverse: bool,
}

/// Residual streams that a backend must have room for; published models have 4.
pub const MAX_STREAMS: usize = 16;

/// Sizes of the hyper-connection streams and of the mixer's normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HyperShape {
    /// M, residual streams; at most [`MAX_STREAMS`].
    pub streams: usize,
    /// D, channels of one stream.
    pub width: usize,
    /// Sinkhorn iterations.
    pub iterations: usize,
    /// Added after the softmax, in each division and to `pre`.
    pub eps: f32,
    /// Of the RMS over all M·D channels.
    pub norm_eps: f32,
}

/// Core attention of one sequence: sliding window, compressed entries, sink.
pub struct Attention<'a, B: Backend + ?Sized> {
    /// `[rows of the step, heads · width]`, rotated.
    pub q: &'a B::Buffer,
    /// The sequence's rows of `q` and the output.
    pub rows: Range<usize>,
    /// Position of the first of these rows.
    pub start: usize,
    /// Where keys lie.
    pub arena: &'a B::Arena,
    /// Window keys (= values) by position, rotated, those of this step included.
    pub keys: PagedRows<'a>,
    /// Window length; a query sees itself and the `window − 1` positions before it.
    pub window: usize,
    /// Compressed entries that take part as well.
    pub entries: Entries<'a, B>,
    /// `[heads]`: the sink's logit, which has no value.
    pub sink: &'a B::Buffer,
    /// Query heads.
    pub heads: usize,
    /// Channels of a head.
    pub width: usize,
}

/// Which compressed entries a query sees besides its window.
pub enum Entries<'a, B: Backend + ?Sized> {
    /// None: a sliding-window layer.
    None,
    /// All that are complete: entry n for a query at t if n < (t + 1) / ratio.
    Visible {
        /// Entries by number.
        entries: PagedRows<'a>,
        /// Tokens of one entry.
        ratio: usize,
    },
    /// Those that [`Backend::select`] chose.
    Selected {
        /// Entries by number.
        entries: PagedRows<'a>,
        /// `[rows of the step, k]`: ascending, −1 after the last.
        chosen: &'a B::Indices,
        /// Columns of `chosen`.
        k: usize,
    },
}

/// Pooling of one sequence's new tokens into compressed entries.
pub struct Compress<'a, B: Backend + ?Sized> {
    /// `[rows of the step, co · width]` values; co = 2 with overlap, else 1.
    pub values: &'a B::Buffer,
    /// `[rows of the step, co · width]` gates, without the position's bias.
    pub gates: &'a B::Buffer,
    /// `[ratio, co · width]`: bias of the gates by position modulo ratio.
    pub bias: &'a B::Buffer,
    /// The sequence's rows.
    pub rows: Range<usize>,
    /// Position of the first of these rows.
    pub start: usize,
    /// Tokens of one entry.
    pub ratio: usize,
    /// An entry pools the first half of the previous window and the second half of its own.
    pub overlap: bool,
    /// Channels of an entry.
    pub width: usize,
    /// Rows of windows that are not complete, by position, in f32: co · width values, then as many gates with bias.
    pub open: PagedRows<'a>,
    /// First position of this step whose row goes to `open`.
    pub keep: usize,
}

/// Choice of the best compressed entries for one sequence's queries.
pub struct Select<'a, B: Backend + ?Sized> {
    /// `[rows of the step, heads · width]`.
    pub q: &'a B::Buffer,
    /// `[rows of the step, heads]`: signed weight of each head.
    pub head_weights: &'a B::Buffer,
    /// Factor on `head_weights`.
    pub scale: f32,
    /// Where keys lie.
    pub arena: &'a B::Arena,
    /// Keys by number of the entry.
    pub keys: PagedRows<'a>,
    /// The sequence's rows.
    pub rows: Range<usize>,
    /// Position of the first of these rows.
    pub start: usize,
    /// Tokens of one entry.
    pub ratio: usize,
    /// Indexer heads.
    pub heads: usize,
    /// Channels of a head.
    pub width: usize,
    /// How many to choose; columns of the result.
    pub k: usize,
}

/// Experts of a layer with the rows that each of them gets.
pub struct Experts<'a, B: Backend + ?Sized> {
    /// `[·, width]`.
    pub x: &'a B::Buffer,
    /// D, channels of a row.
    pub width: usize,
    /// I, inner width of an expert.
    pub inner: usize,
    /// Of the clamps before the product of gate and up.
    pub limit: f32,
    /// Each expert once.
    pub experts: &'a [ExpertRows<'a, B>],
}

/// An expert and its rows.
pub struct ExpertRows<'a, B: Backend + ?Sized> {
    /// `[I, D]`, gate.
    pub w1: &'a B::Matrix,
    /// `[I, D]`, up.
    pub w3: &'a B::Matrix,
    /// `[D, I]`.
    pub w2: &'a B::Matrix,
    /// Row of the result, and what it is made of.
    pub rows: &'a [(u32, Route)],
}

/// A device: its memory and the operations of the model.
///
/// Sizes are the caller's responsibility: an implementation may panic when a buffer is too short for a call.
///
/// # Errors
/// Every operation may fail with [`BackendError::Device`](crate::BackendError::Device); the buffers it writes are
/// then undefined.
pub trait Backend: Send + Sync + 'static {
    /// f32 array in device memory.
    type Buffer: Send + Sync;
    /// i32 array in device memory.
    type Indices: Send + Sync;
    /// Pages of bytes in device memory: the caches of all sequences.
    type Arena: Send + Sync;
    /// A linear's weight, in its published bits.
    type Matrix: Send + Sync;

    /// Device, kernel level and threads, for logs.
    fn describe(&self) -> String;

    /// Fused operators that there are for this device, and whether each is used; decided at start.
    fn fused(&self) -> Vec<(&'static str, bool)> {
        Vec::new()
    }

    /// Why the device can do nothing more in this process, once that is so. Every operation fails from then on.
    fn lost(&self) -> Option<String> {
        None
    }

    /// A buffer of `len` zeros.
    fn alloc(&self, len: usize) -> Result<Self::Buffer>;
    /// An index array of `len` zeros.
    fn alloc_indices(&self, len: usize) -> Result<Self::Indices>;
    /// `pages` pages of `page_bytes` zero bytes. Where the system allows, pages take memory when they are first written.
    /// `page_bytes` is a multiple of 64.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`](crate::BackendError::OutOfMemory).
    fn arena(&self, pages: usize, page_bytes: usize) -> Result<Self::Arena>;
    /// Elements of a buffer.
    fn len(&self, buffer: &Self::Buffer) -> usize;
    /// Sets all elements.
    fn fill(&self, buffer: &mut Self::Buffer, value: f32) -> Result<()>;
    /// Host to device: `buffer[at..] = values`.
    fn write(&self, buffer: &mut Self::Buffer, at: usize, values: &[f32]) -> Result<()>;
    /// Device to host: `values = buffer[at..]`.
    fn read(&self, buffer: &Self::Buffer, at: usize, values: &mut [f32]) -> Result<()>;
    /// Device to host.
    fn read_indices(&self, indices: &Self::Indices, at: usize, values: &mut [i32]) -> Result<()>;
    /// `to[at..] = from[range]`.
    fn copy(&self, from: &Self::Buffer, range: Range<usize>, to: &mut Self::Buffer, at: usize) -> Result<()>;
    /// Takes a weight as stored. May keep the bytes, or move them to the device, in a format that is good for
    /// `precision`.
    ///
    /// # Errors
    /// [`BackendError::NotANumber`](crate::BackendError::NotANumber) if a code is a NaN.
    fn matrix(&self, stored: StoredMatrix, precision: Precision) -> Result<Self::Matrix>;

    /// `out[r, c, :] = table[ids[r], :]` for each of the `copies` c.
    fn embed(&self, table: &Self::Matrix, ids: &[u32], copies: usize, out: &mut Self::Buffer) -> Result<()>;

    /// `y[r, :] = W x[r, :]`.
    fn linear(&self, w: &Self::Matrix, x: &Self::Buffer, rows: usize, y: &mut Self::Buffer) -> Result<()> {
        self.linear_grouped(w, 1, x, rows, y)
    }

    /// W is `[groups · o, i]`, x `[rows, groups · i]`: group g of the output is its part of W times its part of x.
    fn linear_grouped(
        &self,
        w: &Self::Matrix,
        groups: usize,
        x: &Self::Buffer,
        rows: usize,
        y: &mut Self::Buffer,
    ) -> Result<()>;

    /// `out[i, :] = x[rows[i], :]`.
    fn gather(&self, x: &Self::Buffer, width: usize, rows: &[u32], out: &mut Self::Buffer) -> Result<()>;

    /// `out[out_first + i, :] = w · x[i, :] / sqrt(mean(x[i, :]²) + eps)`.
    fn rms_norm(
        &self,
        x: &Self::Buffer,
        rows: Rows,
        weight: &Self::Buffer,
        eps: f32,
        out: &mut Self::Buffer,
        out_first: usize,
    ) -> Result<()>;

    /// The same in place and without a weight, for each of `count` vectors of `width` channels.
    fn head_norm(&self, x: &mut Self::Buffer, count: usize, width: usize, eps: f32) -> Result<()>;

    /// Rotates interleaved pairs. Row i of `rows` uses row `table_first + i` of `table`:
    /// `[·, channels]`, cosine and sine of each pair in turn.
    fn rope(
        &self,
        x: &mut Self::Buffer,
        rows: Rows,
        rotary: Rotary,
        table: &Self::Buffer,
        table_first: usize,
    ) -> Result<()>;

    /// `out[r, h, :]` = softmax-weighted sum of the keys that query r sees, sink included in the normalisation.
    fn attention(&self, op: &Attention<'_, Self>, out: &mut Self::Buffer) -> Result<()>;

    /// Writes `rows` of `x` to rows `first ..` of `to`, in the format of `to`.
    fn store(
        &self,
        x: &Self::Buffer,
        rows: Rows,
        arena: &mut Self::Arena,
        to: PagedRows<'_>,
        first: usize,
    ) -> Result<()>;

    /// Reads rows `first ..` of `from` into `rows` of `x`.
    fn fetch(
        &self,
        arena: &Self::Arena,
        from: PagedRows<'_>,
        first: usize,
        x: &mut Self::Buffer,
        rows: Rows,
    ) -> Result<()>;

    /// Pools the windows that the step's rows complete into entries, written in order to `out` from row 0, then keeps
    /// the step's rows from `op.keep` on. Earlier rows of these windows are taken from `op.open`; a window before the
    /// sequence's first has no share.
    fn compress(
        &self,
        op: &Compress<'_, Self>,
        arena: &mut Self::Arena,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// score(t, n) = Σ_h relu(q_h · key_n) · weight_h · scale over the entries that are complete at t; writes the `k`
    /// best (the lower index wins a tie) ascending, −1 after the last, to rows `op.rows` of `chosen`.
    fn select(&self, op: &Select<'_, Self>, chosen: &mut Self::Indices) -> Result<()>;

    /// `x = sqrt(softplus(x))` for the first `len` elements.
    fn sqrt_softplus(&self, x: &mut Self::Buffer, len: usize) -> Result<()>;

    /// `gate = silu(min(gate, limit)) · clamp(up, −limit, limit)` for the first `len` elements.
    fn swiglu(&self, gate: &mut Self::Buffer, up: &Self::Buffer, len: usize, limit: f32) -> Result<()>;

    /// `x[i, :] *= factors[i]`.
    fn scale_rows(&self, x: &mut Self::Buffer, width: usize, factors: &[f32]) -> Result<()>;

    /// `y[place] = weight · w2 (silu(min(w1 x[row], limit)) · clamp(w3 x[row], ±limit))` for every row of every expert, all in
    /// one go. A row's result has the same bits whatever else is in the call. False if this backend has no such operation:
    /// the caller then puts it together from the others.
    fn experts(&self, op: &Experts<'_, Self>, y: &mut Self::Buffer) -> Result<bool> {
        let _ = (op, y);
        Ok(false)
    }

    /// `x += y` for the first `len` elements.
    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer, len: usize) -> Result<()>;

    /// Turns `mix[r, :] = fn · streams[r, :]`, (2 + M)·M values, into M `pre`, M `post` and the M × M `comb`, which is
    /// made doubly stochastic. `base` has (2 + M)·M values, `scale` 3.
    fn hyper_mix(
        &self,
        streams: &Self::Buffer,
        rows: usize,
        shape: HyperShape,
        base: &Self::Buffer,
        scale: &Self::Buffer,
        mix: &mut Self::Buffer,
    ) -> Result<()>;

    /// The same for the head: M values, `pre` only. `base` has M values, `scale` 1.
    fn hyper_head(
        &self,
        streams: &Self::Buffer,
        rows: usize,
        shape: HyperShape,
        base: &Self::Buffer,
        scale: &Self::Buffer,
        mix: &mut Self::Buffer,
    ) -> Result<()>;

    /// `out[r, :] = Σ_j pre_j · streams[r, j, :]`; `pre` = the first M of `mix_width` values in a row of `mix`.
    fn hyper_pre(
        &self,
        streams: &Self::Buffer,
        rows: usize,
        shape: HyperShape,
        mix: &Self::Buffer,
        mix_width: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `streams[r, k, :] = post_k · y[r, :] + Σ_j comb[j, k] · streams[r, j, :]`.
    fn hyper_post(
        &self,
        streams: &mut Self::Buffer,
        rows: usize,
        shape: HyperShape,
        mix: &Self::Buffer,
        y: &Self::Buffer,
    ) -> Result<()>;

    /// Rounds `columns` of `rows` to e4m3 and back, in blocks of `block` columns that share the scale
    /// 2^ceil(log2(max(|x|max, 1e-4) / 448)).
    fn round_e4m3(&self, x: &mut Self::Buffer, rows: Rows, columns: Range<usize>, block: usize)
    -> Result<()>;

    /// For each `width` channels of `rows`: orthonormal Hadamard transform in natural order, then e2m1 and back in
    /// blocks of 32 that share the scale 2^ceil(log2(max(|x|max, 6·2^−126) / 6)). `width` is a power of two.
    fn round_hadamard_e2m1(&self, x: &mut Self::Buffer, rows: Rows, width: usize) -> Result<()>;
}

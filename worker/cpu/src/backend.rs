use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use belay_backend::{
    Attention, Backend, Compress, Entries, Experts, HyperShape, PagedRows, Precision, Result, Rotary, Rows,
    Select, StoredMatrix,
};

use crate::arena::CpuArena;
use crate::buffer::{CpuBuffer, CpuIndices, CpuMatrix};
use crate::kernel::Kernels;
use crate::level::Level;
use crate::linear;
use crate::ops::{activation, attention, compress, experts, hyper, norm, rope, rounding, rows, select};
use crate::pool::Pool;
use crate::products::Products;
use crate::shared::each_row;
use crate::weights::Weights;

thread_local! {
    static ATTENTION: RefCell<attention::AttentionScratch> = RefCell::default();
    static COMPRESS: RefCell<compress::CompressScratch> = RefCell::default();
}

/// Cached rows that operations have read since the backend was made: what decoding costs beyond the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowsRead {
    /// Window keys and compressed entries by the core attention, once for each query (its heads share them).
    pub attention: u64,
    /// Indexer keys that were scored, once for each query.
    pub select: u64,
}

/// The CPUs of this process.
pub struct CpuBackend {
    kernels: Kernels,
    weights: Weights,
    pool: Pool,
    attention_rows: AtomicU64,
    select_rows: AtomicU64,
    /// What computing experts takes: memory that no call uses at the moment.
    inside: Mutex<Vec<experts::Inside>>,
}

impl CpuBackend {
    /// The best level of this machine, and as many threads as affinity and the control group's quota allow.
    pub fn detect() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(Kernels::detect(), threads)
    }

    /// A given level and number of threads; `None` if this machine cannot run the level.
    pub fn with(level: Level, threads: usize) -> Option<Self> {
        Some(Self::new(Kernels::new(level)?, threads))
    }

    fn new(kernels: Kernels, threads: usize) -> Self {
        let (weights, attention_rows, select_rows) = Default::default();
        Self {
            kernels,
            weights,
            pool: Pool::new(threads),
            attention_rows,
            select_rows,
            inside: Mutex::default(),
        }
    }

    /// With linears that multiply their inputs as `products` says.
    #[must_use]
    pub fn with_products(self, products: Products) -> Self {
        Self { kernels: self.kernels.with_products(products), ..self }
    }

    /// With weights where `weights` says.
    #[must_use]
    pub fn with_weights(self, weights: Weights) -> Self {
        Self { weights, ..self }
    }

    /// Level in use.
    pub fn level(&self) -> Level {
        self.kernels.level()
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Counts so far.
    pub fn rows_read(&self) -> RowsRead {
        RowsRead {
            attention: self.attention_rows.load(Ordering::Relaxed),
            select: self.select_rows.load(Ordering::Relaxed),
        }
    }

    /// Heads of a query that one task takes: all, unless there are too few queries for the threads.
    fn heads_per_task(&self, rows: usize, heads: usize) -> usize {
        let parts = (2 * self.threads()).div_ceil(rows.max(1));
        (1..=heads).rev().find(|count| heads.is_multiple_of(*count) && heads / count >= parts).unwrap_or(1)
    }
}

impl Backend for CpuBackend {
    type Buffer = CpuBuffer;
    type Indices = CpuIndices;
    type Arena = CpuArena;
    type Matrix = CpuMatrix;

    fn describe(&self) -> String {
        let (level, products, threads) = (self.level(), self.kernels.products(), self.threads());
        format!("cpu, {level} kernels, {products} products, {} weights, {threads} threads", self.weights)
    }

    fn alloc(&self, len: usize) -> Result<CpuBuffer> {
        Ok(CpuBuffer(vec![0.0; len]))
    }

    fn alloc_indices(&self, len: usize) -> Result<CpuIndices> {
        Ok(CpuIndices(vec![0; len]))
    }

    fn arena(&self, pages: usize, page_bytes: usize) -> Result<CpuArena> {
        CpuArena::new(pages, page_bytes)
    }

    fn len(&self, buffer: &CpuBuffer) -> usize {
        buffer.0.len()
    }

    fn fill(&self, buffer: &mut CpuBuffer, value: f32) -> Result<()> {
        buffer.0.fill(value);
        Ok(())
    }

    fn write(&self, buffer: &mut CpuBuffer, at: usize, values: &[f32]) -> Result<()> {
        buffer.0[at..at + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read(&self, buffer: &CpuBuffer, at: usize, values: &mut [f32]) -> Result<()> {
        values.copy_from_slice(&buffer.0[at..at + values.len()]);
        Ok(())
    }

    fn read_indices(&self, indices: &CpuIndices, at: usize, values: &mut [i32]) -> Result<()> {
        values.copy_from_slice(&indices.0[at..at + values.len()]);
        Ok(())
    }

    fn copy(&self, from: &CpuBuffer, range: Range<usize>, to: &mut CpuBuffer, at: usize) -> Result<()> {
        to.0[at..at + range.len()].copy_from_slice(&from.0[range]);
        Ok(())
    }

    // every product is exact to f32 here
    fn matrix(&self, stored: StoredMatrix, _: Precision) -> Result<CpuMatrix> {
        stored.check_codes()?;
        Ok(CpuMatrix::new(self.weights.place(stored)))
    }

    fn embed(&self, table: &CpuMatrix, ids: &[u32], copies: usize, out: &mut CpuBuffer) -> Result<()> {
        linear::embed(self.kernels, table, ids, copies, &mut out.0);
        Ok(())
    }

    fn linear_grouped(
        &self,
        w: &CpuMatrix,
        groups: usize,
        x: &CpuBuffer,
        rows: usize,
        y: &mut CpuBuffer,
    ) -> Result<()> {
        linear::linear(self.kernels, &self.pool, w, groups, &x.0, rows, &mut y.0);
        Ok(())
    }

    fn gather(&self, x: &CpuBuffer, width: usize, rows: &[u32], out: &mut CpuBuffer) -> Result<()> {
        for (out, &row) in out.0.chunks_exact_mut(width).zip(rows) {
            out.copy_from_slice(&x.0[row as usize * width..][..width]);
        }
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &CpuBuffer,
        rows: Rows,
        weight: &CpuBuffer,
        eps: f32,
        out: &mut CpuBuffer,
        out_first: usize,
    ) -> Result<()> {
        let width = rows.width;
        let x = &x.0[rows.first * width..][..rows.count * width];
        let out = &mut out.0[out_first * width..][..rows.count * width];
        each_row(&self.pool, out, width, 2 * rows.count * width, |row, out| {
            norm::rms_norm(self.kernels, &x[row * width..][..width], &weight.0, eps, out);
        });
        Ok(())
    }

    fn head_norm(&self, x: &mut CpuBuffer, count: usize, width: usize, eps: f32) -> Result<()> {
        each_row(&self.pool, &mut x.0[..count * width], width, 2 * count * width, |_, head| {
            norm::head_norm(self.kernels, head, eps);
        });
        Ok(())
    }

    fn rope(
        &self,
        x: &mut CpuBuffer,
        rows: Rows,
        rotary: Rotary,
        table: &CpuBuffer,
        table_first: usize,
    ) -> Result<()> {
        let table = &table.0[table_first * rotary.channels..];
        let x = &mut x.0[rows.first * rows.width..][..rows.count * rows.width];
        let work = 4 * rows.count * rotary.heads * rotary.channels;
        each_row(&self.pool, x, rows.width, work, |row, x| {
            rope::rotate(x, rotary, &table[row * rotary.channels..][..rotary.channels]);
        });
        Ok(())
    }

    fn attention(&self, op: &Attention<'_, Self>, out: &mut CpuBuffer) -> Result<()> {
        let width = op.heads * op.width;
        let out = &mut out.0[op.rows.start * width..op.rows.end * width];
        let most_entries = match &op.entries {
            Entries::None => 0,
            Entries::Visible { ratio, .. } => (op.start + op.rows.len()) / ratio,
            Entries::Selected { k, .. } => *k,
        };
        let work = 2 * out.len() * (op.window.min(op.start + op.rows.len()) + most_entries);
        let heads = self.heads_per_task(op.rows.len(), op.heads);
        let parts = op.heads / heads;
        each_row(&self.pool, out, heads * op.width, work, |item, out| {
            let (row, part) = (op.rows.start + item / parts, item % parts);
            let heads = part * heads..(part + 1) * heads;
            let read = ATTENTION
                .with_borrow_mut(|scratch| attention::attend(self.kernels, op, row, heads, scratch, out));
            if part == 0 {
                self.attention_rows.fetch_add(read as u64, Ordering::Relaxed);
            }
        });
        Ok(())
    }

    fn store(
        &self,
        x: &CpuBuffer,
        rows: Rows,
        arena: &mut CpuArena,
        to: PagedRows<'_>,
        first: usize,
    ) -> Result<()> {
        let x = &x.0[rows.first * rows.width..][..rows.count * rows.width];
        rows::store(arena, to, first, x.chunks_exact(rows.width));
        Ok(())
    }

    fn fetch(
        &self,
        arena: &CpuArena,
        from: PagedRows<'_>,
        first: usize,
        x: &mut CpuBuffer,
        rows: Rows,
    ) -> Result<()> {
        let x = &mut x.0[rows.first * rows.width..][..rows.count * rows.width];
        rows::fetch(self.kernels, arena, from, first..first + rows.count, x);
        Ok(())
    }

    fn compress(&self, op: &Compress<'_, Self>, arena: &mut CpuArena, out: &mut CpuBuffer) -> Result<()> {
        COMPRESS.with_borrow_mut(|scratch| compress::compress(op, arena, scratch, &mut out.0));
        Ok(())
    }

    fn select(&self, op: &Select<'_, Self>, chosen: &mut CpuIndices) -> Result<()> {
        let chosen = &mut chosen.0[op.rows.start * op.k..op.rows.end * op.k];
        let read = select::select(self.kernels, &self.pool, op, chosen);
        self.select_rows.fetch_add(read, Ordering::Relaxed);
        Ok(())
    }

    fn sqrt_softplus(&self, x: &mut CpuBuffer, len: usize) -> Result<()> {
        activation::sqrt_softplus(&mut x.0[..len]);
        Ok(())
    }

    fn swiglu(&self, gate: &mut CpuBuffer, up: &CpuBuffer, len: usize, limit: f32) -> Result<()> {
        self.kernels.gated(&mut gate.0[..len], &up.0[..len], limit);
        Ok(())
    }

    fn scale_rows(&self, x: &mut CpuBuffer, width: usize, factors: &[f32]) -> Result<()> {
        for (row, factor) in x.0.chunks_exact_mut(width).zip(factors) {
            row.iter_mut().for_each(|x| *x *= factor);
        }
        Ok(())
    }

    fn experts(&self, op: &Experts<'_, Self>, y: &mut CpuBuffer) -> Result<bool> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        experts::experts(self.kernels, &self.pool, op, &mut inside, &mut y.0);
        self.inside.lock().unwrap_or_else(PoisonError::into_inner).push(inside);
        Ok(true)
    }

    fn add(&self, x: &mut CpuBuffer, y: &CpuBuffer, len: usize) -> Result<()> {
        for (x, y) in x.0[..len].iter_mut().zip(&y.0[..len]) {
            *x += y;
        }
        Ok(())
    }

    fn hyper_mix(
        &self,
        streams: &CpuBuffer,
        rows: usize,
        shape: HyperShape,
        base: &CpuBuffer,
        scale: &CpuBuffer,
        mix: &mut CpuBuffer,
    ) -> Result<()> {
        let (mix_width, width) = ((2 + shape.streams) * shape.streams, shape.streams * shape.width);
        let work = rows * (width + 64 * shape.iterations * shape.streams * shape.streams);
        each_row(&self.pool, &mut mix.0[..rows * mix_width], mix_width, work, |row, mix| {
            hyper::mix(self.kernels, &streams.0[row * width..][..width], shape, &base.0, &scale.0, mix);
        });
        Ok(())
    }

    fn hyper_head(
        &self,
        streams: &CpuBuffer,
        rows: usize,
        shape: HyperShape,
        base: &CpuBuffer,
        scale: &CpuBuffer,
        mix: &mut CpuBuffer,
    ) -> Result<()> {
        let width = shape.streams * shape.width;
        for (row, mix) in mix.0[..rows * shape.streams].chunks_exact_mut(shape.streams).enumerate() {
            hyper::head_mix(self.kernels, &streams.0[row * width..][..width], shape, &base.0, &scale.0, mix);
        }
        Ok(())
    }

    fn hyper_pre(
        &self,
        streams: &CpuBuffer,
        rows: usize,
        shape: HyperShape,
        mix: &CpuBuffer,
        mix_width: usize,
        out: &mut CpuBuffer,
    ) -> Result<()> {
        let width = shape.streams * shape.width;
        each_row(&self.pool, &mut out.0[..rows * shape.width], shape.width, rows * width, |row, out| {
            let pre = &mix.0[row * mix_width..][..shape.streams];
            hyper::pre(&streams.0[row * width..][..width], pre, out);
        });
        Ok(())
    }

    fn hyper_post(
        &self,
        streams: &mut CpuBuffer,
        rows: usize,
        shape: HyperShape,
        mix: &CpuBuffer,
        y: &CpuBuffer,
    ) -> Result<()> {
        let (mix_width, width) = ((2 + shape.streams) * shape.streams, shape.streams * shape.width);
        let work = rows * width * shape.streams;
        each_row(&self.pool, &mut streams.0[..rows * width], width, work, |row, streams| {
            let mix = &mix.0[row * mix_width..][..mix_width];
            hyper::post(streams, shape, mix, &y.0[row * shape.width..][..shape.width]);
        });
        Ok(())
    }

    fn round_e4m3(&self, x: &mut CpuBuffer, rows: Rows, columns: Range<usize>, block: usize) -> Result<()> {
        rows_of(x, rows).for_each(|row| rounding::e4m3(&mut row[columns.clone()], block));
        Ok(())
    }

    fn round_hadamard_e2m1(&self, x: &mut CpuBuffer, rows: Rows, width: usize) -> Result<()> {
        for part in rows_of(x, rows).flat_map(|row| row.chunks_exact_mut(width)) {
            rounding::hadamard(part);
            rounding::e2m1(part);
        }
        Ok(())
    }
}

fn rows_of(x: &mut CpuBuffer, rows: Rows) -> std::slice::ChunksExactMut<'_, f32> {
    x.0[rows.first * rows.width..][..rows.count * rows.width].chunks_exact_mut(rows.width)
}

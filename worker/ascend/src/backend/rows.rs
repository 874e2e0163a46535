//! Rows of the caches: where they lie in the arena, and how they get there and back.
//!
//! Rows of one part lie at multiples of no one distance, so they are looked up in units: the largest number of bytes that
//! divides a row, a page and where the part begins. With rows that divide pages a unit is a row.

use belay_backend::{PagedRows, RowFormat};

use super::buffer::AscendArena;
use super::job::Job;
use crate::tensor::{DataType, Layout, View};
use crate::{Error, Result};

/// Type of a row's elements.
fn dtype(rows: &PagedRows<'_>) -> Result<DataType> {
    match rows.layout.format {
        RowFormat::F32 => Ok(DataType::F32),
        RowFormat::Bf16 => Ok(DataType::Bf16),
        RowFormat::Fp8Key { .. } | RowFormat::Fp8Index => Err(Error::Shape {
            operation: "cache",
            cause: "rows in FP8 are not kept on Ascend: choose f32 or bf16".to_owned(),
        }),
    }
}

/// `to[i, :]` = the i-th row of `wanted`, as f32.
pub(super) fn gather(
    job: &mut Job<'_>,
    arena: &AscendArena,
    from: PagedRows<'_>,
    wanted: impl Iterator<Item = usize>,
    to: &View,
) -> Result<()> {
    let dtype = dtype(&from)?;
    let row_bytes = from.layout.bytes();
    let unit = [row_bytes, from.offset, arena.page_bytes()].into_iter().fold(0, gcd);
    let units = row_bytes / unit;
    let mut index = Vec::new();
    for row in wanted {
        let run = from.run_from(row);
        let first = (run.page as usize * arena.page_bytes() + run.offset) / unit;
        index.extend((first..first + units).map(|unit| unit as i64));
    }
    if index.is_empty() {
        return Ok(());
    }
    let elements = unit / dtype.bytes();
    let all = Layout::contiguous(dtype, &[arena.region().len() / unit, elements])?;
    let all = View::new(arena.region().clone(), all)?;
    let index_view = job.indices(&index)?;
    let dims = [index.len(), elements];
    if dtype == DataType::F32 {
        return job.index_rows(&all, &index_view, &to.reshaped(&dims)?);
    }
    let rows = job.take(dtype, &dims)?;
    job.index_rows(&all, &index_view, &rows)?;
    job.cast(&rows, &to.reshaped(&dims)?)
}

/// Writes the rows of `x[count, width]` to rows `first ..` of `to`.
pub(super) fn store(
    job: &mut Job<'_>,
    x: &View,
    arena: &AscendArena,
    to: PagedRows<'_>,
    first: usize,
) -> Result<()> {
    let dtype = dtype(&to)?;
    let (count, width) = (x.layout().dims()[0] as usize, to.layout.width);
    for run in to.runs(first..first + count) {
        let dims = [run.rows.len(), width];
        let from = x.shaped(&dims)?.moved((run.rows.start - first) * width)?;
        let place = run.page as usize * arena.page_bytes() + run.offset;
        let layout = Layout::contiguous(dtype, &dims)?.at(place / dtype.bytes());
        job.copy(&from, &View::new(arena.region().clone(), layout)?)?;
    }
    Ok(())
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_divides_row_page_and_beginning() {
        let unit = |parts: [usize; 3]| parts.into_iter().fold(0, gcd);
        assert_eq!(unit([1024, 0, 4096]), 1024);
        assert_eq!(unit([1024, 256, 4096]), 256);
        assert_eq!(unit([192, 64, 640]), 64);
    }
}

//! The ranks of one process: each computes its own routes, results go back into route order.

use std::sync::Arc;

use belay_backend::{ExpertCompute, FabricError, Route};

/// Buffers of one exchange, reused.
#[derive(Debug, Default)]
pub(crate) struct RankScratch {
    routes: Vec<Route>,
    y: Vec<f32>,
}

/// Computes the routes `by_rank` (indices into `routes`) at their ranks and writes each result to its place in `y`.
pub(crate) fn compute_at(
    ranks: &[Arc<dyn ExpertCompute>],
    by_rank: &[Vec<u32>],
    layer: u32,
    hidden: usize,
    x: &[f32],
    routes: &[Route],
    y: &mut [f32],
    scratch: &mut RankScratch,
) -> Result<(), FabricError> {
    for (rank, picked) in ranks.iter().zip(by_rank) {
        if picked.is_empty() {
            continue;
        }
        if picked.len() == routes.len() {
            return rank.compute(layer, x, routes, y);
        }
        scratch.routes.clear();
        scratch.routes.extend(picked.iter().map(|&index| routes[index as usize]));
        scratch.y.clear();
        scratch.y.resize(picked.len() * hidden, 0.0);
        rank.compute(layer, x, &scratch.routes, &mut scratch.y)?;
        scatter(picked, hidden, &scratch.y, y);
    }
    Ok(())
}

/// `y[picked[i]] = rows[i]`.
pub(crate) fn scatter(picked: &[u32], hidden: usize, rows: &[f32], y: &mut [f32]) {
    for (&index, row) in picked.iter().zip(rows.chunks_exact(hidden)) {
        let start = index as usize * hidden;
        y[start..start + hidden].copy_from_slice(row);
    }
}

/// Refuses an exchange whose shapes disagree, before anything is indexed by them.
pub(crate) fn check_shapes(
    me: u32,
    hidden: usize,
    x: &[f32],
    routes: &[Route],
    y: &[f32],
) -> Result<(), FabricError> {
    let rows = x.len() / hidden;
    let wrong = |cause: String| Err(FabricError::Protocol { worker: me, cause });
    if x.len() != rows * hidden || y.len() != routes.len() * hidden {
        return wrong(format!(
            "exchange of {} input and {} output values for {} routes of {hidden} channels",
            x.len(),
            y.len(),
            routes.len()
        ));
    }
    match routes.iter().find(|route| route.row as usize >= rows) {
        Some(route) => wrong(format!("route names row {} of {rows}", route.row)),
        None => Ok(()),
    }
}

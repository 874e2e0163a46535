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
/// An error comes with the rank that failed; the ones before it are done.
pub(crate) fn compute_at(
    ranks: &[Arc<dyn ExpertCompute>],
    by_rank: &[Vec<u32>],
    layer: u32,
    hidden: usize,
    x: &[f32],
    routes: &[Route],
    y: &mut [f32],
    scratch: &mut RankScratch,
) -> Result<(), (usize, FabricError)> {
    for (number, (rank, picked)) in ranks.iter().zip(by_rank).enumerate() {
        if picked.is_empty() {
            continue;
        }
        let done = if picked.len() == routes.len() {
            rank.compute(layer, x, routes, y)
        } else {
            scratch.routes.clear();
            scratch.routes.extend(picked.iter().map(|&index| routes[index as usize]));
            let results = picked.len() * hidden;
            if scratch.y.len() < results {
                scratch.y.resize(results, 0.0);
            }
            let done = rank.compute(layer, x, &scratch.routes, &mut scratch.y[..results]);
            scatter(picked, hidden, &scratch.y[..results], y);
            done
        };
        done.map_err(|error| (number, error))?;
    }
    Ok(())
}

/// `y[picked[i]] = rows[i]`.
fn scatter(picked: &[u32], hidden: usize, rows: &[f32], y: &mut [f32]) {
    for (&index, row) in picked.iter().zip(rows.chunks_exact(hidden)) {
        let to = &mut y[index as usize * hidden..][..hidden];
        to.copy_from_slice(row);
    }
}

/// Refuses an exchange whose shapes disagree, or that names an expert beyond `experts`, before anything is indexed by
/// them.
pub(crate) fn check_shapes(
    me: u32,
    hidden: usize,
    x: &[f32],
    (layer, experts): (u32, usize),
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
    for route in routes {
        if route.row as usize >= rows {
            return wrong(format!("route names row {} of {rows}", route.row));
        }
        if route.expert as usize >= experts {
            return Err(FabricError::NotResident { layer, expert: route.expert });
        }
    }
    Ok(())
}

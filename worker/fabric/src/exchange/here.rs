//! What is computed at this worker's own ranks.

use std::time::Instant;

use belay_backend::FabricError;

use super::{Exchange, Scratch};
use crate::RowFormat;
use crate::assign::Exclusion;
use crate::ranks::compute_at;
use crate::shared::Current;

impl Exchange<'_> {
    /// Computes what was assigned to the ranks here.
    pub(super) fn compute(&mut self, current: &Current) {
        if self.s.assignment.local.iter().all(Vec::is_empty) {
            return;
        }
        self.adopt();
        let (format, hidden) = self.form();
        let Scratch { assignment, progress, ranks: scratch, rounded, .. } = &mut *self.s;
        if format != RowFormat::F32 && rounded.is_empty() {
            rounded.extend_from_slice(self.x);
            format.round(rounded, hidden);
        }
        let x = if format == RowFormat::F32 { self.x } else { rounded };
        let ranks = &current.placements.ranks;
        let local = &assignment.local;
        let outcome = compute_at(ranks, local, self.layer, hidden, x, self.routes, self.y, scratch);
        let done = match &outcome {
            Ok(()) => local.len(),
            Err((rank, _)) => *rank,
        };
        for &index in local[..done].iter().flatten() {
            format.round(&mut self.y[index as usize * hidden..][..hidden], hidden);
            progress.finish(index);
        }
        if let Err((rank, error)) = outcome {
            let me = self.shared.identity.worker;
            match error {
                FabricError::NotResident { expert, .. } => self.exclude(expert, me, Exclusion::Missing),
                _ => {
                    for at in 0..self.s.assignment.local[rank].len() {
                        let expert = self.expert(self.s.assignment.local[rank][at]);
                        self.exclude(expert, me, Exclusion::Failed);
                    }
                }
            }
            self.last = Some(error);
            self.again = true;
        }
    }

    /// Loads the orphans that were assigned to this worker itself.
    fn adopt(&mut self) {
        if self.s.assignment.adopt.is_empty() {
            return;
        }
        let (layer, me, adoption) = (self.layer, self.shared.identity.worker, &self.shared.adoption);
        let mut loaded = false;
        for (rank, expert) in std::mem::take(&mut self.s.assignment.adopt) {
            let adopted = adoption.adopt(rank, &[(layer, expert)], Instant::now());
            loaded |= adopted == Ok(true);
            if let Err(refused) = adopted {
                self.exclude(expert, me, Exclusion::Missing);
                let cause = format!("cannot load expert {expert} of layer {layer}: {}", refused.reason);
                self.last = Some(FabricError::Protocol { worker: me, cause });
            }
            if adoption.rank_of(layer, expert) != Some(rank) {
                let routes = self.routes;
                let local = &mut self.s.assignment.local[rank as usize];
                local.retain(|&index| routes[index as usize].expert != expert);
                self.again = true;
            }
        }
        if loaded {
            self.shared.refresh();
        }
    }
}

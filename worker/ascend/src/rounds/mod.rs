//! Rounds of the ranks of several workers, by HCCL: rows go from device to device.
//!
//! A round is four collectives. Everybody tells everybody how many routes and rows come (all-to-all), sends routes and rows
//! (all-to-all-v, twice), computes what has come, and sends the results back the same way (all-to-all-v, with an all-to-all
//! of what was missing). They are queued on a stream of their own, so that the model's work on a device does not wait for
//! those of others; events order the two.

mod parcel;
mod port;
mod sitting;

use std::sync::Arc;

use belay_backend::{Collective, DeviceExperts, FabricError, Seat, Sitting};

use self::sitting::Rank;
use crate::tensor::DataType;
use crate::{AscendBackend, Error, Result, RootInfo};

/// The NPUs of a worker's ranks.
pub struct Npus {
    ranks: Vec<Npu>,
    hidden: usize,
    /// Type of rows on their way.
    rows: DataType,
}

/// One of them, and the experts on it.
struct Npu {
    backend: Arc<AscendBackend>,
    experts: Arc<dyn DeviceExperts<AscendBackend>>,
}

impl Npus {
    /// `experts` are those of each rank, which are on its backend; rows have `hidden` channels, and travel as bf16 or as f32.
    ///
    /// # Errors
    /// [`Error::Absent`] for a CANN without the collectives that this needs.
    pub fn new(
        ranks: impl IntoIterator<Item = (Arc<AscendBackend>, Arc<dyn DeviceExperts<AscendBackend>>)>,
        hidden: usize,
        as_bf16: bool,
    ) -> Result<Self> {
        let ranks: Vec<Npu> = ranks.into_iter().map(|(backend, experts)| Npu { backend, experts }).collect();
        for npu in &ranks {
            let symbols = npu.backend.context().runtime().symbols();
            let needed = [
                ("HcclGetRootInfo", symbols.HcclGetRootInfo.is_some()),
                ("HcclAlltoAll", symbols.HcclAlltoAll.is_some()),
                ("HcclAlltoAllV", symbols.HcclAlltoAllV.is_some()),
            ];
            if let Some((symbol, _)) = needed.into_iter().find(|(_, is_there)| !is_there) {
                return Err(Error::Absent { symbol });
            }
        }
        let rows = if as_bf16 { DataType::Bf16 } else { DataType::F32 };
        Ok(Self { ranks, hidden, rows })
    }

    fn rank(&self, rank: u32) -> Result<&Npu, FabricError> {
        let none = || FabricError::Local(format!("this worker has no rank {rank}"));
        self.ranks.get(rank as usize).ok_or_else(none)
    }
}

impl Collective for Npus {
    fn root(&self) -> Result<Vec<u8>, FabricError> {
        let backend = &self.rank(0)?.backend;
        let make = || RootInfo::new(&backend.context().bind()?);
        Ok(make().map_err(|error| told(backend, &error))?.as_bytes().to_vec())
    }

    fn join(&self, rank: u32, seat: &Seat) -> Result<Box<dyn Sitting>, FabricError> {
        let npu = self.rank(rank)?;
        let joined = Rank::join(&npu.backend, &npu.experts, seat, self.hidden, self.rows);
        Ok(Box::new(joined.map_err(|error| told(&npu.backend, &error))?))
    }
}

/// The error of a device, of which the backend takes note.
fn told(backend: &AscendBackend, error: &Error) -> FabricError {
    backend.note(error);
    FabricError::Local(format!("device {}: {error}", backend.context().device().index()))
}

//! The experts of this worker's ranks: what is resident, loading within the room there is, and orphans of others.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use belay_backend::{Backend, DeviceExperts, ExpertCompute};
use belay_fabric::Adopter;
use belay_model::{Checkpoint, ExpertBank, Numerics};
use belay_proto::admin::{RankExperts, RankStatus};

use crate::devices::Devices;
use crate::loader::LoadError;

/// A copy: (layer, expert).
pub type Copy = (u32, u32);

/// The experts of this worker's ranks.
pub struct Ranks<B: Backend> {
    /// Number of the first one within the group.
    first: u32,
    banks: Vec<Arc<ExpertBank<B>>>,
    checkpoint: Arc<Checkpoint>,
    /// Bytes of all banks together.
    limit: Option<u64>,
    /// Locked for moments only: a copy that is needed now must not wait for a long load of others.
    books: Mutex<Vec<Books>>,
}

/// Why the copies of one rank are there.
#[derive(Clone, Debug, Default)]
struct Books {
    /// The placement in force or the target gives them to the rank.
    named: BTreeSet<Copy>,
    /// Loaded for ranks that are lost.
    adopted: BTreeSet<Copy>,
    /// Being loaded: they have their room already.
    claimed: BTreeSet<Copy>,
}

impl<B: Backend> Ranks<B> {
    /// Ranks of worker `worker`, with nothing loaded. `limit`: bytes of experts that they may hold together.
    #[must_use]
    pub fn new(
        devices: &Devices<B>,
        checkpoint: &Arc<Checkpoint>,
        worker: u32,
        count: u32,
        limit: Option<u64>,
    ) -> Self {
        let bank = |rank| {
            let device = Arc::clone(devices.of_rank(rank));
            Arc::new(ExpertBank::new(device, Arc::clone(checkpoint), Numerics::EXACT))
        };
        Self {
            first: worker * count,
            banks: (0..count).map(bank).collect(),
            checkpoint: Arc::clone(checkpoint),
            limit,
            books: Mutex::new(vec![Books::default(); count as usize]),
        }
    }

    fn books(&self) -> MutexGuard<'_, Vec<Books>> {
        // sets of names are as sound after a panic as before
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of experts that may be held; `None` if nothing bounds them.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Bytes of experts held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.banks.iter().map(|bank| bank.bytes()).sum()
    }

    /// Bytes that are not resident yet of `wanted`, given by own rank.
    #[must_use]
    pub fn missing_bytes(&self, wanted: &[Vec<Copy>]) -> u64 {
        let missing = self.banks.iter().zip(wanted).flat_map(|(bank, copies)| absent(bank, copies));
        missing.map(|copy| self.bytes_of(copy)).sum()
    }

    fn bytes_of(&self, (layer, expert): Copy) -> u64 {
        self.checkpoint.expert_bytes(layer, expert)
    }

    /// What each rank holds.
    #[must_use]
    pub fn resident(&self) -> Vec<Vec<Copy>> {
        self.banks.iter().map(|bank| bank.resident()).collect()
    }

    /// Says which copies (by own rank) placements give to the ranks: they are not let go with adopted ones.
    pub fn name(&self, copies: &[Vec<Copy>]) {
        for (books, copies) in self.books().iter_mut().zip(copies) {
            books.named = copies.iter().copied().collect();
        }
    }

    /// Loads those of `wanted` (by own rank) that are not resident, until `stop` says so; `progress` gets the bytes done.
    ///
    /// # Errors
    /// [`LoadError::NoRoom`] before anything is loaded, or a tensor that can't be read.
    pub fn load(
        &self,
        wanted: &[Vec<Copy>],
        stop: &dyn Fn() -> bool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), LoadError> {
        let all: Vec<Vec<Copy>> =
            self.banks.iter().zip(wanted).map(|(bank, copies)| absent(bank, copies)).collect();
        self.claim(&all)?;
        let mut done = 0;
        let mut outcome = Ok(());
        'ranks: for (bank, copies) in self.banks.iter().zip(&all) {
            for &copy in copies {
                if stop() {
                    break 'ranks;
                }
                if let Err(error) = bank.load([copy], &mut |bytes, _| progress(done + bytes)) {
                    outcome = Err(error.into());
                    break 'ranks;
                }
                done += self.bytes_of(copy);
            }
        }
        self.unclaim(&all);
        outcome
    }

    /// Takes the room for copies that are about to be loaded.
    fn claim(&self, copies: &[Vec<Copy>]) -> Result<(), LoadError> {
        let mut books = self.books();
        if let Some(allowed) = self.limit {
            let claimed = self.banks.iter().zip(books.iter()).flat_map(|(bank, books)| {
                books.claimed.iter().copied().filter(|&(layer, expert)| !bank.holds(layer, expert))
            });
            let held = self.bytes() + claimed.map(|copy| self.bytes_of(copy)).sum::<u64>();
            let fresh = copies.iter().zip(books.iter()).flat_map(|(copies, books)| {
                copies.iter().copied().filter(|copy| !books.claimed.contains(copy))
            });
            let needed = fresh.map(|copy| self.bytes_of(copy)).sum::<u64>();
            if held + needed > allowed {
                return Err(LoadError::NoRoom { needed, held, allowed });
            }
        }
        for (books, copies) in books.iter_mut().zip(copies) {
            books.claimed.extend(copies);
        }
        Ok(())
    }

    fn unclaim(&self, copies: &[Vec<Copy>]) {
        for (books, copies) in self.books().iter_mut().zip(copies) {
            copies.iter().for_each(|copy| {
                books.claimed.remove(copy);
            });
        }
    }

    /// Drops those of `copies` (by own rank) that are neither named nor adopted.
    pub fn unload(&self, copies: &[Vec<Copy>]) {
        for ((bank, copies), books) in self.banks.iter().zip(copies).zip(self.books().iter()) {
            bank.unload(copies.iter().copied().filter(|copy| books.may_go(copy)));
        }
    }

    /// Compute of each rank, in rank order.
    #[must_use]
    pub fn compute(&self) -> Vec<Arc<dyn ExpertCompute>>
    where
        B: 'static,
    {
        self.banks.iter().map(|bank| Arc::clone(bank) as Arc<dyn ExpertCompute>).collect()
    }

    /// The experts of each rank with their device, in rank order.
    #[must_use]
    pub fn on_devices(&self, devices: &Devices<B>) -> Vec<(Arc<B>, Arc<dyn DeviceExperts<B>>)>
    where
        B: 'static,
    {
        let of = |(rank, bank): (u32, &Arc<ExpertBank<B>>)| {
            (Arc::clone(devices.of_rank(rank)), Arc::clone(bank) as Arc<dyn DeviceExperts<B>>)
        };
        (0..).zip(&self.banks).map(of).collect()
    }

    /// How much each rank holds.
    #[must_use]
    pub fn status(&self) -> Vec<RankStatus> {
        (self.first..)
            .zip(&self.banks)
            .map(|(rank, bank)| RankStatus {
                rank,
                experts: bank.resident().len() as u32,
                expert_bytes: bank.bytes(),
            })
            .collect()
    }

    /// What each rank holds, as bits.
    #[must_use]
    pub fn bits(&self) -> Vec<RankExperts> {
        let card = self.checkpoint.card();
        let empty = vec![0u8; (card.experts as usize).div_ceil(8)];
        let of = |(rank, bank): (u32, &Arc<ExpertBank<B>>)| {
            let mut layers = vec![empty.clone(); card.layers as usize];
            for (layer, expert) in bank.resident() {
                layers[layer as usize][expert as usize / 8] |= 1 << (expert % 8);
            }
            RankExperts { rank, layers }
        };
        (self.first..).zip(&self.banks).map(of).collect()
    }
}

/// What is asked of ranks by those who don't know the backend.
pub trait RankView: Send + Sync {
    /// What each rank holds, as bits.
    fn bits(&self) -> Vec<RankExperts>;
    /// How much each rank holds.
    fn status(&self) -> Vec<RankStatus>;
    /// Bytes of experts that may be held.
    fn limit(&self) -> Option<u64>;
}

impl<B: Backend + 'static> RankView for Ranks<B> {
    fn bits(&self) -> Vec<RankExperts> {
        Self::bits(self)
    }

    fn status(&self) -> Vec<RankStatus> {
        Self::status(self)
    }

    fn limit(&self) -> Option<u64> {
        self.limit
    }
}

impl<B: Backend + 'static> Adopter for Ranks<B> {
    fn adopt(&self, rank: u32, experts: &[Copy]) -> Result<(), String> {
        let Some(bank) = self.banks.get(rank as usize) else {
            return Err(format!("this worker has no rank {rank}"));
        };
        // named as adopted before they are loaded: whoever drops copies meanwhile leaves them
        let fresh: Vec<Copy> = match self.books().get_mut(rank as usize) {
            Some(books) => {
                let Books { named, adopted, .. } = books;
                let strange = experts.iter().filter(|copy| !named.contains(copy)).copied();
                strange.filter(|copy| adopted.insert(*copy)).collect()
            }
            None => Vec::new(),
        };
        let mut wanted = vec![Vec::new(); self.banks.len()];
        wanted[rank as usize] = absent(bank, experts);
        let (count, bytes) = (wanted[rank as usize].len(), self.missing_bytes(&wanted));
        if let Err(error) = self.load(&wanted, &|| false, &mut |_| {}) {
            self.release(&fresh);
            return Err(error.to_string());
        }
        if count > 0 {
            tracing::info!(rank = self.first + rank, experts = count, bytes, "adopted experts");
        }
        Ok(())
    }

    fn release(&self, experts: &[Copy]) {
        let mut books = self.books();
        for (bank, books) in self.banks.iter().zip(books.iter_mut()) {
            let given_up: Vec<Copy> =
                experts.iter().copied().filter(|copy| books.adopted.remove(copy)).collect();
            let gone: Vec<Copy> = given_up.into_iter().filter(|copy| books.may_go(copy)).collect();
            if !gone.is_empty() {
                tracing::info!(experts = gone.len(), "released adopted experts");
            }
            bank.unload(gone);
        }
    }
}

impl Books {
    fn may_go(&self, copy: &Copy) -> bool {
        !self.named.contains(copy) && !self.adopted.contains(copy) && !self.claimed.contains(copy)
    }
}

fn absent<B: Backend>(bank: &ExpertBank<B>, copies: &[Copy]) -> Vec<Copy> {
    copies.iter().copied().filter(|&(layer, expert)| !bank.holds(layer, expert)).collect()
}

//! Experts: the shared one, and the bank of routed ones that are resident here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use belay_backend::{
    Backend, BackendError, DeviceExperts, ExpertCompute, ExpertRows, Experts, Fabric, FabricError, Precision,
    Result, Route,
};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::linear::{Linear, Loader, Progress};
use crate::numerics::Numerics;

/// One SwiGLU expert.
pub(crate) struct Expert<B: Backend> {
    w1: Linear<B>,
    w3: Linear<B>,
    w2: Linear<B>,
    inner: usize,
    limit: f32,
}

/// Working buffers of an expert call.
pub(crate) struct ExpertBuffers<'a, B: Backend> {
    pub(crate) gate: &'a mut B::Buffer,
    pub(crate) up: &'a mut B::Buffer,
    pub(crate) rounded: &'a mut B::Buffer,
}

impl<B: Backend> Expert<B> {
    /// The shared expert; `name` is `layers.N.ffn.shared_experts`.
    pub(crate) fn load_shared(loader: &mut Loader<'_, B>, name: &str) -> Result<Self, CheckpointError> {
        let config = loader.checkpoint.config();
        let (inner, width, limit) = (config.expert_width, config.hidden_size, config.swiglu_limit);
        Ok(Self {
            w1: loader.linear(&format!("{name}.w1"), inner, width)?,
            w3: loader.linear(&format!("{name}.w3"), inner, width)?,
            w2: loader.linear(&format!("{name}.w2"), width, inner)?,
            inner,
            limit,
        })
    }

    fn load_routed(loader: &mut Loader<'_, B>, layer: u32, expert: u32) -> Result<Self, CheckpointError> {
        let config = loader.checkpoint.config();
        let prefix = crate::checkpoint::layout::expert_prefix(config, layer, expert);
        let [w1, w3, w2] = loader.checkpoint.expert(layer, expert)?;
        let (inner, limit) = (config.expert_width, config.swiglu_limit);
        let mut place =
            |name: &str, stored| loader.place(&format!("{prefix}.{name}.weight"), stored, Precision::Expert);
        Ok(Self { w1: place("w1", w1)?, w3: place("w3", w3)?, w2: place("w2", w2)?, inner, limit })
    }

    fn with<'a>(&'a self, rows: &'a [(u32, Route)]) -> ExpertRows<'a, B> {
        ExpertRows { w1: self.w1.matrix(), w3: self.w3.matrix(), w2: self.w2.matrix(), rows }
    }

    /// y = factor · w2(silu(min(w1 x, limit)) · clamp(w3 x)), row by row. The published code applies the factor before
    /// it rounds the inner activations, which matters only if they are rounded.
    pub(crate) fn forward(
        &self,
        backend: &B,
        round: bool,
        x: &B::Buffer,
        rows: usize,
        factors: Option<&[f32]>,
        y: &mut B::Buffer,
        width: usize,
        t: ExpertBuffers<'_, B>,
    ) -> Result<()> {
        self.w1.apply_rounded(backend, round, x, rows, t.gate, t.rounded)?;
        self.w3.apply_rounded(backend, round, x, rows, t.up, t.rounded)?;
        backend.swiglu(t.gate, t.up, rows * self.inner, self.limit)?;
        if let (true, Some(factors)) = (round, factors) {
            backend.scale_rows(t.gate, self.inner, factors)?;
        }
        self.w2.apply_rounded(backend, round, t.gate, rows, y, t.rounded)?;
        match factors {
            Some(factors) if !round => backend.scale_rows(y, width, factors),
            _ => Ok(()),
        }
    }
}

/// The routed experts that are resident in this process, for any of its ranks.
///
/// Experts come and go while others are computed: a placement change loads new copies, then drops old ones.
pub struct ExpertBank<B: Backend> {
    backend: Arc<B>,
    checkpoint: Arc<Checkpoint>,
    numerics: Numerics,
    /// By layer, then by expert.
    resident: Vec<RwLock<LayerExperts<B>>>,
    /// Buffers that no call uses at the moment.
    spare: Mutex<Vec<BankScratch<B>>>,
    spare_rows: Mutex<Vec<HostRows<B>>>,
}

/// The copies of one layer, by expert.
type LayerExperts<B> = Vec<Option<Arc<Expert<B>>>>;

/// Device buffers of one call.
struct BankScratch<B: Backend> {
    rows: usize,
    /// [routes of one expert, D]
    gathered: B::Buffer,
    y: B::Buffer,
    /// [routes of one expert, I]
    gate: B::Buffer,
    up: B::Buffer,
    /// [routes of one expert, widest input]
    rounded: B::Buffer,
}

/// Device buffers of a call whose rows are the host's.
struct HostRows<B: Backend> {
    x_rows: usize,
    y_rows: usize,
    /// [rows of the asker, D]
    x: B::Buffer,
    /// [routes, D]
    y: B::Buffer,
}

impl<B: Backend> ExpertBank<B> {
    /// An empty bank.
    pub fn new(backend: Arc<B>, checkpoint: Arc<Checkpoint>, numerics: Numerics) -> Self {
        let config = checkpoint.config();
        let layer = || RwLock::new((0..config.experts).map(|_| None).collect());
        let resident = config.layers.iter().map(|_| layer()).collect();
        let (spare, spare_rows) = (Mutex::default(), Mutex::default());
        Self { backend, checkpoint, numerics, resident, spare, spare_rows }
    }

    /// Loads the (layer, expert) pairs that are not resident yet; the pages of others are never touched.
    ///
    /// # Errors
    /// The first weight that cannot be taken; what was loaded before stays.
    pub fn load(
        &self,
        experts: impl IntoIterator<Item = (u32, u32)>,
        progress: Progress<'_>,
    ) -> Result<(), CheckpointError> {
        let absent: Vec<_> =
            experts.into_iter().filter(|&(layer, expert)| !self.holds(layer, expert)).collect();
        let total = absent.iter().map(|&(layer, expert)| self.checkpoint.expert_bytes(layer, expert)).sum();
        let mut loader =
            Loader { backend: &*self.backend, checkpoint: &self.checkpoint, total, done: 0, progress };
        for (layer, expert) in absent {
            let loaded = Arc::new(Expert::load_routed(&mut loader, layer, expert)?);
            if let Some(layer) = self.resident.get(layer as usize) {
                layer.write().unwrap_or_else(PoisonError::into_inner)[expert as usize] = Some(loaded);
            }
        }
        Ok(())
    }

    /// Drops copies. Calls that use them finish first.
    pub fn unload(&self, experts: impl IntoIterator<Item = (u32, u32)>) {
        for (layer, expert) in experts {
            if let Some(layer) = self.resident.get(layer as usize)
                && let Some(slot) =
                    layer.write().unwrap_or_else(PoisonError::into_inner).get_mut(expert as usize)
            {
                *slot = None;
            }
        }
    }

    /// Whether a copy is resident.
    pub fn holds(&self, layer: u32, expert: u32) -> bool {
        let Some(experts) = self.resident.get(layer as usize) else { return false };
        let experts = experts.read().unwrap_or_else(PoisonError::into_inner);
        experts.get(expert as usize).is_some_and(Option::is_some)
    }

    /// All resident (layer, expert) pairs, ascending.
    pub fn resident(&self) -> Vec<(u32, u32)> {
        let mut pairs = Vec::new();
        for (layer, experts) in self.resident.iter().enumerate() {
            let experts = experts.read().unwrap_or_else(PoisonError::into_inner);
            let held = experts.iter().enumerate().filter(|(_, slot)| slot.is_some());
            pairs.extend(held.map(|(expert, _)| (layer as u32, expert as u32)));
        }
        pairs
    }

    /// Bytes of all resident copies, as stored.
    pub fn bytes(&self) -> u64 {
        self.resident().into_iter().map(|(layer, expert)| self.checkpoint.expert_bytes(layer, expert)).sum()
    }

    fn get(&self, layer: u32, expert: u32) -> Option<Arc<Expert<B>>> {
        let experts = self.resident.get(layer as usize)?.read().unwrap_or_else(PoisonError::into_inner);
        experts.get(expert as usize)?.clone()
    }

    fn take_scratch(&self, rows: usize) -> Result<BankScratch<B>> {
        let spare = lock(&self.spare).pop();
        match spare {
            Some(scratch) if scratch.rows >= rows => Ok(scratch),
            _ => self.new_scratch(rows.next_power_of_two()),
        }
    }

    fn new_scratch(&self, rows: usize) -> Result<BankScratch<B>> {
        let config = self.checkpoint.config();
        let (width, inner) = (config.hidden_size, config.expert_width);
        let alloc = |width: usize| self.backend.alloc(rows * width);
        Ok(BankScratch {
            rows,
            gathered: alloc(width)?,
            y: alloc(width)?,
            gate: alloc(inner)?,
            up: alloc(inner)?,
            rounded: alloc(width.max(inner))?,
        })
    }

    fn take_rows(&self, x_rows: usize, y_rows: usize) -> Result<HostRows<B>> {
        let spare = lock(&self.spare_rows).pop();
        match spare {
            Some(rows) if rows.x_rows >= x_rows && rows.y_rows >= y_rows => Ok(rows),
            _ => {
                let (x_rows, y_rows) = (x_rows.next_power_of_two(), y_rows.next_power_of_two());
                let alloc = |rows| self.backend.alloc(rows * self.checkpoint.config().hidden_size);
                Ok(HostRows { x_rows, y_rows, x: alloc(x_rows)?, y: alloc(y_rows)? })
            }
        }
    }

    /// Computes routes that are sorted by expert, in one operation where the backend has it.
    fn compute_sorted(
        &self,
        layer: u32,
        x: &B::Buffer,
        routes: &[(u32, Route)],
        y: &mut B::Buffer,
    ) -> Result<(), FabricError> {
        let groups: Vec<&[(u32, Route)]> = routes.chunk_by(|a, b| a.1.expert == b.1.expert).collect();
        let weights = groups.iter().map(|group| {
            let expert = group[0].1.expert;
            self.get(layer, expert).ok_or(FabricError::NotResident { layer, expert })
        });
        let weights: Vec<Arc<Expert<B>>> = weights.collect::<Result<_, _>>()?;
        let Some(first) = weights.first() else { return Ok(()) };
        // the roundings of the published code come between the parts
        if !self.numerics.activations {
            let (width, inner, limit) = (self.checkpoint.config().hidden_size, first.inner, first.limit);
            let with = weights.iter().zip(&groups);
            let experts: Vec<ExpertRows<'_, B>> = with.map(|(expert, rows)| expert.with(rows)).collect();
            let op = Experts { x, width, inner, limit, experts: &experts };
            if self.backend.experts(&op, y).map_err(local)? {
                return Ok(());
            }
        }
        let most = groups.iter().map(|group| group.len()).max().unwrap_or(0);
        let mut scratch = self.take_scratch(most).map_err(local)?;
        let mut outcome = Ok(());
        for (weights, group) in weights.iter().zip(groups) {
            outcome = self.compute_one(weights, x, group, y, &mut scratch);
            if outcome.is_err() {
                break;
            }
        }
        lock(&self.spare).push(scratch);
        outcome.map_err(local)
    }

    /// Computes the routes of one expert.
    fn compute_one(
        &self,
        weights: &Expert<B>,
        x: &B::Buffer,
        group: &[(u32, Route)],
        y: &mut B::Buffer,
        s: &mut BankScratch<B>,
    ) -> Result<()> {
        let width = self.checkpoint.config().hidden_size;
        let backend = &*self.backend;
        let rows: Vec<u32> = group.iter().map(|(_, route)| route.row).collect();
        let factors: Vec<f32> = group.iter().map(|(_, route)| route.weight).collect();
        backend.gather(x, width, &rows, &mut s.gathered)?;
        let buffers = ExpertBuffers { gate: &mut s.gate, up: &mut s.up, rounded: &mut s.rounded };
        let round = self.numerics.activations;
        weights.forward(backend, round, &s.gathered, rows.len(), Some(&factors), &mut s.y, width, buffers)?;
        let mut first = 0;
        for run in group.chunk_by(|a, b| a.0 + 1 == b.0) {
            let range = first * width..(first + run.len()) * width;
            backend.copy(&s.y, range, y, run[0].0 as usize * width)?;
            first += run.len();
        }
        Ok(())
    }
}

impl<B: Backend> DeviceExperts<B> for ExpertBank<B> {
    fn compute_on_device(
        &self,
        layer: u32,
        x: &B::Buffer,
        routes: &[(u32, Route)],
        y: &mut B::Buffer,
    ) -> Result<(), FabricError> {
        let mut sorted = routes.to_vec();
        sorted.sort_by_key(|&(place, route)| (route.expert, place));
        self.compute_sorted(layer, x, &sorted, y)
    }
}

impl<B: Backend> ExpertCompute for ExpertBank<B> {
    fn compute(&self, layer: u32, x: &[f32], routes: &[Route], y: &mut [f32]) -> Result<(), FabricError> {
        let placed: Vec<(u32, Route)> = (0..).zip(routes.iter().copied()).collect();
        let x_rows = x.len() / self.checkpoint.config().hidden_size;
        let mut rows = self.take_rows(x_rows, routes.len()).map_err(local)?;
        let mut run = || {
            self.backend.write(&mut rows.x, 0, x).map_err(local)?;
            self.compute_on_device(layer, &rows.x, &placed, &mut rows.y)?;
            self.backend.read(&rows.y, 0, y).map_err(local)
        };
        let done = run();
        lock(&self.spare_rows).push(rows);
        done
    }

    fn holds(&self, layer: u32, expert: u32) -> bool {
        Self::holds(self, layer, expert)
    }
}

/// What these locks guard is as sound after a panic as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A failure of the device under this process.
fn local(cause: BackendError) -> FabricError {
    FabricError::Local(cause.to_string())
}

/// The fabric of a process that holds every expert itself.
pub struct LocalExperts(Arc<dyn ExpertCompute>);

impl LocalExperts {
    /// Computes everything with `experts`.
    pub fn new(experts: Arc<dyn ExpertCompute>) -> Self {
        Self(experts)
    }
}

impl Fabric for LocalExperts {
    fn exchange(
        &self,
        layer: u32,
        x: &[f32],
        routes: &[Route],
        y: &mut [f32],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(), FabricError> {
        self.0.compute(layer, x, routes, y)?;
        meanwhile();
        Ok(())
    }
}

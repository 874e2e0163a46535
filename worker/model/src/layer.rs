//! One layer: attention and experts, each between hyper-connections.

use belay_backend::{Backend, Fabric, Result, Rows};

use crate::attention::Attention;
use crate::checkpoint::{CheckpointError, layout};
use crate::config::Config;
use crate::error::ForwardError;
use crate::experts::{Expert, ExpertBuffers};
use crate::hyper_connection::HyperConnection;
use crate::linear::Loader;
use crate::router::Router;
use crate::scratch::{HostTemporaries, Temporaries};
use crate::step::{Segment, Step};
use crate::trace::Trace;

pub(crate) struct Layer<B: Backend> {
    attention_mixer: HyperConnection<B>,
    attention_norm: B::Buffer,
    attention: Attention<B>,
    ffn_mixer: HyperConnection<B>,
    ffn_norm: B::Buffer,
    router: Router<B>,
    shared: Expert<B>,
    index: usize,
    width: usize,
    experts: usize,
    norm_eps: f32,
}

impl<B: Backend> Layer<B> {
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        config: &Config,
        index: usize,
    ) -> Result<Self, CheckpointError> {
        let name = layout::layer_prefix(config, index);
        Ok(Self {
            attention_mixer: HyperConnection::load(loader, config, &format!("{name}.hc_attn"))?,
            attention_norm: loader.vector(&format!("{name}.attn_norm.weight"), config.hidden_size)?,
            attention: Attention::load(loader, config, &format!("{name}.attn"), index)?,
            ffn_mixer: HyperConnection::load(loader, config, &format!("{name}.hc_ffn"))?,
            ffn_norm: loader.vector(&format!("{name}.ffn_norm.weight"), config.hidden_size)?,
            router: Router::load(loader, config, &format!("{name}.ffn.gate"), config.routers[index])?,
            shared: Expert::load_shared(loader, &format!("{name}.ffn.shared_experts"))?,
            index,
            width: config.hidden_size,
            experts: config.experts,
            norm_eps: config.norm_eps,
        })
    }

    /// X ← layer(X), for all rows of the step.
    pub(crate) fn forward(
        &self,
        backend: &B,
        step: &Step,
        t: &mut Temporaries<B>,
        host: &mut HostTemporaries,
        arena: &mut B::Arena,
        segments: &[Segment<'_>],
        fabric: &dyn Fabric,
        trace: &mut dyn Trace,
    ) -> Result<(), ForwardError> {
        self.attend(backend, step, t, host, arena, segments, trace)?;
        self.mix(backend, step, t, host, fabric, || Ok(()))
    }

    /// The layer as far as it is computed here: attention, then the experts' input and who gets it.
    pub(crate) fn attend(
        &self,
        backend: &B,
        step: &Step,
        t: &mut Temporaries<B>,
        host: &mut HostTemporaries,
        arena: &mut B::Arena,
        segments: &[Segment<'_>],
        trace: &mut dyn Trace,
    ) -> Result<(), ForwardError> {
        let rows = step.rows();
        self.attention_mixer.read(backend, t, rows)?;
        self.normalise(backend, t, rows, &self.attention_norm)?;
        self.attention.forward(backend, step, t, arena, segments, self.index, trace)?;
        self.attention_mixer.write(backend, t, rows)?;

        self.ffn_mixer.read(backend, t, rows)?;
        self.normalise(backend, t, rows, &self.ffn_norm)?;
        self.route(backend, step, t, host, trace)
    }

    /// The rest of the layer, behind [`Self::attend`]: the experts, wherever they are. `meanwhile` is done while others
    /// compute.
    pub(crate) fn mix(
        &self,
        backend: &B,
        step: &Step,
        t: &mut Temporaries<B>,
        host: &mut HostTemporaries,
        fabric: &dyn Fabric,
        meanwhile: impl FnOnce() -> Result<(), ForwardError>,
    ) -> Result<(), ForwardError> {
        self.mixture(backend, step, t, host, fabric, meanwhile)?;
        Ok(self.ffn_mixer.write(backend, t, step.rows())?)
    }

    /// Puts the rows' keys into the segments' windows and computes nothing else: all that rows whose output nobody
    /// wants leave behind in a layer without a compressor.
    pub(crate) fn feed_keys(
        &self,
        backend: &B,
        step: &Step,
        t: &mut Temporaries<B>,
        arena: &mut B::Arena,
        segments: &[Segment<'_>],
    ) -> Result<()> {
        self.attention_mixer.read(backend, t, step.rows())?;
        self.normalise(backend, t, step.rows(), &self.attention_norm)?;
        self.attention.feed_keys(backend, step, t, arena, segments, self.index)
    }

    /// x = RMS(mean).
    fn normalise(&self, backend: &B, t: &mut Temporaries<B>, rows: usize, weight: &B::Buffer) -> Result<()> {
        let all = Rows { first: 0, count: rows, width: self.width };
        backend.rms_norm(&t.mean, all, weight, self.norm_eps, &mut t.x, 0)
    }

    /// The experts of each row.
    fn route(
        &self,
        backend: &B,
        step: &Step,
        t: &mut Temporaries<B>,
        host: &mut HostTemporaries,
        trace: &mut dyn Trace,
    ) -> Result<(), ForwardError> {
        let rows = step.rows();
        self.router.gate.apply(backend, &t.x, rows, &mut t.scores)?;
        backend.sqrt_softplus(&mut t.scores, rows * self.experts)?;
        host.scores.resize(rows * self.experts, 0.0);
        host.x.resize(rows * self.width, 0.0);
        backend.read(&t.scores, 0, &mut host.scores)?;
        backend.read(&t.x, 0, &mut host.x)?;
        self.router.route(&host.scores, &step.ids, &mut host.routes);
        trace.routes(self.index, &host.routes);
        Ok(())
    }

    /// y = Σ over a row's experts, ascending, + shared expert.
    fn mixture(
        &self,
        backend: &B,
        step: &Step,
        t: &mut Temporaries<B>,
        host: &mut HostTemporaries,
        fabric: &dyn Fabric,
        meanwhile: impl FnOnce() -> Result<(), ForwardError>,
    ) -> Result<(), ForwardError> {
        let rows = step.rows();
        host.outputs.resize(host.routes.len() * self.width, 0.0);
        let layer = self.index as u32;
        let buffers = ExpertBuffers { gate: &mut t.gate, up: &mut t.up, rounded: &mut t.rounded };
        let (x, shared, round) = (&t.x, &mut t.shared, step.numerics.activations);
        // while other workers compute the routed experts
        let mut work = Some(move || {
            self.shared.forward(backend, round, x, rows, None, shared, self.width, buffers)?;
            meanwhile()
        });
        let mut done = Ok(());
        fabric
            .exchange(layer, &host.x, &host.routes, &mut host.outputs, &mut || {
                if let Some(work) = work.take() {
                    done = work();
                }
            })
            .map_err(|cause| ForwardError::Fabric { layer, cause })?;
        done?;
        combine(host, rows, self.width);

        backend.write(&mut t.y, 0, &host.sum)?;
        backend.add(&mut t.y, &t.shared, rows * self.width)?;
        Ok(())
    }
}

/// Sums each row's weighted outputs in the order of the routes: by row, experts ascending. The same order for any
/// number of ranks is what makes their results equal.
fn combine(host: &mut HostTemporaries, rows: usize, width: usize) {
    host.sum.clear();
    host.sum.resize(rows * width, 0.0);
    for (route, output) in host.routes.iter().zip(host.outputs.chunks_exact(width)) {
        let sum = &mut host.sum[route.row as usize * width..][..width];
        for (sum, value) in sum.iter_mut().zip(output) {
            *sum += value;
        }
    }
}

//! Every temporary of a step, allocated once and grown when a step has more rows than any before.

use belay_backend::{Backend, Result, Route};

use crate::config::Config;

/// Working memory of one caller of the forward. Reuse it from step to step: then nothing is allocated on the device.
pub struct Scratch<B: Backend> {
    /// One for each half of a step.
    rooms: Vec<Room<B>>,
}

impl<B: Backend> Default for Scratch<B> {
    fn default() -> Self {
        Self { rooms: Vec::new() }
    }
}

impl<B: Backend> Scratch<B> {
    pub(crate) fn rooms(&mut self, count: usize) -> &mut [Room<B>] {
        if self.rooms.len() < count {
            self.rooms.resize_with(count, Room::default);
        }
        &mut self.rooms[..count]
    }
}

/// Working memory of rows that are computed together.
pub(crate) struct Room<B: Backend> {
    device: Option<Temporaries<B>>,
    host: HostTemporaries,
}

impl<B: Backend> Default for Room<B> {
    fn default() -> Self {
        Self { device: None, host: HostTemporaries::default() }
    }
}

/// Device buffers; T = rows of the step. Comments give shapes.
pub(crate) struct Temporaries<B: Backend> {
    rows: usize,
    /// [T, M, D]
    pub(crate) streams: B::Buffer,
    /// [T, (2 + M) M]
    pub(crate) mix: B::Buffer,
    /// [T, D] weighted mean of the streams
    pub(crate) mean: B::Buffer,
    /// [T, D] a block's input
    pub(crate) x: B::Buffer,
    /// [T, D] a block's output
    pub(crate) y: B::Buffer,
    /// [T, widest linear input] rounded copy of a linear's input
    pub(crate) rounded: B::Buffer,
    /// [T, rd] rotary tables
    pub(crate) plain_table: B::Buffer,
    pub(crate) compressed_table: B::Buffer,
    /// By ratio, as in the step: [entries that close, rd]
    pub(crate) entry_tables: Vec<B::Buffer>,
    /// [T, q_lora] before and after the norm
    pub(crate) qr_raw: B::Buffer,
    pub(crate) qr: B::Buffer,
    /// [T, H, d]
    pub(crate) q: B::Buffer,
    /// [T, d] before and after the norm
    pub(crate) kv_raw: B::Buffer,
    pub(crate) kv: B::Buffer,
    /// [T, H, d]
    pub(crate) heads: B::Buffer,
    /// [T, G, o_lora]
    pub(crate) inner: B::Buffer,
    /// [T, 2 · widest entry]
    pub(crate) values: B::Buffer,
    pub(crate) gates: B::Buffer,
    /// [entries that close, widest entry] before and after the norm
    pub(crate) pooled: B::Buffer,
    pub(crate) closed: B::Buffer,
    /// [T, Hi, di]
    pub(crate) index_q: B::Buffer,
    /// [T, Hi]
    pub(crate) index_weights: B::Buffer,
    /// [T, index_topk]
    pub(crate) chosen: B::Indices,
    /// [T, E]
    pub(crate) scores: B::Buffer,
    /// [T, I]
    pub(crate) gate: B::Buffer,
    pub(crate) up: B::Buffer,
    /// [T, D]
    pub(crate) shared: B::Buffer,
    /// If the draft stage is used, what comes before its block: [T, M, D] streams that it takes
    pub(crate) stage_x: B::Buffer,
    /// [T, M, D] after the norm; then the token's part, for each stream
    pub(crate) stage_normed: B::Buffer,
    /// [T, M, D]
    pub(crate) stage_rounded: B::Buffer,
    /// The rows whose logits are wanted: [T, M, D], [T, M], [T, D], [T, D], [T, V]
    pub(crate) last: Option<LastRows<B>>,
}

/// Buffers of the head, only as many rows as logits are wanted.
pub(crate) struct LastRows<B: Backend> {
    rows: usize,
    pub(crate) streams: B::Buffer,
    pub(crate) mix: B::Buffer,
    pub(crate) mean: B::Buffer,
    pub(crate) x: B::Buffer,
    pub(crate) logits: B::Buffer,
}

/// Host buffers of the expert exchange.
#[derive(Default)]
pub(crate) struct HostTemporaries {
    /// [T, E]
    pub(crate) scores: Vec<f32>,
    /// [T, D]
    pub(crate) x: Vec<f32>,
    pub(crate) routes: Vec<Route>,
    /// [routes, D]
    pub(crate) outputs: Vec<f32>,
    /// [T, D]
    pub(crate) sum: Vec<f32>,
}

impl<B: Backend> Room<B> {
    /// Buffers for at least `rows` rows, and `wanted` rows of logits.
    pub(crate) fn reserve(
        &mut self,
        backend: &B,
        config: &Config,
        rows: usize,
        wanted: usize,
    ) -> Result<(&mut Temporaries<B>, &mut HostTemporaries)> {
        let device = match self.device.take() {
            Some(device) if device.rows >= rows => device,
            // rounded up, so that slowly growing steps do not allocate each time
            _ => Temporaries::new(backend, config, rows.next_power_of_two())?,
        };
        let device = self.device.insert(device);
        if wanted > device.last.as_ref().map_or(0, |last| last.rows) {
            device.last = Some(LastRows::new(backend, config, wanted.next_power_of_two())?);
        }
        Ok((device, &mut self.host))
    }
}

impl<B: Backend> Temporaries<B> {
    fn new(backend: &B, config: &Config, rows: usize) -> Result<Self> {
        let alloc = |width: usize| backend.alloc(rows * width);
        let (index_heads, index_dim, top_k) =
            config.indexer.map_or((0, 0, 0), |indexer| (indexer.heads, indexer.head_dim, indexer.top_k));
        let inner = config.o_groups * config.o_lora_rank;
        let widest_input =
            [config.hidden_size, config.q_lora_rank, inner, config.expert_width].into_iter().max();
        let widest_entry = config.head_dim.max(index_dim);
        let stage = if config.draft_tokens > 0 { config.streams * config.hidden_size } else { 0 };
        Ok(Self {
            rows,
            streams: alloc(config.streams * config.hidden_size)?,
            mix: alloc((2 + config.streams) * config.streams)?,
            mean: alloc(config.hidden_size)?,
            x: alloc(config.hidden_size)?,
            y: alloc(config.hidden_size)?,
            rounded: alloc(widest_input.unwrap_or(0))?,
            plain_table: alloc(config.rope_dim)?,
            compressed_table: alloc(config.rope_dim)?,
            entry_tables: config.ratios().iter().map(|_| alloc(config.rope_dim)).collect::<Result<_>>()?,
            qr_raw: alloc(config.q_lora_rank)?,
            qr: alloc(config.q_lora_rank)?,
            q: alloc(config.heads * config.head_dim)?,
            kv_raw: alloc(config.head_dim)?,
            kv: alloc(config.head_dim)?,
            heads: alloc(config.heads * config.head_dim)?,
            inner: alloc(inner)?,
            values: alloc(2 * widest_entry)?,
            gates: alloc(2 * widest_entry)?,
            pooled: alloc(widest_entry)?,
            closed: alloc(widest_entry)?,
            index_q: alloc(index_heads * index_dim)?,
            index_weights: alloc(index_heads)?,
            chosen: backend.alloc_indices(rows * top_k)?,
            scores: alloc(config.experts)?,
            gate: alloc(config.expert_width)?,
            up: alloc(config.expert_width)?,
            shared: alloc(config.hidden_size)?,
            stage_x: alloc(stage)?,
            stage_normed: alloc(stage)?,
            stage_rounded: alloc(stage)?,
            last: None,
        })
    }
}

impl<B: Backend> LastRows<B> {
    fn new(backend: &B, config: &Config, rows: usize) -> Result<Self> {
        Ok(Self {
            rows,
            streams: backend.alloc(rows * config.streams * config.hidden_size)?,
            mix: backend.alloc(rows * config.streams)?,
            mean: backend.alloc(rows * config.hidden_size)?,
            x: backend.alloc(rows * config.hidden_size)?,
            logits: backend.alloc(rows * config.vocab_size)?,
        })
    }
}

/// What placement needs to know about a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelCard {
    /// Layers with routed experts: the trunk's, and the draft stage behind them if it is used.
    pub layers: u32,
    /// Routed experts of a layer.
    pub experts: u32,
    /// Routed experts of a token.
    pub experts_per_token: u32,
    /// Bytes of the largest routed expert as stored, scales included.
    pub expert_bytes: u64,
    /// Bytes of everything else as stored: what each worker holds.
    pub dense_bytes: u64,
    /// Longest sequence.
    pub max_context_tokens: u32,
    /// SHA-256 of config.json, the tensor index (names, types, shapes) and whether the draft stage is used, in hex.
    pub digest: String,
}

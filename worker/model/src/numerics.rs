/// Where the forward repeats roundings of the published inference code. All math is f32 in any case.
///
/// [`Numerics::EXACT`] rounds nowhere and is what golden data checks. The model was trained with the roundings, so
/// [`Numerics::REFERENCE`] is what its authors serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numerics {
    /// Window and compressed keys, except rotary channels: e4m3 in blocks of 64.
    pub keys: bool,
    /// Indexer queries and keys: Hadamard transform, then e2m1 in blocks of 32.
    pub indexer: bool,
    /// Inputs of linears with FP8 or FP4 weights (not of `wo_a`): e4m3 in blocks of 128.
    pub activations: bool,
}

impl Numerics {
    /// No simulated rounding.
    pub const EXACT: Self = Self { keys: false, indexer: false, activations: false };
    /// Cache and indexer roundings, linears exact.
    pub const ROUNDED_CACHE: Self = Self { keys: true, indexer: true, activations: false };
    /// Every rounding of the published code that comes from quantisation.
    pub const REFERENCE: Self = Self { keys: true, indexer: true, activations: true };
}

use std::fmt;

/// What the inputs of linears are multiplied as. Weights are exact in either, and sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Products {
    /// Inputs as they are: the results that golden data checks.
    #[default]
    F32,
    /// Inputs rounded to bf16, the type of the published code's activations: every product is exact, and machines with
    /// bf16 arithmetic do twice as many. Weights in f32 meet inputs in f32.
    Bf16,
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

//! What is measured.

/// What a kernel cannot be faster than.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Reading its weights.
    Read,
    /// Multiplying bf16.
    Bf16,
}

impl Limit {
    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Bf16 => "bf16",
        }
    }

    /// The command that measures it.
    #[must_use]
    pub fn command(self, threads: usize) -> String {
        match self {
            Self::Read => format!("read {threads} 7"),
            Self::Bf16 => format!("peak bf16 {threads}"),
        }
    }
}

/// An operation at one size.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// In tables.
    pub name: &'static str,
    /// The command for our process, without how often.
    pub ours: &'static str,
    /// How often in a round.
    pub times: usize,
    /// What to compare with.
    pub limit: Limit,
    /// Commands of other engines that do the same, without how often.
    pub others: &'static [(&'static str, &'static str)],
}

const fn moe(
    name: &'static str,
    command: &'static str,
    others: &'static [(&'static str, &'static str)],
    times: usize,
    limit: Limit,
) -> Case {
    Case { name, ours: command, times, limit, others }
}

/// In the order of the table.
pub const CASES: &[Case] = &[
    moe("experts, batch 1", "moe 1", &[("llama.cpp", "moe 1"), ("kt-kernel", "moe 1")], 12, Limit::Read),
    moe("experts, batch 4", "moe 4", &[("llama.cpp", "moe 4"), ("kt-kernel", "moe 4")], 4, Limit::Read),
    moe("experts, batch 16", "moe 16", &[("llama.cpp", "moe 16"), ("kt-kernel", "moe 16")], 3, Limit::Read),
    moe("experts, batch 64", "moe 64", &[("llama.cpp", "moe 64"), ("kt-kernel", "moe 64")], 2, Limit::Read),
    moe(
        "experts, batch 512",
        "moe 512",
        &[("llama.cpp", "moe 512"), ("kt-kernel", "moe 512")],
        1,
        Limit::Bf16,
    ),
    moe("experts, batch 2048", "moe 2048", &[], 1, Limit::Bf16),
    moe("dense fp8, batch 1", "dense fp8 1", &[], 12, Limit::Read),
    moe("dense fp8, batch 512", "dense fp8 512", &[], 2, Limit::Bf16),
    moe("dense bf16, batch 1", "dense bf16 1", &[("torch", "dense 1 bf16")], 12, Limit::Read),
    moe("dense bf16, batch 512", "dense bf16 512", &[("torch", "dense 512 bf16")], 2, Limit::Bf16),
];

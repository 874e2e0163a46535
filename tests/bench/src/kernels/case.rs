//! What is measured.

/// What a kernel cannot be faster than.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Reading its weights.
    Read,
    /// Multiplying bf16.
    Bf16,
    /// Multiplying f32.
    F32,
}

impl Limit {
    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }

    /// The command that measures it.
    #[must_use]
    pub fn command(self, threads: usize) -> String {
        match self {
            Self::Read => format!("read {threads} 7"),
            Self::Bf16 | Self::F32 => format!("peak {} {threads}", self.name()),
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
    /// Whether it is measured beside a busy thread as well.
    pub beside: bool,
    /// Commands of other engines that do the same, without how often.
    pub others: &'static [(&'static str, &'static str)],
}

/// What a layer does with a long context; its batch is of new tokens at its end.
const fn context(name: &'static str, command: &'static str, times: usize) -> Case {
    case(name, command, &[], times, Limit::F32)
}

const fn case(
    name: &'static str,
    command: &'static str,
    others: &'static [(&'static str, &'static str)],
    times: usize,
    limit: Limit,
) -> Case {
    Case { name, ours: command, times, limit, beside: false, others }
}

/// The same beside a busy thread too.
const fn beside(case: Case) -> Case {
    Case { beside: true, ..case }
}

/// In the order of the table.
pub const CASES: &[Case] = &[
    beside(case(
        "experts, batch 1",
        "moe 1",
        &[("llama.cpp", "moe 1"), ("kt-kernel", "moe 1"), ("candle", "moe 1")],
        12,
        Limit::Read,
    )),
    case(
        "experts, batch 4",
        "moe 4",
        &[("llama.cpp", "moe 4"), ("kt-kernel", "moe 4"), ("candle", "moe 4")],
        4,
        Limit::Read,
    ),
    case(
        "experts, batch 16",
        "moe 16",
        &[("llama.cpp", "moe 16"), ("kt-kernel", "moe 16"), ("candle", "moe 16")],
        3,
        Limit::Read,
    ),
    beside(case(
        "experts, batch 64",
        "moe 64",
        &[("llama.cpp", "moe 64"), ("kt-kernel", "moe 64"), ("candle", "moe 64")],
        2,
        Limit::Read,
    )),
    beside(case(
        "experts, batch 512",
        "moe 512",
        &[("llama.cpp", "moe 512"), ("kt-kernel", "moe 512"), ("candle", "moe 512")],
        1,
        Limit::Bf16,
    )),
    case("experts, batch 2048", "moe 2048", &[("llama.cpp", "moe 2048")], 1, Limit::Bf16),
    case("dense fp8, batch 1", "dense fp8 1", &[], 12, Limit::Read),
    case("dense fp8, batch 512", "dense fp8 512", &[], 2, Limit::Bf16),
    case("dense bf16, batch 1", "dense bf16 1", &[("torch", "dense 1 bf16")], 12, Limit::Read),
    case("dense bf16, batch 512", "dense bf16 512", &[("torch", "dense 512 bf16")], 2, Limit::Bf16),
    context("selected entries, 32 k", "attend selected 32768 1", 12),
    context("selected entries, 128 k", "attend selected 131072 1", 12),
    context("selected entries, 128 k, batch 64", "attend selected 131072 64", 2),
    context("all entries, 32 k", "attend visible 32768 1", 12),
    context("all entries, 128 k", "attend visible 131072 1", 12),
    context("index, 32 k", "index 32768 1", 12),
    context("index, 128 k", "index 131072 1", 12),
    context("index, 1 M", "index 1048576 1", 4),
    context("index, 128 k, batch 64", "index 131072 64", 2),
];

//! What a chip can do, by the name that the runtime gives it. Plain data from the vendor's documentation.

use std::ops::RangeInclusive;

/// Generations that differ in what they can compute and how they are linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generation {
    /// 910B: Atlas A2.
    A2,
    /// 910C: Atlas A3, two dies in a package, each a device of its own.
    A3,
    /// 950PR.
    A950Pr,
    /// 950DT.
    A950Dt,
}

impl Generation {
    /// Its name in the specification of a deployment.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A2 => "A2",
            Self::A3 => "A3",
            Self::A950Pr => "Ascend950PR",
            Self::A950Dt => "Ascend950DT",
        }
    }
}

/// How ranks find each other in the fused dispatch and combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DispatchAlgorithm {
    /// The operator takes none.
    None,
    /// `fullmesh` or `hierarchy` has to be named.
    Named,
}

/// Limits of the fused expert dispatch and combine (MoeDistributeDispatchV2 / CombineV2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DispatchLimits {
    /// Sizes of the expert-parallel group, as ranges.
    pub group_sizes: &'static [RangeInclusive<u32>],
    /// Channels of a row.
    pub hidden: RangeInclusive<u32>,
    /// Experts of a layer, at most.
    pub max_experts: u32,
    /// Experts of a token, at most.
    pub max_experts_per_token: u32,
    /// Whether all ranks have to be in one superpod.
    pub one_superpod: bool,
    /// Whether an algorithm is named.
    pub algorithm: DispatchAlgorithm,
}

impl DispatchLimits {
    /// Whether a group of this many ranks is supported.
    pub fn allows_group(&self, ranks: u32) -> bool {
        self.group_sizes.iter().any(|sizes| sizes.contains(&ranks))
    }
}

/// What a chip can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chip {
    /// What its name in the runtime begins with.
    pub prefix: &'static str,
    /// Its generation.
    pub generation: Generation,
    /// Devices in a package.
    pub devices_per_package: u32,
    /// Sizes of a device's memory in GB, smallest and largest of the models that are sold.
    pub memory_gb: RangeInclusive<u32>,
    /// Cores for matrix products of a device, smallest and largest.
    pub cube_cores: RangeInclusive<u32>,
    /// Computes with FP8 (e4m3, e5m2, e8m0 scales).
    pub has_fp8: bool,
    /// Computes with FP4 (e2m1 with e8m0 scales).
    pub has_fp4: bool,
    /// Computes with INT4 weights.
    pub has_int4: bool,
    /// The fused expert dispatch and combine; `None` where all-to-all has to be used.
    pub dispatch: Option<DispatchLimits>,
}

/// Prefixes exclude each other: `Ascend910_93` and `Ascend910B` are different chips.
static CHIPS: [Chip; 4] = [
    Chip {
        prefix: "Ascend910B",
        generation: Generation::A2,
        devices_per_package: 1,
        memory_gb: 32..=64,
        cube_cores: 20..=24,
        has_fp8: false,
        has_fp4: false,
        has_int4: true,
        dispatch: Some(DispatchLimits {
            group_sizes: &[2..=8, 16..=16, 32..=32, 64..=64, 128..=128, 192..=192, 256..=256, 384..=384],
            hidden: 1024..=10240,
            max_experts: 1024,
            max_experts_per_token: 16,
            one_superpod: false,
            algorithm: DispatchAlgorithm::Named,
        }),
    },
    Chip {
        prefix: "Ascend910_93",
        generation: Generation::A3,
        devices_per_package: 2,
        memory_gb: 64..=64,
        cube_cores: 20..=24,
        has_fp8: false,
        has_fp4: false,
        has_int4: true,
        dispatch: Some(DispatchLimits {
            group_sizes: &[2..=768],
            hidden: 1024..=8192,
            max_experts: 1024,
            max_experts_per_token: 16,
            one_superpod: true,
            algorithm: DispatchAlgorithm::None,
        }),
    },
    Chip {
        prefix: "Ascend950PR",
        generation: Generation::A950Pr,
        devices_per_package: 1,
        memory_gb: 84..=128,
        cube_cores: 28..=32,
        has_fp8: true,
        has_fp4: true,
        has_int4: false,
        dispatch: None,
    },
    Chip {
        prefix: "Ascend950DT",
        generation: Generation::A950Dt,
        devices_per_package: 1,
        memory_gb: 56..=144,
        cube_cores: 28..=36,
        has_fp8: true,
        has_fp4: true,
        has_int4: false,
        dispatch: Some(DispatchLimits {
            group_sizes: &[2..=1024],
            hidden: 1024..=8192,
            max_experts: 1024,
            max_experts_per_token: 16,
            one_superpod: false,
            algorithm: DispatchAlgorithm::None,
        }),
    },
];

impl Chip {
    /// The chip with this name in the runtime (`aclrtGetSocName`), if it is one that is supported.
    pub fn by_soc_name(name: &str) -> Option<&'static Self> {
        CHIPS.iter().find(|chip| name.starts_with(chip.prefix))
    }

    /// Prefixes of the names that are known, for messages.
    pub fn known() -> String {
        CHIPS.each_ref().map(|chip| chip.prefix).join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(name: &str) -> Option<Generation> {
        Chip::by_soc_name(name).map(|chip| chip.generation)
    }

    #[test]
    fn every_published_name_has_its_generation() {
        for name in ["B1", "B2", "B3", "B4", "B2C", "B4-1"].map(|model| format!("Ascend910{model}")) {
            assert_eq!(generation(&name), Some(Generation::A2), "{name}");
        }
        for name in [9391, 9392, 9381, 9382, 9372, 9362, 9363].map(|model| format!("Ascend910_{model}")) {
            assert_eq!(generation(&name), Some(Generation::A3), "{name}");
        }
        assert_eq!(generation("Ascend950PR_9589"), Some(Generation::A950Pr));
        assert_eq!(generation("Ascend950DT_9591"), Some(Generation::A950Dt));
        for name in ["Ascend910A", "Ascend910ProB", "Ascend310P3", "Ascend950", ""] {
            assert_eq!(generation(name), None, "{name}");
        }
    }

    #[test]
    fn only_the_950_computes_with_the_published_formats() {
        for chip in &CHIPS {
            let is_950 = matches!(chip.generation, Generation::A950Pr | Generation::A950Dt);
            assert_eq!(
                [chip.has_fp8, chip.has_fp4, chip.has_int4],
                [is_950, is_950, !is_950],
                "{}",
                chip.prefix
            );
        }
    }

    #[test]
    fn groups_for_the_fused_dispatch_are_limited_by_chip() {
        let allowed = |name: &str| {
            let limits = Chip::by_soc_name(name).and_then(|chip| chip.dispatch.as_ref());
            limits.map(|limits| [1, 2, 8, 12, 64, 768, 1024].map(|ranks| limits.allows_group(ranks)))
        };
        assert_eq!(allowed("Ascend910B3"), Some([false, true, true, false, true, false, false]));
        assert_eq!(allowed("Ascend910_9391"), Some([false, true, true, true, true, true, false]));
        assert_eq!(allowed("Ascend950DT_9591"), Some([false, true, true, true, true, true, true]));
        assert_eq!(allowed("Ascend950PR_9589"), None);
    }
}

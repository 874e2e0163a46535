use std::fmt;
use std::str::FromStr;

/// Instruction set that the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, sums in f64: the reference that the others are tested against.
    Scalar,
    /// AVX2, FMA and F16C: 8 lanes.
    Avx2,
    /// AVX-512 F, BW and VL: 16 lanes.
    Avx512,
    /// The same, with products of bf16 and tables of bytes (AVX-512 DQ, BF16 and VBMI).
    Avx512Bf16,
    /// The same, with products of bf16 in AMX tiles (AMX-TILE and AMX-BF16). It is not chosen unless it is asked for: it has not
    /// been run on a machine that has AMX, let alone timed there. Its tests compare with what Intel documents.
    AmxBf16,
}

/// The registers of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vectors {
    Scalar,
    Avx2,
    Avx512,
}

impl Level {
    /// All levels, the one with the most instructions last.
    pub const ALL: [Self; 5] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::AmxBf16];

    /// Whether this machine can run it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        let avx512_bf16 = avx512
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512vbmi");
        match self {
            Self::Scalar => true,
            Self::Avx2 => avx2,
            Self::Avx512 => avx512,
            Self::Avx512Bf16 => avx512_bf16,
            Self::AmxBf16 => avx512_bf16 && crate::amx::is_available(),
        }
    }

    /// Whether this machine can run it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Scalar
    }

    /// What everything but the products of linears is done with.
    pub(crate) fn vectors(self) -> Vectors {
        match self {
            Self::Scalar => Vectors::Scalar,
            Self::Avx2 => Vectors::Avx2,
            Self::Avx512 | Self::Avx512Bf16 | Self::AmxBf16 => Vectors::Avx512,
        }
    }

    /// The best that this machine can run, of those that have been run.
    pub fn detect() -> Self {
        Self::best(Self::is_available)
    }

    fn best(is_available: impl Fn(Self) -> bool) -> Self {
        let fit = |level: &Self| *level != Self::AmxBf16 && is_available(*level);
        Self::ALL.into_iter().rev().find(fit).unwrap_or(Self::Scalar)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::AmxBf16 => "amx-bf16",
        })
    }
}

/// Not the name of a level.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownLevel(String);

impl fmt::Display for UnknownLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Level::ALL.map(|level| level.to_string()).join(", ");
        write!(f, "unknown instruction set {:?}; known: {names}", self.0)
    }
}

impl std::error::Error for UnknownLevel {}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        let named = |level: &Self| level.to_string().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(named).ok_or_else(|| UnknownLevel(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for level in Level::ALL {
            assert_eq!(level.to_string().to_uppercase().parse(), Ok(level));
        }
        let error = "sse".parse::<Level>().unwrap_err().to_string();
        let known = "scalar, avx2, avx512, avx512-bf16, amx-bf16";
        assert_eq!(error, format!("unknown instruction set \"sse\"; known: {known}"));
    }

    #[test]
    fn tiles_are_used_only_where_they_are_asked_for() {
        assert!(Level::AmxBf16 > Level::Avx512Bf16);
        assert_eq!(Level::best(|_| true), Level::Avx512Bf16);
        assert_eq!(Level::best(|level| level == Level::AmxBf16), Level::Scalar);
        assert!(Level::detect().is_available());
    }
}

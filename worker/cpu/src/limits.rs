//! What this machine can do at best, to compare kernels with: reading memory, and multiplying in registers.

use std::arch::asm;

use crate::level::Level;

/// An instruction whose peak rate can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peak {
    /// Multiply-add of f32.
    F32,
    /// Products of two bf16 added to f32 (VDPBF16PS).
    Bf16,
    /// Products of four int8 added to int32 (VPDPBUSD).
    Int8,
}

impl Peak {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "vnni",
        }
    }

    /// Whether this machine has it in the widest registers.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::F32 => Level::Avx512.is_available(),
            Self::Bf16 => Level::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            Self::Int8 => Level::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
        }
    }

    /// Runs `rounds` of 16 independent instructions on this thread; returns additions and multiplications done, or nothing
    /// if this machine has not got them.
    #[must_use]
    pub fn run(self, rounds: u64) -> Option<u64> {
        if !self.is_available() || rounds == 0 {
            return None;
        }
        // SAFETY: the instructions are there, checked above; registers alone are touched, and all are declared.
        unsafe {
            match self {
                Self::F32 => f32s(rounds),
                Self::Bf16 => bf16s(rounds),
                Self::Int8 => int8s(rounds),
            }
        }
        let lanes = match self {
            Self::F32 => 16,
            Self::Bf16 => 32,
            Self::Int8 => 64,
        };
        Some(rounds * 16 * lanes * 2)
    }
}

macro_rules! sixteen {
    ($name:ident, $features:literal, $instruction:literal) => {
        #[target_feature(enable = $features)]
        fn $name(rounds: u64) {
            // SAFETY: zeros are added to zeros in the registers that are declared as written.
            unsafe {
                asm!(
                    "vpxord zmm16, zmm16, zmm16", "vpxord zmm17, zmm17, zmm17",
                    "vpxord zmm0, zmm0, zmm0", "vpxord zmm1, zmm1, zmm1", "vpxord zmm2, zmm2, zmm2",
                    "vpxord zmm3, zmm3, zmm3", "vpxord zmm4, zmm4, zmm4", "vpxord zmm5, zmm5, zmm5",
                    "vpxord zmm6, zmm6, zmm6", "vpxord zmm7, zmm7, zmm7", "vpxord zmm8, zmm8, zmm8",
                    "vpxord zmm9, zmm9, zmm9", "vpxord zmm10, zmm10, zmm10", "vpxord zmm11, zmm11, zmm11",
                    "vpxord zmm12, zmm12, zmm12", "vpxord zmm13, zmm13, zmm13", "vpxord zmm14, zmm14, zmm14",
                    "vpxord zmm15, zmm15, zmm15",
                    "2:",
                    concat!($instruction, " zmm0, zmm16, zmm17"), concat!($instruction, " zmm1, zmm16, zmm17"),
                    concat!($instruction, " zmm2, zmm16, zmm17"), concat!($instruction, " zmm3, zmm16, zmm17"),
                    concat!($instruction, " zmm4, zmm16, zmm17"), concat!($instruction, " zmm5, zmm16, zmm17"),
                    concat!($instruction, " zmm6, zmm16, zmm17"), concat!($instruction, " zmm7, zmm16, zmm17"),
                    concat!($instruction, " zmm8, zmm16, zmm17"), concat!($instruction, " zmm9, zmm16, zmm17"),
                    concat!($instruction, " zmm10, zmm16, zmm17"), concat!($instruction, " zmm11, zmm16, zmm17"),
                    concat!($instruction, " zmm12, zmm16, zmm17"), concat!($instruction, " zmm13, zmm16, zmm17"),
                    concat!($instruction, " zmm14, zmm16, zmm17"), concat!($instruction, " zmm15, zmm16, zmm17"),
                    "dec {rounds}",
                    "jnz 2b",
                    rounds = inout(reg) rounds => _,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                    out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                    options(nomem, nostack),
                );
            }
        }
    };
}

sixteen!(f32s, "avx512f", "vfmadd231ps");
sixteen!(bf16s, "avx512f,avx512bf16", "vdpbf16ps");
sixteen!(int8s, "avx512f,avx512vnni", "vpdpbusd");

/// Reads all bytes as fast as one thread can; returns something that depends on each of them.
#[must_use]
pub fn read(bytes: &[u8]) -> u64 {
    if Level::Avx512.is_available() {
        // SAFETY: checked just now.
        unsafe { read_avx512(bytes) }
    } else {
        bytes
            .chunks_exact(8)
            .fold(0, |sum, word| sum ^ u64::from_le_bytes(word.try_into().unwrap_or_default()))
    }
}

#[target_feature(enable = "avx512f")]
fn read_avx512(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::*;
    const AHEAD: usize = 4096;
    let mut sums = [_mm512_setzero_si512(); 8];
    for block in bytes.chunks_exact(8 * 64) {
        for (i, sum) in sums.iter_mut().enumerate() {
            let at = block.as_ptr().wrapping_add(64 * i);
            // SAFETY: 64 bytes inside the block; a prefetch may point anywhere.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                *sum = _mm512_xor_si512(*sum, _mm512_loadu_si512(at.cast()));
            }
        }
    }
    let sum = sums.into_iter().reduce(|a, b| _mm512_xor_si512(a, b)).unwrap_or(_mm512_setzero_si512());
    _mm512_reduce_add_epi64(sum) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_where_there_is_any() {
        for peak in Peak::ALL {
            let expected = match peak {
                _ if !peak.is_available() => None,
                Peak::F32 => Some(3 * 16 * 32),
                Peak::Bf16 => Some(3 * 16 * 64),
                Peak::Int8 => Some(3 * 16 * 128),
            };
            assert_eq!(peak.run(3), expected, "{}", peak.name());
        }
    }

    #[test]
    fn every_byte_of_a_block_counts() {
        let mut bytes = vec![0; 1024];
        for at in [0, 63, 511, 512, 1023] {
            bytes[at] = 1;
            assert_ne!(read(&bytes), 0, "byte {at}");
            bytes[at] = 0;
        }
    }
}

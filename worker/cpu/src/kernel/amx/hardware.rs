//! Tiles of the processor.
//!
//! Tiles 0 and 1 are sums of the first group of inputs with the two tiles of weights, 2 and 3 those of the second group; 4 and 5
//! are the groups, 6 and 7 the weights.

use std::arch::asm;

use super::{Inputs, SIDE, Sums, Tiles};
use crate::panel::Line;

/// Needs AMX-TILE, AMX-BF16, and leave of the system.
pub(in super::super) struct Hardware;

/// What LDTILECFG reads.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a tile's rows.
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// A group without inputs has no tiles.
    pub(super) fn new([first, second]: [usize; 2]) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        let rows = [first, first, second, second, first, second, SIDE, SIDE];
        for (tile, rows) in rows.into_iter().enumerate().filter(|(_, rows)| *rows > 0) {
            config.rows[tile] = rows as u8;
            config.bytes[tile] = size_of::<Line>() as u16;
        }
        config
    }
}

impl Tiles for Hardware {
    /// One piece of assembly from configuring tiles to releasing them: none is live where the compiler might care, and a thread
    /// that does other work has none to keep.
    unsafe fn sums(groups: [Inputs; 2], weights: *const Line, steps: usize, sums: &mut Sums) {
        if steps == 0 {
            return sums.fill(Line::default());
        }
        let config = Config::new(groups.map(|group| group.count));
        let [a, b] = groups;
        if b.count == 0 {
            // SAFETY: by the caller's promise, there is a line of each input and two tiles of weights for each step, and the
            // processor has tiles. Addresses of inputs are exposed. Two tiles of sums are written at most, of four.
            unsafe {
                asm!(
                    "ldtilecfg [{config}]",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "2:",
                    "tileloadd tmm4, [{a} + {a_stride}*1]",
                    "tileloadd tmm6, [{weights} + {line}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{weights} + {line}*1 + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {a}, 64",
                    "add {weights}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{sums} + {line}*1], tmm0",
                    "tilestored [{sums} + {line}*1 + 1024], tmm1",
                    "tilerelease",
                    config = in(reg) &raw const config,
                    a = inout(reg) a.first => _,
                    a_stride = in(reg) a.stride,
                    weights = inout(reg) weights => _,
                    line = in(reg) size_of::<Line>(),
                    steps = inout(reg) steps => _,
                    sums = in(reg) sums.as_mut_ptr(),
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        } else {
            // SAFETY: as above, with all four tiles of sums.
            unsafe {
                asm!(
                    "ldtilecfg [{config}]",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "tileloadd tmm4, [{a} + {a_stride}*1]",
                    "tileloadd tmm6, [{weights} + {line}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{weights} + {line}*1 + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{b} + {b_stride}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a}, 64",
                    "add {b}, 64",
                    "add {weights}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{sums} + {line}*1], tmm0",
                    "tilestored [{sums} + {line}*1 + 1024], tmm1",
                    "tilestored [{sums} + {line}*1 + 2048], tmm2",
                    "tilestored [{sums} + {line}*1 + 3072], tmm3",
                    "tilerelease",
                    config = in(reg) &raw const config,
                    a = inout(reg) a.first => _,
                    a_stride = in(reg) a.stride,
                    b = inout(reg) b.first => _,
                    b_stride = in(reg) b.stride,
                    weights = inout(reg) weights => _,
                    line = in(reg) size_of::<Line>(),
                    steps = inout(reg) steps => _,
                    sums = in(reg) sums.as_mut_ptr(),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        }
    }
}

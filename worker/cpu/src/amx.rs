//! Whether this process may use AMX tiles of bf16: the processor has them, the system keeps them, and has granted them.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

/// Leaf 1, ecx: XGETBV may be used.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 7, edx: AMX-BF16 and AMX-TILE.
const TILES_OF_BF16: u32 = 1 << 22 | 1 << 24;
/// XCR0: configuration and data of tiles are kept when threads change.
const TILE_STATE: u64 = 1 << 17 | 1 << 18;

/// Asks the system once, for all threads that there are and will be.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| processor_has_it() && system_keeps_it() && is_granted())
}

fn processor_has_it() -> bool {
    // the first leaf says how many there are
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES_OF_BF16 == TILES_OF_BF16
}

fn system_keeps_it() -> bool {
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let (low, high): (u32, u32);
    // SAFETY: the instruction may be used, and register 0 is there with it.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    (u64::from(high) << 32 | u64::from(low)) & TILE_STATE == TILE_STATE
}

/// Linux gives tiles, whose state is 8 KiB a thread, to processes that ask. Older ones know no such question and refuse.
#[cfg(target_os = "linux")]
fn is_granted() -> bool {
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that takes two numbers and no memory; the kernel overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_granted() -> bool {
    false
}

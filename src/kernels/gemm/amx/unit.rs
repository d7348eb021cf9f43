//! The tile unit itself: whether this process may use it, and the shapes of its registers.

use super::SIDE;
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Whether this process may use the tile unit: the processor has it, and Linux lets us.
pub(in super::super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        let vectors = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        vectors && __cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES && permitted()
    })
}

/// Asks Linux for the tile registers, which it saves only for processes that did.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request takes a number and changes nothing but what may be asked of the processor.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The tile unit's registers, set to shapes until this is dropped.
pub(super) struct Shapes(());

impl Shapes {
    /// Whole tiles: fewer rows would not take less time.
    ///
    /// # Safety
    /// [`is_available`] said so.
    pub(super) unsafe fn set() -> Self {
        #[repr(C, align(64))]
        struct Config([u8; 64]);
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        for register in 0..8 {
            config.0[16 + 2 * register] = 64;
            config.0[48 + register] = SIDE as u8;
        }
        // SAFETY: the contract; compiled code never touches the tile unit.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, preserves_flags, readonly));
        }
        Self(())
    }
}

impl Drop for Shapes {
    fn drop(&mut self) {
        // SAFETY: made by `set` alone, whose contract was kept. Registers in use would be saved at every
        // switch of threads.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }
}

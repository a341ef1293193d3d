//! NEON with the instruction `sdot`: 16 products at once, added up in 32 bits.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::ops::Range;

use super::super::layout::{Activations, Group, Lanes, Packed, Quad};
use super::neon::{REGISTERS, quarters, store};
use super::shared::{self, Attend, Norm, Output};
use super::{Products, build, cut, word};

pub(super) fn present() -> bool {
    is_aarch64_feature_detected!("dotprod")
}

build!(
    #[target_feature(enable = "neon,dotprod")]
    NeonDot
);

pub(super) struct NeonDot;

impl Products for NeonDot {
    const ROWS: usize = 4;

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn signed<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        let inputs = cut(inputs, groups.len());
        let mut sums = [[vdupq_n_s32(0); REGISTERS]; N];
        for (at, group) in groups.iter().enumerate() {
            let weights = quarters(group);
            for (sums, row) in sums.iter_mut().zip(inputs) {
                let input = vreinterpretq_s8_s32(vdupq_n_s32(word(row[at])));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = dot(*sum, weights, input);
                }
            }
        }
        store(sums)
    }

    /// There is no need to tell them apart.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn unsigned<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        // SAFETY: as above.
        unsafe { Self::signed(groups, inputs) }
    }
}

/// Adds four products to each sum. (The intrinsic `vdotq_s32` is not stable yet.)
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(mut sums: int32x4_t, weights: int8x16_t, inputs: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction is there, and only changes the register of the sums.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums,
            in(vreg) weights,
            in(vreg) inputs,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

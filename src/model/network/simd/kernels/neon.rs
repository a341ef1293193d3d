//! NEON: 8 products in one instruction, as numbers of 16 bits.

use std::arch::aarch64::*;
use std::ops::Range;

use super::super::layout::{Activations, Group, LANES, Lanes, Packed, Quad};
use super::shared::{self, Attend, Norm, Output};
use super::{Products, build, cut, word};

/// Registers of four sums that make a block.
pub(super) const REGISTERS: usize = 4;

build!(
    #[target_feature(enable = "neon")]
    Neon
);

pub(super) struct Neon;

impl Products for Neon {
    const ROWS: usize = 4;

    /// A product is at most 127 * 127 = 16129 and fits 16 bits; pairs are added up in 32 bits.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn signed<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        let inputs = cut(inputs, groups.len());
        let mut sums = [[vdupq_n_s32(0); REGISTERS]; N];
        for (at, group) in groups.iter().enumerate() {
            let weights = quarters(group);
            for (sums, row) in sums.iter_mut().zip(inputs) {
                let input = vreinterpretq_s8_s32(vdupq_n_s32(word(row[at])));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    // two pairs of products for each output
                    let first = vmull_s8(vget_low_s8(weights), vget_low_s8(input));
                    let second = vmull_high_s8(weights, input);
                    let pairs = vpaddq_s32(vpaddlq_s16(first), vpaddlq_s16(second));
                    *sum = vaddq_s32(*sum, pairs);
                }
            }
        }
        store(sums)
    }

    /// There is no need to tell them apart.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn unsigned<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        // SAFETY: as above.
        unsafe { Self::signed(groups, inputs) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn quarters(group: &Group) -> [int8x16_t; REGISTERS] {
    let at: *const i8 = (&raw const *group).cast();
    // SAFETY: a group has 64 bytes.
    unsafe {
        [
            vld1q_s8(at),
            vld1q_s8(at.add(16)),
            vld1q_s8(at.add(32)),
            vld1q_s8(at.add(48)),
        ]
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store<const N: usize>(sums: [[int32x4_t; REGISTERS]; N]) -> [Lanes; N] {
    let mut all = [[0; LANES]; N];
    for (lanes, sums) in all.iter_mut().zip(sums) {
        for (four, sum) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
            // SAFETY: there is room for four numbers.
            unsafe { vst1q_s32(four.as_mut_ptr(), sum) };
        }
    }
    all
}

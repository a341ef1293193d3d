//! AVX2: 32 products in one instruction, as pairs of 16 bits.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::layout::{Activations, Group, LANES, Lanes, Packed, Quad};
use super::shared::{self, Attend, Norm, Output};
use super::{Products, build, cut, word};

pub(super) fn present() -> bool {
    is_x86_feature_detected!("avx2")
}

build!(
    #[target_feature(enable = "avx2")]
    Avx2
);

pub(super) struct Avx2;

impl Products for Avx2 {
    const ROWS: usize = 4;

    /// `vpmaddubsw` multiplies unsigned with signed bytes and adds pairs, saturating at 32767. It gets the
    /// magnitudes of the weights, and the inputs with the signs of the products: 2 * 127 * 127 = 32258.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn signed<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        let inputs = cut(inputs, groups.len());
        let ones = _mm256_set1_epi16(1);
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        for (at, group) in groups.iter().enumerate() {
            let weights = halves(group);
            let magnitudes = [_mm256_abs_epi8(weights[0]), _mm256_abs_epi8(weights[1])];
            for (sums, row) in sums.iter_mut().zip(inputs) {
                let input = _mm256_set1_epi32(word(row[at]));
                for half in 0..2 {
                    let signed = _mm256_sign_epi8(input, weights[half]);
                    let pairs = _mm256_maddubs_epi16(magnitudes[half], signed);
                    sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        store(sums)
    }

    /// The inputs are unsigned already.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn unsigned<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        let inputs = cut(inputs, groups.len());
        let ones = _mm256_set1_epi16(1);
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        for (at, group) in groups.iter().enumerate() {
            let weights = halves(group);
            for (sums, row) in sums.iter_mut().zip(inputs) {
                let input = _mm256_set1_epi32(word(row[at]));
                for half in 0..2 {
                    let pairs = _mm256_maddubs_epi16(input, weights[half]);
                    sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        store(sums)
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn halves(group: &Group) -> [__m256i; 2] {
    let at: *const __m256i = (&raw const *group).cast();
    // SAFETY: a group has 64 bytes and is aligned to 64.
    unsafe { [_mm256_load_si256(at), _mm256_load_si256(at.add(1))] }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store<const N: usize>(sums: [[__m256i; 2]; N]) -> [Lanes; N] {
    let mut all = [[0; LANES]; N];
    for (lanes, sums) in all.iter_mut().zip(sums) {
        let at: *mut __m256i = lanes.as_mut_ptr().cast();
        // SAFETY: 16 numbers of 32 bits are two times 32 bytes.
        unsafe {
            _mm256_storeu_si256(at, sums[0]);
            _mm256_storeu_si256(at.add(1), sums[1]);
        }
    }
    all
}

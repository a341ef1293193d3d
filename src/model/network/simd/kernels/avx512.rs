//! AVX-512 with VNNI: 64 products in one instruction, added up in 32 bits.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::layout::{Activations, Block, Group, LANES, Lanes, Packed, Quad};
use super::shared::{self, Attend, Norm, Output};
use super::{Products, build, cut, word};

pub(super) fn present() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

build!(
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    Avx512
);

pub(super) struct Avx512;

impl Products for Avx512 {
    const ROWS: usize = 8;

    /// `vpdpbusd` multiplies unsigned with signed bytes, so it gets the inputs plus 128, and the sums begin
    /// at -128 times the sum of the weights. It does not saturate; sums wrap on the way and
    /// come back into range at the end, as all of it is exact modulo 2^32.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn signed<const N: usize>(block: Block, inputs: [&[Quad]; N]) -> [Lanes; N] {
        // SAFETY: 16 numbers of 32 bits are 64 bytes.
        let sums = unsafe { _mm512_loadu_si512(block.sums.as_ptr().cast()) };
        let begin = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 7));
        dispatch(block.groups, inputs, begin, i32::from_ne_bytes([0x80; 4]))
    }

    /// The inputs are unsigned already.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn unsigned<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        dispatch(groups, inputs, _mm512_setzero_si512(), 0)
    }
}

/// Few rows have several sums each, for the instruction takes a while until its sum can be used again.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dispatch<const N: usize>(
    groups: &[Group],
    inputs: [&[Quad]; N],
    begin: __m512i,
    flip: i32,
) -> [Lanes; N] {
    match N {
        1 => products::<N, 4>(groups, inputs, begin, flip),
        2 => products::<N, 2>(groups, inputs, begin, flip),
        _ => products::<N, 1>(groups, inputs, begin, flip),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn products<const N: usize, const SUMS: usize>(
    groups: &[Group],
    inputs: [&[Quad]; N],
    begin: __m512i,
    flip: i32,
) -> [Lanes; N] {
    let inputs = cut(inputs, groups.len());
    let mut sums = [[_mm512_setzero_si512(); SUMS]; N];
    let whole = groups.len() / SUMS * SUMS;
    let mut add = |at: usize, number: usize| {
        // SAFETY: a group has 64 bytes and is aligned to 64.
        let weights = unsafe { _mm512_load_si512((&raw const groups[at]).cast()) };
        for (sums, row) in sums.iter_mut().zip(inputs) {
            let input = word(row[at]) ^ flip;
            sums[number] = _mm512_dpbusd_epi32(sums[number], _mm512_set1_epi32(input), weights);
        }
    };
    for start in (0..whole).step_by(SUMS) {
        for number in 0..SUMS {
            add(start + number, number);
        }
    }
    for at in whole..groups.len() {
        add(at, 0);
    }
    let mut all = [[0; LANES]; N];
    for (lanes, sums) in all.iter_mut().zip(sums) {
        let mut sum = begin;
        for part in sums {
            sum = _mm512_add_epi32(sum, part);
        }
        // SAFETY: 16 numbers of 32 bits are 64 bytes.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sum) };
    }
    all
}

//! AVX-512 with VNNI: 64 products in one instruction, added up in 32 bits.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::layout::{Activations, Group, LANES, Lanes, Packed, Quad};
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

    /// `vpdpbusd` multiplies unsigned with signed bytes, so it gets the weights plus 128, and the sums begin at
    /// -128 times the sum of the inputs. It does not saturate; sums wrap on the way and
    /// come back into range at the end, as all of it is exact modulo 2^32. (The signed operand is the one that
    /// can be a number of four bytes in memory, which makes one instruction of the inner loop.)
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn signed<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        let inputs = cut(inputs, groups.len());
        let mut begin = [_mm512_setzero_si512(); N];
        for (begin, row) in begin.iter_mut().zip(inputs) {
            *begin = _mm512_set1_epi32(-128 * sum(row));
        }
        let flip = _mm512_set1_epi8(i8::MIN);
        dispatch(groups, inputs, begin, |sums, weights, input| {
            _mm512_dpbusd_epi32(sums, _mm512_xor_si512(weights, flip), input)
        })
    }

    /// The inputs are unsigned already.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn unsigned<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        let begin = [_mm512_setzero_si512(); N];
        dispatch(groups, inputs, begin, |sums, weights, input| {
            _mm512_dpbusd_epi32(sums, input, weights)
        })
    }
}

/// The sum of all numbers of a row.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn sum(row: &[Quad]) -> i32 {
    let ones = _mm512_set1_epi8(1);
    let mut sums = _mm512_setzero_si512();
    for quads in row.chunks(LANES) {
        let there = (1u32 << quads.len()) - 1;
        // SAFETY: only quads that are there are read.
        let quads = unsafe { _mm512_maskz_loadu_epi32(there as u16, quads.as_ptr().cast()) };
        sums = _mm512_dpbusd_epi32(sums, ones, quads);
    }
    _mm512_reduce_add_epi32(sums)
}

/// Few rows have several sums each, for the instruction takes a while until its sum can be used again.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dispatch<const N: usize>(
    groups: &[Group],
    inputs: [&[Quad]; N],
    begin: [__m512i; N],
    add: impl Fn(__m512i, __m512i, __m512i) -> __m512i,
) -> [Lanes; N] {
    match N {
        1 => products::<N, 4>(groups, inputs, begin, add),
        2 => products::<N, 2>(groups, inputs, begin, add),
        _ => products::<N, 1>(groups, inputs, begin, add),
    }
}

/// `add` adds products of the weights of a group with an input, in every lane the same quad, to sums.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn products<const N: usize, const SUMS: usize>(
    groups: &[Group],
    inputs: [&[Quad]; N],
    begin: [__m512i; N],
    add: impl Fn(__m512i, __m512i, __m512i) -> __m512i,
) -> [Lanes; N] {
    let inputs = cut(inputs, groups.len());
    let mut sums = [[_mm512_setzero_si512(); SUMS]; N];
    let whole = groups.len() / SUMS * SUMS;
    let mut step = |at: usize, number: usize| {
        // SAFETY: a group has 64 bytes and is aligned to 64.
        let weights = unsafe { _mm512_load_si512((&raw const groups[at]).cast()) };
        for (sums, row) in sums.iter_mut().zip(inputs) {
            let input = _mm512_set1_epi32(word(row[at]));
            sums[number] = add(sums[number], weights, input);
        }
    };
    for start in (0..whole).step_by(SUMS) {
        for number in 0..SUMS {
            step(start + number, number);
        }
    }
    for at in whole..groups.len() {
        step(at, 0);
    }
    let mut all = [[0; LANES]; N];
    for ((lanes, sums), begin) in all.iter_mut().zip(sums).zip(begin) {
        let mut sum = begin;
        for part in sums {
            sum = _mm512_add_epi32(sum, part);
        }
        // SAFETY: 16 numbers of 32 bits are 64 bytes.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sum) };
    }
    all
}

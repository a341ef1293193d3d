//! The sums and the learning of layer one for AVX2. [`super::scalar`] says what they compute; both give the same numbers,
//! because every intermediate result is an integer that fits.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_add_epi32, _mm_max_epi32, _mm_min_epi32, _mm_mullo_epi32, _mm_set_epi16,
    _mm_set1_epi32, _mm_srai_epi32, _mm256_add_epi32, _mm256_castsi256_si128,
    _mm256_cvtepu16_epi32, _mm256_extracti128_si256, _mm256_hadd_epi32, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_max_epi32, _mm256_min_epi32, _mm256_or_si256, _mm256_packs_epi32,
    _mm256_permute4x64_epi64, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_srai_epi32,
    _mm256_storeu_si256,
};

use super::{INPUTS, Inputs, SETS, STRETCH_MAX, WEIGHT_MAX};

/// Largest rate with which all errors fit 16 bits.
pub(super) const RATE_MAX: i32 = 127;
const _: () = assert!((65535 * RATE_MAX) >> 8 <= i16::MAX as i32);

/// Weights of a register.
const LANES: usize = 8;

#[target_feature(enable = "avx2")]
#[inline]
fn load(row: &[i32; INPUTS], at: usize) -> __m256i {
    let part: &[i32] = &row[at * LANES..][..LANES];
    // SAFETY: the slice has as many bytes as a register; any alignment will do.
    unsafe { _mm256_loadu_si256(part.as_ptr().cast()) }
}

/// The inputs, 16 to a register.
#[target_feature(enable = "avx2")]
#[inline]
fn halves(inputs: &Inputs) -> [__m256i; 2] {
    let (low, high) = inputs.0.split_at(16);
    // SAFETY: each slice has as many bytes as a register; any alignment will do.
    unsafe {
        [
            _mm256_loadu_si256(low.as_ptr().cast()),
            _mm256_loadu_si256(high.as_ptr().cast()),
        ]
    }
}

/// Products of a row with the inputs, added up in eight parts. The halves of `inputs` are in the order in which packing
/// leaves the weights: |w >> 5| <= 2^13, so nothing saturates.
#[target_feature(enable = "avx2")]
#[inline]
fn products<const PARTS: usize>(row: &[i32; INPUTS], inputs: [__m256i; 2]) -> __m256i {
    let [a, b, c] = [load(row, 0), load(row, 1), load(row, 2)];
    let d = match PARTS {
        3 => _mm256_setzero_si256(),
        _ => load(row, 3),
    };
    let low = _mm256_packs_epi32(_mm256_srai_epi32::<5>(a), _mm256_srai_epi32::<5>(b));
    let high = _mm256_packs_epi32(_mm256_srai_epi32::<5>(c), _mm256_srai_epi32::<5>(d));
    _mm256_add_epi32(
        _mm256_madd_epi16(low, inputs[0]),
        _mm256_madd_epi16(high, inputs[1]),
    )
}

/// [`super::scalar::stretched`] of four rows. Only the first `PARTS` times eight inputs may be other than zero; there are
/// three or four parts.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn stretched<const PARTS: usize>(
    rows: [&[i32; INPUTS]; SETS],
    inputs: &Inputs,
) -> [i32; SETS] {
    let [low, high] = halves(inputs);
    let order = [
        _mm256_permute4x64_epi64::<0b11_01_10_00>(low),
        _mm256_permute4x64_epi64::<0b11_01_10_00>(high),
    ];
    let [a, b, c, d] = rows;
    let parts = [
        products::<PARTS>(a, order),
        products::<PARTS>(b, order),
        products::<PARTS>(c, order),
        products::<PARTS>(d, order),
    ];
    let pairs = [
        _mm256_hadd_epi32(parts[0], parts[1]),
        _mm256_hadd_epi32(parts[2], parts[3]),
    ];
    let sums = _mm256_hadd_epi32(pairs[0], pairs[1]);
    let sums = _mm_add_epi32(
        _mm256_castsi256_si128(sums),
        _mm256_extracti128_si256::<1>(sums),
    );
    let sums = _mm_srai_epi32::<11>(sums);
    let sums = _mm_min_epi32(sums, _mm_set1_epi32(STRETCH_MAX));
    let sums = _mm_max_epi32(sums, _mm_set1_epi32(-STRETCH_MAX));
    // SAFETY: both are 16 bytes of plain integers.
    unsafe { std::mem::transmute(sums) }
}

/// [`super::learn_weight`] of four weights.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn learn_last(row: &mut [i32; SETS], inputs: [i32; SETS], error: i32) {
    let register = |four: [i32; SETS]| {
        // SAFETY: both are 16 bytes of plain integers.
        unsafe { std::mem::transmute::<[i32; SETS], __m128i>(four) }
    };
    let (inputs, weights) = (register(inputs), register(*row));
    let products = _mm_mullo_epi32(inputs, _mm_set1_epi32(error));
    let step = _mm_srai_epi32::<14>(_mm_add_epi32(products, _mm_set1_epi32(1 << 13)));
    let moved = _mm_add_epi32(weights, step);
    let moved = _mm_max_epi32(moved, _mm_set1_epi32(-WEIGHT_MAX));
    let moved = _mm_min_epi32(moved, _mm_set1_epi32(WEIGHT_MAX));
    // SAFETY: as above.
    *row = unsafe { std::mem::transmute::<__m128i, [i32; SETS]>(moved) };
}

/// The inputs, each beside a one.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn pairs(inputs: &Inputs) -> [__m256i; INPUTS / LANES] {
    let [low, high] = halves(inputs);
    [
        with_ones(_mm256_castsi256_si128(low)),
        with_ones(_mm256_extracti128_si256::<1>(low)),
        with_ones(_mm256_castsi256_si128(high)),
        with_ones(_mm256_extracti128_si256::<1>(high)),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn with_ones(inputs: __m128i) -> __m256i {
    _mm256_or_si256(_mm256_cvtepu16_epi32(inputs), _mm256_set1_epi32(1 << 16))
}

/// [`Inputs::of`].
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn pack(values: &[[i16; 8]; INPUTS / 8]) -> Inputs {
    let [a, b, c, d] = values;
    let parts = [eight(a), eight(b), eight(c), eight(d)];
    // SAFETY: both are 64 bytes of plain integers.
    Inputs(unsafe { std::mem::transmute::<[__m128i; 4], [i16; INPUTS]>(parts) })
}

#[target_feature(enable = "avx2")]
#[inline]
fn eight(&[a, b, c, d, e, f, g, h]: &[i16; 8]) -> __m128i {
    _mm_set_epi16(h, g, f, e, d, c, b, a)
}

/// [`super::scalar::learn`] for an error of 16 bits; `pairs` are the inputs, of which only the first `PARTS` are not zero.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn learn<const PARTS: usize>(
    row: &mut [i32; INPUTS],
    pairs: &[__m256i; INPUTS / LANES],
    error: i32,
) {
    // each pair becomes input * error + 2^13
    let error = _mm256_set1_epi32((1 << 13) << 16 | i32::from(error as u16));
    let (least, most) = (
        _mm256_set1_epi32(-WEIGHT_MAX),
        _mm256_set1_epi32(WEIGHT_MAX),
    );
    for (at, &pair) in pairs[..PARTS].iter().enumerate() {
        let step = _mm256_srai_epi32::<14>(_mm256_madd_epi16(pair, error));
        let moved = _mm256_add_epi32(load(row, at), step);
        let moved = _mm256_min_epi32(_mm256_max_epi32(moved, least), most);
        let part = &mut row[at * LANES..][..LANES];
        // SAFETY: the slice has as many bytes as a register; any alignment will do.
        unsafe { _mm256_storeu_si256(part.as_mut_ptr().cast(), moved) }
    }
}

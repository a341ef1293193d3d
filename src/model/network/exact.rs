//! The arithmetic of the network: what every operation means, one number at a time.
//!
//! Engines compute the same numbers by other means, in vectors or as tensors. The bounds that make
//! all of them agree are derived in docs/exactness.md, "The network".

use std::sync::LazyLock;

/// Activations and weights lie within +-127; -128 never occurs.
pub const ACT_MAX: i32 = 127;
/// The residual stream lies within +-32767.
pub const RESIDUAL_MAX: i32 = 32767;
/// Scales of products are in units of 2^-22.
pub const SCALE_BITS: u32 = 22;
/// Largest scale of a product: 1.
pub const PRODUCT_SCALE_MAX: i32 = 1 << SCALE_BITS;
/// Largest scale of a score and of an attention's output.
pub const SCALE_MAX: i32 = 1 << 20;
/// Largest scale of an embedding: 127 * 258 <= 32767.
pub const EMBEDDING_SCALE_MAX: i32 = 258;
/// Largest gain of a normalisation; 2048 stands for 1, which makes the root mean square 32.
pub const GAIN_MAX: i32 = (1 << 13) - 1;
/// Largest magnitude of a bias of scores and logits.
pub const BIAS_MAX: i32 = 1 << 20;
/// Largest `d_model`.
pub const MODEL_DIM_MAX: usize = 4096;
/// Most keys of an attention: 1023 * 127 * 128 < 2^24.
pub const KEYS_MAX: usize = 128;
/// Largest weight in an attention.
pub const ATTENTION_ONE: i32 = 1023;
/// Scores are in units of 1/32 nat; a key whose score is this far below the best has no weight.
pub const ATTENTION_REACH: i32 = 255;
/// The gain of attention outputs is in units of 2^-8.
pub const CONTEXT_BITS: u32 = 8;

/// Fixed-point bits of the root mean square and of its reciprocal.
pub const ROOT_BITS: u32 = 5;
pub const RECIPROCAL_BITS: u32 = 36;
/// What the product of value, gain and reciprocal is divided by: 36 - 5 + 11 - 5 bits.
pub const NORM_BITS: u32 = 37;

/// 2^-bits, exactly.
pub const fn power(bits: u32) -> f64 {
    1.0 / (1u64 << bits) as f64
}

/// A sum of products in the scale of its row: floor(sum * scale / 2^22 + 1/2).
pub fn rescale(sum: i32, scale: i32) -> i64 {
    (i64::from(sum) * i64::from(scale) + (1 << (SCALE_BITS - 1))) >> SCALE_BITS
}

/// Clips a number to the range of an activation.
pub fn activation(value: i64) -> i8 {
    value.clamp(-i64::from(ACT_MAX), i64::from(ACT_MAX)) as i8
}

/// Adds an update to the residual stream.
pub fn residual(value: i32, update: i64) -> i32 {
    (i64::from(value) + update).clamp(-i64::from(RESIDUAL_MAX), i64::from(RESIDUAL_MAX)) as i32
}

/// The reciprocal of the root mean square of `d` values with this sum of squares.
pub fn reciprocal(squares: i64, d: usize) -> i64 {
    let mean = (squares << (2 * ROOT_BITS)) / d as i64;
    (1i64 << RECIPROCAL_BITS) / mean.isqrt().max(1)
}

/// One value of a root-mean-square normalisation.
pub fn normalise(value: i32, gain: i32, reciprocal: i64) -> i8 {
    let product = i64::from(value) * i64::from(gain) * reciprocal;
    activation((product + (1 << (NORM_BITS - 1))) >> NORM_BITS)
}

/// A hidden value of a feed-forward layer with ReLU.
pub fn relu(sum: i32, scale: i32) -> i8 {
    rescale(sum, scale).clamp(0, i64::from(ACT_MAX)) as i8
}

/// A hidden value of a feed-forward layer with squared ReLU: 181^2 / 256 is just below 128.
pub fn squared_relu(sum: i32, scale: i32) -> i8 {
    let root = rescale(sum, scale).clamp(0, SQUARE_ROOT_MAX);
    ((root * root + SQUARE_HALF) >> SQUARE_BITS).min(i64::from(ACT_MAX)) as i8
}
pub const SQUARE_ROOT_MAX: i64 = 181;
pub const SQUARE_BITS: u32 = 8;
pub const SQUARE_HALF: i64 = 1 << (SQUARE_BITS - 1);

/// The output of an attention: the mean of values under weights that add up to `total`, times a gain.
pub fn context(sum: i32, total: i32, gain: i32) -> i8 {
    let total = i64::from(total.max(1));
    let twice = 2 * i64::from(sum) * i64::from(gain) + (total << CONTEXT_BITS);
    activation(twice.div_euclid(total << (CONTEXT_BITS + 1)))
}

/// Weights of an attention by distance from the best score: round(1023 * e^(-k/32)).
pub static ATTENTION_WEIGHTS: LazyLock<[i32; ATTENTION_REACH as usize + 1]> = LazyLock::new(|| {
    // e^(-1/32) in units of 2^-63, rounded down
    const DECAY: u128 = 8_939_598_712_059_420_229;
    const ONE: u128 = 1 << 63;
    let mut value = ONE;
    std::array::from_fn(|_| {
        let weight = (value * ATTENTION_ONE as u128 + ONE / 2) >> 63;
        value = (value * DECAY) >> 63;
        weight as i32
    })
});

/// The bucket of a relative position (Raffel et al. 2020): distances below half of the buckets have one
/// each, the others share the rest on a logarithmic scale. `ahead` is by how much the key lies behind the
/// query's position in the text; a decoder only looks back and has all buckets for that.
pub fn bucket(ahead: i64, bidirectional: bool, buckets: usize, max_distance: usize) -> usize {
    let (first, buckets) = match bidirectional {
        true if ahead > 0 => (buckets / 2, buckets / 2),
        true => (0, buckets / 2),
        false => (0, buckets),
    };
    let distance = match bidirectional {
        true => ahead.unsigned_abs() as usize,
        false => (-ahead).max(0) as usize,
    };
    let exact = buckets / 2;
    if distance < exact {
        return first + distance;
    }
    // log(distance / exact) / log(max_distance / exact), in logarithms of base two with 32 bits
    let spread = log2(max_distance as u64) - log2(exact as u64);
    let beyond = log2(distance as u64) - log2(exact as u64);
    let share = (beyond * (buckets - exact) as u64).checked_div(spread);
    let share = share.map_or(buckets - exact, |share| share as usize);
    first + (exact + share).min(buckets - 1)
}

/// The logarithm of a positive number in units of 2^-32, rounded down, by repeated squaring.
pub fn log2(value: u64) -> u64 {
    let whole = value.max(1).ilog2();
    let mut mantissa = u128::from(value.max(1)) << (63 - whole);
    let mut result = u64::from(whole);
    for _ in 0..32 {
        mantissa = (mantissa * mantissa) >> 63;
        let bit = (mantissa >> 64) as u64 & 1;
        mantissa >>= bit;
        result = result << 1 | bit;
    }
    result
}

/// The row of an n-gram table for the last tokens, newest first.
pub fn ngram_slot(newest_first: impl Iterator<Item = u16>, slots: usize) -> usize {
    let mut hash = 0x9e37_79b9_7f4a_7c15u64;
    for token in newest_first {
        hash = (hash ^ u64::from(token)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 32;
    }
    (hash >> 16) as usize & (slots - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_weights_are_the_exponential_function_and_end_at_nothing() {
        for (k, &weight) in ATTENTION_WEIGHTS.iter().enumerate() {
            let exact = 1023.0 * (-(k as f64) / 32.0).exp();
            assert!((f64::from(weight) - exact).abs() <= 0.501, "{k}: {weight}");
        }
        assert_eq!(ATTENTION_WEIGHTS[0], ATTENTION_ONE);
        assert_eq!(ATTENTION_WEIGHTS[ATTENTION_REACH as usize], 0);
    }

    #[test]
    fn normalised_values_have_a_root_mean_square_of_thirty_two() {
        for scale in [3, 40, 1000, 20000] {
            let values: Vec<i32> = (0..64).map(|i| (i % 7 - 3) * scale / 3).collect();
            let squares: i64 = values.iter().map(|&x| i64::from(x) * i64::from(x)).sum();
            let r = reciprocal(squares, values.len());
            let out: Vec<f64> = values
                .iter()
                .map(|&x| f64::from(normalise(x, 2048, r)))
                .collect();
            let rms = (out.iter().map(|y| y * y).sum::<f64>() / out.len() as f64).sqrt();
            assert!((rms - 32.0).abs() < 1.0, "{rms} at scale {scale}");
        }
        assert_eq!(normalise(0, GAIN_MAX, reciprocal(0, 64)), 0);
    }

    #[test]
    fn buckets_are_those_of_t5() {
        // the formula of the paper's code, in floating point
        let reference = |back: usize, buckets: usize, far: usize| {
            let exact = buckets / 2;
            if back < exact {
                return back;
            }
            let share = (back as f64 / exact as f64).ln() / (far as f64 / exact as f64).ln();
            (exact + (share * (buckets - exact) as f64) as usize).min(buckets - 1)
        };
        for back in 0..300 {
            let expected = reference(back, 32, 128);
            assert_eq!(bucket(-(back as i64), false, 32, 128), expected, "{back}");
            let expected = reference(back, 16, 128);
            assert_eq!(bucket(-(back as i64), true, 32, 128), expected);
            let shift = if back > 0 { 16 } else { 0 };
            assert_eq!(bucket(back as i64, true, 32, 128), expected + shift);
        }
        assert_eq!(bucket(5, false, 32, 128), 0);
    }

    #[test]
    fn a_context_is_the_rounded_weighted_mean() {
        for (sum, total, gain) in [
            (0, 0, 256),
            (127 * 1023, 1023, 256),
            (-500_000, 40_000, 700),
        ] {
            let exact = f64::from(sum) * f64::from(gain) / f64::from(total.max(1)) / 256.0;
            let expected = (exact + 0.5).floor().clamp(-127.0, 127.0);
            assert_eq!(f64::from(context(sum, total, gain)), expected);
        }
    }
}

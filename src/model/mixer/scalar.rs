//! The sums and the learning of layer one, for any processor.

use super::{INPUTS, Inputs, STRETCH_MAX, learn_weight};

/// What a row of weights predicts, stretched.
#[inline(always)]
pub(super) fn stretched(row: &[i32; INPUTS], inputs: &Inputs) -> i32 {
    // |w >> 5| <= 2^13 and |x| <= 3071, so any partial sum of 32 stays below 2^30
    let terms = row.iter().zip(&inputs.0);
    let sum: i32 = terms.map(|(w, &x)| (w >> 5) * i32::from(x)).sum();
    (sum >> 11).clamp(-STRETCH_MAX, STRETCH_MAX)
}

/// Moves a row of weights; `error` as for [`learn_weight`].
#[inline(always)]
pub(super) fn learn(row: &mut [i32; INPUTS], inputs: &Inputs, error: i32) {
    for (weight, &input) in row.iter_mut().zip(&inputs.0) {
        learn_weight(weight, error, i32::from(input));
    }
}

//! The mixer: integer logistic mixing in two layers.
//!
//! Layer one has several sets of weight vectors; a small context picks one vector of each set.
//! Every picked vector makes a prediction of its own; layer two mixes these. All weights adapt within
//! a group, from values trained in advance. A model with a network has one more set, picked by what the
//! network knows. See docs/exactness.md for the bounds of the sums.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

use super::logistic::{Logistic, STRETCH_MAX};

/// Inputs of layer one, padded to whole SIMD registers.
pub const INPUTS: usize = 32;
/// Number of sets in layer one.
pub const SETS: usize = 4;
/// Vectors of each set.
pub const SET_SIZES: [usize; SETS] = [256, 256, 256, 256];

/// First vector of each set.
const SET_STARTS: [usize; SETS] = {
    let mut starts = [0; SETS];
    let mut i = 1;
    while i < SETS {
        starts[i] = starts[i - 1] + SET_SIZES[i - 1];
        i += 1;
    }
    starts
};
/// Weight vectors of layer one, all sets together.
pub const VECTORS: usize = SET_STARTS[SETS - 1] + SET_SIZES[SETS - 1];
/// Weight vectors of layer two.
pub const FINAL_VECTORS: usize = 256;
/// Vectors of the network's set.
pub const NETWORK_VECTORS: usize = 256;

/// One is 2^16; weights stay within +-4.
pub const WEIGHT_MAX: i32 = 4 << 16;

/// The weights of both layers.
#[derive(Debug, PartialEq, Eq)]
pub struct Weights {
    pub first: Vec<[i32; INPUTS]>,
    pub last: Vec<[i32; SETS]>,
    /// The network's set, and its weights in layer two; empty in models without a network.
    pub network: Vec<[i32; INPUTS]>,
    pub last_network: Vec<i32>,
}

impl Clone for Weights {
    fn clone(&self) -> Weights {
        Weights {
            first: self.first.clone(),
            last: self.last.clone(),
            network: self.network.clone(),
            last_network: self.last_network.clone(),
        }
    }

    /// In the memory that is there.
    fn clone_from(&mut self, source: &Weights) {
        self.first.clone_from(&source.first);
        self.last.clone_from(&source.last);
        self.network.clone_from(&source.network);
        self.last_network.clone_from(&source.last_network);
    }
}

impl Default for Weights {
    fn default() -> Weights {
        Weights {
            first: vec![[(1 << 16) / 4; INPUTS]; VECTORS],
            last: vec![[(1 << 16) / SETS as i32; SETS]; FINAL_VECTORS],
            network: vec![],
            last_network: vec![],
        }
    }
}

impl Weights {
    /// Weights with a set for the network.
    pub fn with_network() -> Weights {
        let sets = SETS as i32 + 1;
        Weights {
            last: vec![[(1 << 16) / sets; SETS]; FINAL_VECTORS],
            network: vec![[(1 << 16) / 4; INPUTS]; NETWORK_VECTORS],
            last_network: vec![(1 << 16) / sets; FINAL_VECTORS],
            ..Weights::default()
        }
    }
}

/// How fast the weights follow: a rate r adds r * 2^-22 * error * input, in units of the weights.
/// Rates are at most [`RATE_MAX`], so that no product overflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    pub first: i32,
    pub last: i32,
}

/// Largest rate.
pub const RATE_MAX: i32 = 1023;

/// A prediction under way, from `mix` to `update`.
#[derive(Debug, Clone, Default)]
pub struct Mix {
    picked: [usize; SETS],
    stretched: [i32; SETS],
    final_vector: usize,
    /// The vector of the network's set, and its prediction.
    network: usize,
    network_stretched: i32,
}

/// What the experts say of a decision, stretched.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
pub(super) struct Inputs([i16; INPUTS]);

impl Inputs {
    /// Inputs of these values, each within +-3071. With `SIMD` they are put together in registers: what is stored in
    /// small parts cannot soon be loaded as a whole. It may only be set where the processor has AVX2.
    #[inline(always)]
    pub(super) fn of<const SIMD: bool>(values: [[i16; 8]; INPUTS / 8]) -> Inputs {
        #[cfg(target_arch = "x86_64")]
        if SIMD {
            // SAFETY: `SIMD` is only set where the processor has AVX2.
            return unsafe { avx2::pack(&values) };
        }
        let mut inputs = [0; INPUTS];
        inputs.copy_from_slice(values.as_flattened());
        Inputs(inputs)
    }
}

/// The sum of a smaller mixer.
#[inline(always)]
pub(super) fn small_dot<const N: usize>(weights: &[i32; N], inputs: &[i32; N]) -> i32 {
    const { assert!(N <= INPUTS) };
    let terms = weights.iter().zip(inputs).map(|(w, x)| (w >> 5) * x);
    (terms.sum::<i32>() >> 11).clamp(-STRETCH_MAX, STRETCH_MAX)
}

/// Moves one weight; `error` is a difference of probabilities times a rate, divided by 2^8.
#[inline(always)]
pub(super) fn learn_weight(weight: &mut i32, error: i32, input: i32) {
    *weight = (*weight + ((input * error + (1 << 13)) >> 14)).clamp(-WEIGHT_MAX, WEIGHT_MAX);
}

impl Weights {
    /// Mixes `inputs` into a stretched prediction. With a network, its set takes part with the vector `network`. `SIMD`
    /// only where the processor has AVX2; what comes of it is the same. `LEAN` only where the last eight inputs are zero.
    #[inline(always)]
    pub(super) fn mix<const SIMD: bool, const LEAN: bool>(
        &self,
        inputs: &Inputs,
        selectors: &[usize; SETS],
        network: Option<usize>,
        last: usize,
        mix: &mut Mix,
    ) -> i32 {
        mix.final_vector = last & (FINAL_VECTORS - 1);
        for (set, picked) in mix.picked.iter_mut().enumerate() {
            *picked = SET_STARTS[set] + selectors[set] % SET_SIZES[set];
        }
        let [a, b, c, d] = mix.picked;
        let first = &self.first;
        let rows = [&first[a], &first[b], &first[c], &first[d]];
        mix.stretched = rows_stretched::<SIMD, LEAN>(rows, inputs);
        let finals = &self.last[mix.final_vector];
        let terms = finals.iter().zip(mix.stretched);
        let mut sum: i32 = terms.map(|(weight, x)| (weight >> 3) * x).sum();
        if let Some(vector) = network {
            mix.network = vector % NETWORK_VECTORS;
            let x = scalar::stretched(&self.network[mix.network], inputs);
            mix.network_stretched = x;
            sum += (self.last_network[mix.final_vector] >> 3) * x;
        }
        (sum >> 13).clamp(-STRETCH_MAX, STRETCH_MAX)
    }

    /// Moves the picked weights towards what would have predicted `bit`; `p` is what was predicted, with a
    /// network or without. `SIMD` and `LEAN` as for [`Weights::mix`].
    #[inline(always)]
    pub(super) fn update<const SIMD: bool, const LEAN: bool, const NETWORK: bool>(
        &mut self,
        inputs: &Inputs,
        mix: &Mix,
        (p, bit): (u16, u32),
        rates: Rates,
        logistic: Logistic,
    ) {
        let target = (bit as i32) << 16;
        let own = |x: i32| ((target - i32::from(logistic.squash(x))) * rates.first) >> 8;
        let error = ((target - i32::from(p)) * rates.last) >> 8;
        learn_last::<SIMD>(&mut self.last[mix.final_vector], mix.stretched, error);
        let first = &mut self.first;
        let network = match NETWORK {
            true => {
                let x = mix.network_stretched;
                learn_weight(&mut self.last_network[mix.final_vector], error, x);
                Some((&mut self.network[mix.network], own(x)))
            }
            false => None,
        };
        #[cfg(target_arch = "x86_64")]
        if SIMD && rates.first <= avx2::RATE_MAX {
            // SAFETY: `SIMD` is only set where the processor has AVX2.
            unsafe {
                let pairs = avx2::pairs(inputs);
                for (&vector, x) in mix.picked.iter().zip(mix.stretched) {
                    match LEAN {
                        true => avx2::learn::<3>(&mut first[vector], &pairs, own(x)),
                        false => avx2::learn::<4>(&mut first[vector], &pairs, own(x)),
                    }
                }
                if let Some((row, error)) = network {
                    avx2::learn::<4>(row, &pairs, error);
                }
            }
            return;
        }
        for (&vector, x) in mix.picked.iter().zip(mix.stretched) {
            scalar::learn(&mut first[vector], inputs, own(x));
        }
        if let Some((row, error)) = network {
            scalar::learn(row, inputs, error);
        }
    }
}

/// Moves weights of layer two. `SIMD` only where the processor has AVX2.
#[inline(always)]
fn learn_last<const SIMD: bool>(row: &mut [i32; SETS], inputs: [i32; SETS], error: i32) {
    #[cfg(target_arch = "x86_64")]
    if SIMD {
        // SAFETY: `SIMD` is only set where the processor has AVX2.
        return unsafe { avx2::learn_last(row, inputs, error) };
    }
    for (weight, x) in row.iter_mut().zip(inputs) {
        learn_weight(weight, error, x);
    }
}

/// What the rows predict.
#[inline(always)]
fn rows_stretched<const SIMD: bool, const LEAN: bool>(
    rows: [&[i32; INPUTS]; SETS],
    inputs: &Inputs,
) -> [i32; SETS] {
    #[cfg(target_arch = "x86_64")]
    if SIMD {
        // SAFETY: `SIMD` is only set where the processor has AVX2.
        return unsafe {
            match LEAN {
                true => avx2::stretched::<3>(rows, inputs),
                false => avx2::stretched::<4>(rows, inputs),
            }
        };
    }
    rows.map(|row| scalar::stretched(row, inputs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::predictor::has_avx2;
    use proptest::prelude::*;

    /// Values of which many are the largest and smallest that may be.
    fn extreme(most: i32) -> impl Strategy<Value = i32> {
        prop_oneof![Just(most), Just(-most), Just(0), -most..=most]
    }

    fn inputs() -> impl Strategy<Value = [[i16; 8]; INPUTS / 8]> {
        let row = prop::array::uniform8(extreme(STRETCH_MAX).prop_map(|x| x as i16));
        prop::array::uniform4(row)
    }

    fn weights() -> impl Strategy<Value = Weights> {
        let row = prop::array::uniform32(extreme(WEIGHT_MAX));
        let rows = prop::collection::vec(row, SETS);
        rows.prop_map(|rows| {
            let mut weights = Weights::with_network();
            for (set, row) in rows.into_iter().enumerate() {
                weights.first[SET_STARTS[set] + 7] = row;
                weights.network[5] = row;
            }
            weights
        })
    }

    fn learned<const SIMD: bool, const LEAN: bool>(
        mut weights: Weights,
        values: [[i16; 8]; INPUTS / 8],
        (p, bit): (u16, u32),
        first: i32,
    ) -> (i32, Weights) {
        let (inputs, mut mix) = (Inputs::of::<SIMD>(values), Mix::default());
        assert_eq!(inputs.0, values.as_flattened());
        let x = weights.mix::<SIMD, LEAN>(&inputs, &[7; SETS], Some(5), 9, &mut mix);
        let (rates, logistic) = (Rates { first, last: 12 }, Logistic::default());
        weights.update::<SIMD, LEAN, true>(&inputs, &mix, (p, bit), rates, logistic);
        (x, weights)
    }

    proptest! {
        #[test]
        fn registers_and_single_numbers_give_the_same(
            weights in weights(),
            values in inputs(),
            seen in (1u16..=65535, 0u32..2),
            first in prop_oneof![0..=RATE_MAX, Just(100), Just(127), Just(128)],
        ) {
            if has_avx2() {
                let (x, after) = learned::<true, false>(weights.clone(), values, seen, first);
                let expected = learned::<false, false>(weights.clone(), values, seen, first);
                prop_assert_eq!(x, expected.0);
                prop_assert!(after == expected.1);
                let [a, b, c, _] = values;
                let values = [a, b, c, [0; 8]];
                let (x, after) = learned::<true, true>(weights.clone(), values, seen, first);
                let expected = learned::<false, true>(weights, values, seen, first);
                prop_assert_eq!(x, expected.0);
                prop_assert!(after == expected.1);
            }
        }
    }
}

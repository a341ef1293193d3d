//! From logits to the odds of binary decisions, in integers (docs/exactness.md, "From logits to decisions").
//!
//! The symbols of a head get masses in proportion to e^logit. A decision parts a range of symbols in two,
//! and its log-odds are the difference of the logarithms of the two parts' masses.

use std::sync::LazyLock;

use super::logistic::{DECAY, ONE, STRETCH_MAX};
use super::network::exact::log2;

/// The mass of the likeliest symbol is 2^20, and none has less than 1.
const MASS_BITS: u32 = 20;
/// Logits are in units of 1/256 nat; 2^20 * e^(-3549/256) is the first below 1.
const REACH: usize = 3549;
/// Bits of a mass, behind its highest, that its logarithm goes by.
const MANTISSA_BITS: u32 = 11;
/// ln 2 in units of 2^-16, and in units of 2^-32.
const LN2: i32 = 45426;
const LN2_FINE: u128 = 2_977_044_472;

struct Tables {
    masses: [u32; REACH + 1],
    /// ln of 1 to 2 in units of 2^-16, in the middle of each step.
    logarithms: [i32; 1 << MANTISSA_BITS],
}

static TABLES: LazyLock<Box<Tables>> = LazyLock::new(|| Box::new(build()));

fn build() -> Tables {
    let mut power = ONE;
    let masses = std::array::from_fn(|_| {
        let mass = ((power << MASS_BITS) + ONE / 2) >> 63;
        power = (power * DECAY) >> 63;
        mass.max(1) as u32
    });
    let logarithms = std::array::from_fn(|step| {
        let steps = 1u64 << MANTISSA_BITS;
        let binary = log2(2 * (steps + step as u64) + 1) - (u64::from(MANTISSA_BITS + 1) << 32);
        ((u128::from(binary) * LN2_FINE) >> 48) as i32
    });
    Tables { masses, logarithms }
}

/// The natural logarithm of a mass of at least 1, in units of 2^-16.
fn ln(tables: &Tables, mass: u64) -> i32 {
    // at most 2^36, so the exponent is at most 36 and the sum below 37 * 45426 < 2^21
    let exponent = mass.ilog2();
    let mantissa = match exponent.checked_sub(MANTISSA_BITS) {
        Some(shift) => mass >> shift,
        None => mass << (MANTISSA_BITS - exponent),
    };
    let step = mantissa as usize & ((1 << MANTISSA_BITS) - 1);
    exponent as i32 * LN2 + tables.logarithms[step]
}

/// The masses of the symbols of one head, added up.
#[derive(Debug, Clone, Default)]
pub struct Masses {
    /// Mass of all symbols before each, and of all.
    sums: Vec<u64>,
}

impl Masses {
    /// Takes the masses of symbols with these logits, at most 65,536 of them.
    pub fn fill(&mut self, logits: &[i32]) {
        let tables = &*TABLES;
        let best = logits.iter().copied().max().unwrap_or(0);
        let mut sum = 0u64;
        self.sums.clear();
        self.sums.push(0);
        self.sums.extend(logits.iter().map(|&logit| {
            // logits are within +-2^27, so the difference fits
            let below = ((best - logit) as usize).min(REACH);
            sum += u64::from(tables.masses[below]);
            sum
        }));
    }

    /// Mass of a range of symbols.
    pub fn of(&self, symbols: std::ops::Range<usize>) -> u64 {
        self.sums[symbols.end] - self.sums[symbols.start]
    }

    /// Log-odds of the symbols `middle..high` against `low..middle`, both not empty: stretched, that is in
    /// units of 1/256 nat within +-[`STRETCH_MAX`].
    #[inline]
    pub fn odds(&self, low: usize, middle: usize, high: usize) -> i32 {
        let tables = &*TABLES;
        let (upper, lower) = (self.of(middle..high), self.of(low..middle));
        let x = (ln(tables, upper) - ln(tables, lower) + (1 << 7)) >> 8;
        x.clamp(-STRETCH_MAX, STRETCH_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn masses_are_the_exponential_function() {
        let tables = build();
        for (k, &mass) in tables.masses.iter().enumerate() {
            let exact = f64::from(1 << MASS_BITS) * (-(k as f64) / 256.0).exp();
            assert!(
                (f64::from(mass) - exact).abs() <= 0.501,
                "{k}: {mass}, exact {exact}"
            );
        }
        assert_eq!(
            (tables.masses[0], tables.masses[REACH]),
            (1 << MASS_BITS, 1)
        );
    }

    #[test]
    fn logarithms_are_those_of_masses() {
        let tables = build();
        for mass in (1..5000).chain((13..37).flat_map(|e| [(1 << e) - 1, 1 << e, (1 << e) + 77])) {
            let exact = 65536.0 * (mass as f64).ln();
            let found = f64::from(ln(&tables, mass));
            // half a step of the mantissa is 16 units, and ln 2 is a sixth of a unit off
            assert!(
                (found - exact).abs() <= 24.0,
                "{mass}: {found}, exact {exact}"
            );
        }
    }

    proptest! {
        #[test]
        fn odds_are_the_ratio_of_two_masses(
            logits in prop::collection::vec(-(1i32 << 29)..(1 << 29), 2..40),
            near in prop::collection::vec(-3000i32..3000, 2..40),
            at in 0.0..1.0f64,
        ) {
            for logits in [logits, near] {
                let mut masses = Masses::default();
                masses.fill(&logits);
                let middle = 1 + ((logits.len() - 1) as f64 * at) as usize;
                let middle = middle.min(logits.len() - 1);
                let (lower, upper) = (masses.of(0..middle), masses.of(middle..logits.len()));
                prop_assert!(lower > 0 && upper > 0);
                let exact = 256.0 * (upper as f64 / lower as f64).ln();
                let exact = exact.clamp(-f64::from(STRETCH_MAX), f64::from(STRETCH_MAX));
                let found = f64::from(masses.odds(0, middle, logits.len()));
                prop_assert!((found - exact).abs() <= 1.0, "{} instead of {}", found, exact);
            }
        }
    }
}

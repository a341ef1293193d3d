//! The logistic functions as integer tables, computed without floating point (exactness law).
//!
//! *Stretched* values are log-odds ln(p / (1 - p)) in units of 1/256, within +-[`STRETCH_MAX`].
//! Probabilities are those of a one bit, in units of 2^-16, within 1..=65535.

use std::sync::LazyLock;

/// Largest magnitude of a stretched value: 12 nats.
pub const STRETCH_MAX: i32 = 3071;

/// e^(-1/256) in units of 2^-63.
pub(super) const DECAY: u128 = 9187413517043429148;
pub(super) const ONE: u128 = 1 << 63;

const SQUASH_LEN: usize = (2 * STRETCH_MAX + 2) as usize;

struct Tables {
    squash: [u16; SQUASH_LEN],
    stretch: [i16; 4096],
}

static TABLES: LazyLock<Box<Tables>> = LazyLock::new(|| Box::new(build()));

fn build() -> Tables {
    let mut tables = Tables {
        squash: [0; SQUASH_LEN],
        stretch: [0; 4096],
    };
    let mut power = ONE;
    for k in 0..=STRETCH_MAX {
        let p = ((ONE << 16) / (ONE + power)).clamp(1, 65535) as u16;
        tables.squash[(STRETCH_MAX + k) as usize] = p;
        tables.squash[(STRETCH_MAX - k) as usize] = (65536 - u32::from(p)).min(65535) as u16;
        power = (power * DECAY) >> 63;
    }
    let mut value = -STRETCH_MAX;
    for (index, stretched) in tables.stretch.iter_mut().enumerate() {
        let middle = (index * 16 + 8) as u16;
        while value < STRETCH_MAX && tables.squash[(value + STRETCH_MAX) as usize] < middle {
            value += 1;
        }
        *stretched = value as i16;
    }
    tables
}

/// The two tables, fetched once by whoever evaluates them often.
#[derive(Clone, Copy)]
pub struct Logistic {
    squash: &'static [u16; SQUASH_LEN],
    stretch: &'static [i16; 4096],
}

impl std::fmt::Debug for Logistic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Logistic")
    }
}

impl Default for Logistic {
    fn default() -> Logistic {
        let tables: &'static Tables = &TABLES;
        Logistic {
            squash: &tables.squash,
            stretch: &tables.stretch,
        }
    }
}

impl Logistic {
    /// The probability with the log-odds `x`, which is clamped.
    #[inline(always)]
    pub fn squash(&self, x: i32) -> u16 {
        self.squash[(x.clamp(-STRETCH_MAX, STRETCH_MAX) + STRETCH_MAX) as usize]
    }

    /// The log-odds of a probability, to 12 bits of it.
    #[inline(always)]
    pub fn stretch(&self, p: u16) -> i16 {
        self.stretch[(p >> 4) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squash_is_the_logistic_function() {
        let logistic = Logistic::default();
        for x in -STRETCH_MAX..=STRETCH_MAX {
            let exact = 65536.0 / (1.0 + (-f64::from(x) / 256.0).exp());
            let p = f64::from(logistic.squash(x));
            assert!((p - exact).abs() <= 1.5, "squash({x}) = {p}, exact {exact}");
        }
    }

    #[test]
    fn stretch_inverts_squash() {
        let logistic = Logistic::default();
        for p in (8u32..65536).step_by(16) {
            let x = i32::from(logistic.stretch(p as u16));
            assert!(u32::from(logistic.squash(x)) + 1 >= p);
            assert!(x == -STRETCH_MAX || u32::from(logistic.squash(x - 1)) <= p);
        }
    }
}

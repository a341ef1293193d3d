//! How a cost grows: a power law through the points, by least squares on logarithms.

use serde::Serialize;

/// Growth in words, by the exponent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Growth {
    Flat,
    Sublinear,
    Linear,
    /// From 1,000 to 1,000,000 items, n log n has an exponent of 1.1.
    NLogN,
    Superlinear,
}

impl Growth {
    /// The growth that an exponent stands for.
    pub fn of(exponent: f64) -> Growth {
        match exponent {
            e if e < 0.1 => Growth::Flat,
            e if e < 0.9 => Growth::Sublinear,
            e if e <= 1.05 => Growth::Linear,
            e if e <= 1.2 => Growth::NLogN,
            _ => Growth::Superlinear,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Growth::Flat => "flat",
            Growth::Sublinear => "sublinear",
            Growth::Linear => "linear",
            Growth::NLogN => "n log n",
            Growth::Superlinear => "superlinear",
        }
    }
}

/// The power law value = c * size^exponent that fits some points best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fit {
    pub exponent: f64,
    /// Exponent between the two largest sizes, where fixed costs matter least.
    pub last_exponent: f64,
    /// Root mean square of the deviations from the law, in percent of the value.
    pub residual_percent: f64,
    pub growth: Growth,
}

impl Fit {
    /// A fit of (size, value), in ascending order of sizes; None for fewer than two sizes, or a value that is not positive.
    pub fn of(points: &[(f64, f64)]) -> Option<Fit> {
        let usable = points
            .iter()
            .all(|&(size, value)| size > 0.0 && value > 0.0);
        if points.len() < 2 || !usable {
            return None;
        }
        let logs: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (x.ln(), y.ln())).collect();
        let count = logs.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let spread: f64 = logs.iter().map(|p| (p.0 - x).powi(2)).sum();
        if spread == 0.0 {
            return None;
        }
        let exponent = logs.iter().map(|p| (p.0 - x) * (p.1 - y)).sum::<f64>() / spread;
        let off = |p: &(f64, f64)| (p.1 - y - exponent * (p.0 - x)).powi(2);
        let residual = (logs.iter().map(off).sum::<f64>() / count).sqrt();
        let [.., before, last] = logs.as_slice() else {
            return None;
        };
        Some(Fit {
            exponent,
            last_exponent: (last.1 - before.1) / (last.0 - before.0),
            residual_percent: 100.0 * (residual.exp() - 1.0),
            growth: Growth::of(exponent),
        })
    }

    /// The value at `size`, from a measured point on, at the pace of the largest sizes.
    pub fn extrapolate(&self, (from, value): (f64, f64), size: f64) -> f64 {
        value * (size / from).powf(self.last_exponent.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law(cost: impl Fn(f64) -> f64) -> Fit {
        let points: Vec<(f64, f64)> = [1e3, 1e4, 1e5, 1e6].map(|n| (n, cost(n))).to_vec();
        Fit::of(&points).unwrap()
    }

    #[test]
    fn laws_are_recognised_by_their_exponents() {
        for (growth, fit) in [
            (Growth::Flat, law(|_| 7.0)),
            (Growth::Sublinear, law(|n| 1e3 * n.sqrt())),
            (Growth::Linear, law(|n| 0.2 * n)),
            (Growth::NLogN, law(|n| n * n.ln())),
            (Growth::Superlinear, law(|n| n.powf(1.5))),
        ] {
            assert_eq!(fit.growth, growth, "{fit:?}");
        }
        let exact = law(|n| 3.0 * n * n);
        assert!((exact.exponent - 2.0).abs() < 1e-9 && exact.residual_percent < 1e-6);
        assert!((exact.extrapolate((1e6, 3e12), 1e7) - 3e14).abs() < 1e6);
    }

    #[test]
    fn a_fixed_cost_shows_in_the_residual_and_not_in_the_last_exponent() {
        let fit = law(|n| 1e4 + n);
        assert!(fit.exponent < 0.8 && fit.last_exponent > 0.9 && fit.residual_percent > 10.0);
    }

    #[test]
    fn what_cannot_be_fitted_is_not() {
        assert_eq!(Fit::of(&[(1.0, 2.0)]), None);
        assert_eq!(Fit::of(&[(1.0, 2.0), (1.0, 3.0)]), None);
        assert_eq!(Fit::of(&[(1.0, 0.0), (2.0, 3.0)]), None);
    }
}

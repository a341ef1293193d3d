//! Histograms of how long things take, that many threads add to without waiting for each other.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Buckets of each power of two, so that a bucket is at most a quarter as wide as its values are large.
const STEPS: u64 = 4;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Times from this power of two of microseconds on, about 71 minutes, share the last bucket.
const MOST_BITS: u32 = 32;
const BUCKETS: usize = (STEPS as usize) * (MOST_BITS - STEP_BITS + 1) as usize + 1;

/// Times in microseconds, rounded down. All operations are lock-free; a reader may see a time in the
/// buckets a moment before it sees it in the sum.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    longest: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            sum: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        }
    }
}

/// What a histogram held at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times {
    /// Buckets that hold anything, in order: the smallest number of microseconds that is past the
    /// bucket, and how many times fell into it.
    pub buckets: Vec<(u64, u64)>,
    pub count: u64,
    /// Sum of all times, in microseconds.
    pub sum: u64,
    /// The longest time, in microseconds.
    pub longest: u64,
}

impl Histogram {
    pub fn record(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket_of(micros)].fetch_add(1, Relaxed);
        self.sum.fetch_add(micros, Relaxed);
        self.longest.fetch_max(micros, Relaxed);
    }

    /// Records the time since `begun`.
    pub fn record_since(&self, begun: Instant) {
        self.record(begun.elapsed());
    }

    pub fn times(&self) -> Times {
        let mut times = Times {
            sum: self.sum.load(Relaxed),
            longest: self.longest.load(Relaxed),
            ..Times::default()
        };
        for (bucket, count) in self.counts.iter().enumerate() {
            let count = count.load(Relaxed);
            if count > 0 {
                times.buckets.push((end_of(bucket), count));
                times.count += count;
            }
        }
        times
    }
}

impl Times {
    /// An upper bound of the shortest `per_mille` thousandths of the times, in microseconds: the end of
    /// the bucket, or the longest time if that is shorter. 0 without any times.
    pub fn percentile(&self, per_mille: u64) -> u64 {
        let rank = (u128::from(self.count) * u128::from(per_mille)).div_ceil(1000);
        let mut seen = 0;
        for &(end, count) in &self.buckets {
            seen += u128::from(count);
            if seen >= rank.max(1) {
                return end.min(self.longest);
            }
        }
        0
    }
}

/// Values below [`STEPS`] have a bucket each; from there on a bucket has the same leading bits.
fn bucket_of(micros: u64) -> usize {
    if micros < STEPS {
        return micros as usize;
    }
    let power = micros.ilog2();
    if power >= MOST_BITS {
        return BUCKETS - 1;
    }
    let step = (micros >> (power - STEP_BITS)) - STEPS;
    (u64::from(power - STEP_BITS + 1) * STEPS + step) as usize
}

/// The smallest value that is past a bucket.
fn end_of(bucket: usize) -> u64 {
    let next = bucket as u64 + 1;
    if next <= STEPS {
        return next;
    }
    if bucket == BUCKETS - 1 {
        return u64::MAX;
    }
    let power = (next / STEPS - 1) as u32;
    (STEPS + next % STEPS) << power
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_value_lies_in_its_bucket_and_in_no_other(value: u64, small in 0u64..100_000) {
            for value in [value, small, value >> 20] {
                let bucket = bucket_of(value);
                prop_assert!(value < end_of(bucket) || value == u64::MAX);
                prop_assert!(bucket == 0 || end_of(bucket - 1) <= value);
            }
        }
    }

    #[test]
    fn buckets_follow_each_other_and_are_narrow() {
        for bucket in 1..BUCKETS - 1 {
            let (from, to) = (end_of(bucket - 1), end_of(bucket));
            assert!(from < to && (to - from == 1 || (to - from) * STEPS <= from));
            assert_eq!((bucket_of(from), bucket_of(to - 1)), (bucket, bucket));
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(end_of(BUCKETS - 2), 1 << MOST_BITS);
    }

    #[test]
    fn percentiles_bound_what_was_recorded_from_many_threads() {
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let histogram = &histogram;
                scope.spawn(move || {
                    for value in (thread..1000).step_by(4) {
                        histogram.record(Duration::from_micros(value));
                    }
                });
            }
        });
        let times = histogram.times();
        assert_eq!((times.count, times.longest), (1000, 999));
        assert_eq!(times.sum, 999 * 1000 / 2);
        for (per_mille, least) in [(500, 499), (900, 899), (990, 989), (1000, 999)] {
            let found = times.percentile(per_mille);
            assert!((least..=least + least / 4 + 1).contains(&found), "{found}");
        }
        assert_eq!(times.percentile(1000), 999);
        assert_eq!(Times::default().percentile(990), 0);
    }
}

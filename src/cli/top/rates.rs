//! Rates from the counters of two looks at a daemon, and their history.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Sample;
use crate::control::Status;

/// Rates that are kept for the sparklines.
const KEPT: usize = 512;

/// What happened between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Bytes per second.
    pub read: f64,
    pub written: f64,
    pub settled: f64,
    pub decoded: f64,
    /// Requests per second, in the order of [`crate::control::LatencyStatus::all`].
    pub requests: [f64; 5],
    /// Share of the cache's look-ups that found something, if there were any.
    pub hits: Option<f64>,
}

/// The last look, and the rates before it.
#[derive(Default)]
pub struct History {
    last: Option<(Instant, Status)>,
    pub rates: VecDeque<Rates>,
    /// Why the daemon did not answer the last time.
    pub silence: Option<String>,
    /// When it was last heard of, or of its failure.
    heard: Option<Instant>,
}

impl History {
    pub fn add(&mut self, sample: Sample) {
        self.hear(sample.at);
        let status = match sample.status {
            Ok(status) => status,
            Err(why) => {
                self.silence = Some(why);
                return;
            }
        };
        self.silence = None;
        match &self.last {
            Some((before, old)) if old.pid == status.pid => {
                let seconds = sample.at.duration_since(*before).as_secs_f64();
                if self.rates.len() == KEPT {
                    self.rates.pop_front();
                }
                self.rates.push_back(Rates::between(old, &status, seconds));
            }
            // Another daemon counts from the beginning.
            _ => self.rates.clear(),
        }
        self.last = Some((sample.at, status));
    }

    /// Takes note that something was heard, and no more.
    pub fn hear(&mut self, at: Instant) {
        self.heard = Some(at);
    }

    /// Takes note that nothing was heard until `now`. True if that is longer than `patience`, and says so.
    pub fn miss(&mut self, now: Instant, patience: Duration) -> bool {
        let quiet = self.heard.map(|at| now.saturating_duration_since(at));
        let Some(quiet) = quiet.filter(|quiet| *quiet > patience) else {
            return false;
        };
        self.silence = Some(format!("nothing for {:.0} s", quiet.as_secs_f64()));
        true
    }

    pub fn status(&self) -> Option<&Status> {
        self.last.as_ref().map(|(_, status)| status)
    }

    pub fn now(&self) -> Rates {
        self.rates.back().copied().unwrap_or_default()
    }
}

impl Rates {
    fn between(old: &Status, new: &Status, seconds: f64) -> Rates {
        let per_second = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds.max(1e-3);
        let hits = new.cache.hits.saturating_sub(old.cache.hits);
        let misses = new.cache.misses.saturating_sub(old.cache.misses);
        let (before, after) = (old.latency.all(), new.latency.all());
        Rates {
            read: per_second(old.io.read_bytes, new.io.read_bytes),
            written: per_second(old.io.written_bytes, new.io.written_bytes),
            settled: per_second(old.settle.settled_bytes, new.settle.settled_bytes),
            decoded: per_second(old.io.decoded_bytes, new.io.decoded_bytes),
            requests: std::array::from_fn(|n| per_second(before[n].1.count, after[n].1.count)),
            hits: (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn status(pid: u32, read: u64, hits: u64) -> Status {
        let mut status = Status {
            pid: Some(pid),
            ..Status::default()
        };
        status.io.read_bytes = read;
        status.cache.hits = hits;
        status.cache.misses = hits / 3;
        status.latency.write.count = read / 10;
        status
    }

    #[test]
    fn rates_are_differences_and_begin_afresh_with_another_daemon() {
        let start = Instant::now();
        let mut history = History::default();
        let add = |history: &mut History, seconds, status| {
            let at = start + Duration::from_secs(seconds);
            history.add(Sample { at, status });
        };
        add(&mut history, 0, Ok(status(1, 1000, 0)));
        assert_eq!(history.now(), Rates::default());
        add(&mut history, 2, Ok(status(1, 5000, 30)));
        assert_eq!(history.now().read, 2000.0);
        assert_eq!(history.now().requests[2], 200.0);
        assert_eq!(history.now().hits, Some(0.75));
        add(&mut history, 3, Err("gone".into()));
        assert_eq!(history.silence.as_deref(), Some("gone"));
        assert_eq!(history.status().map(|s| s.io.read_bytes), Some(5000));
        add(&mut history, 4, Ok(status(1, 5000, 30)));
        assert_eq!(
            (history.silence.as_deref(), history.now().hits),
            (None, None)
        );
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!history.miss(at(7), Duration::from_secs(3)));
        assert_eq!(history.silence, None);
        assert!(history.miss(at(9), Duration::from_secs(3)));
        assert_eq!(history.silence.as_deref(), Some("nothing for 5 s"));
        add(&mut history, 5, Ok(status(2, 7, 0)));
        assert_eq!(history.silence, None);
        assert_eq!(history.rates.len(), 0);
        for second in 0..2 * KEPT as u64 {
            add(&mut history, 6 + second, Ok(status(2, second, 0)));
        }
        assert_eq!(history.rates.len(), KEPT);
    }
}

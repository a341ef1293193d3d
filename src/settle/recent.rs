//! Which windows were written lately, and how often settling them was in vain.

use super::Window;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// Windows that are remembered; an older one counts as quiet.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();
/// Each settling in vain doubles the wait, this many times at most.
const MAX_DOUBLINGS: u32 = 6;
/// Failures after which a window is left alone, unless settling is forced.
const MAX_FAILURES: u32 = 3;

#[derive(Debug, Clone, Copy)]
struct Entry {
    touched: Instant,
    /// Settled since it was touched.
    settled: bool,
    /// How often it was written again soon after it had been settled.
    rewrites: u32,
    failures: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Recent {
    windows: LruCache<Window, Entry>,
    settle_after: Duration,
}

impl Recent {
    pub fn new(settle_after: Duration) -> Recent {
        Recent {
            windows: LruCache::new(REMEMBERED),
            settle_after,
        }
    }

    pub fn set_settle_after(&mut self, settle_after: Duration) {
        self.settle_after = settle_after;
    }

    pub fn touched(&mut self, window: Window) {
        self.touched_at(window, Instant::now());
    }

    fn touched_at(&mut self, window: Window, now: Instant) {
        let entry = self.entry(window);
        if entry.settled {
            entry.rewrites = (entry.rewrites + 1).min(MAX_DOUBLINGS);
        }
        entry.settled = false;
        entry.failures = 0;
        entry.touched = now;
    }

    pub fn settled(&mut self, window: Window) {
        if let Some(entry) = self.windows.get_mut(&window) {
            entry.settled = true;
        }
    }

    pub fn failed(&mut self, window: Window) {
        self.entry(window).failures += 1;
    }

    fn entry(&mut self, window: Window) -> &mut Entry {
        self.windows.get_or_insert_mut(window, || Entry {
            touched: Instant::now(),
            settled: false,
            rewrites: 0,
            failures: 0,
        })
    }

    /// Whether a window has been left alone for long enough.
    pub fn is_quiet(&self, window: Window) -> bool {
        self.is_quiet_at(window, Instant::now())
    }

    fn is_quiet_at(&self, window: Window, now: Instant) -> bool {
        match self.windows.peek(&window) {
            None => true,
            Some(entry) => {
                entry.failures < MAX_FAILURES
                    && now.saturating_duration_since(entry.touched)
                        >= self.settle_after * (1 << entry.rewrites)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_is_rewritten_after_settling_waits_twice_as_long() {
        let window = Window { ino: 1, offset: 0 };
        let second = Duration::from_secs(1);
        let mut recent = Recent::new(second);
        let begun = Instant::now();
        assert!(recent.is_quiet_at(window, begun));
        recent.touched_at(window, begun);
        assert!(!recent.is_quiet_at(window, begun + second / 2));
        let settled = begun + second;
        assert!(recent.is_quiet_at(window, settled));
        recent.settled(window);
        recent.touched_at(window, settled);
        assert!(!recent.is_quiet_at(window, settled + second));
        assert!(recent.is_quiet_at(window, settled + 2 * second));
    }
}

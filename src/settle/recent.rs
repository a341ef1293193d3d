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

    pub fn touched(&mut self, window: Window) {
        let entry = self.entry(window);
        if entry.settled {
            entry.rewrites = (entry.rewrites + 1).min(MAX_DOUBLINGS);
        }
        entry.settled = false;
        entry.failures = 0;
        entry.touched = Instant::now();
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
        match self.windows.peek(&window) {
            None => true,
            Some(entry) => {
                entry.failures < MAX_FAILURES
                    && entry.touched.elapsed() >= self.settle_after * (1 << entry.rewrites)
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
        let mut recent = Recent::new(Duration::from_millis(20));
        assert!(recent.is_quiet(window));
        recent.touched(window);
        assert!(!recent.is_quiet(window));
        std::thread::sleep(Duration::from_millis(25));
        assert!(recent.is_quiet(window));
        recent.settled(window);
        recent.touched(window);
        std::thread::sleep(Duration::from_millis(25));
        assert!(!recent.is_quiet(window));
        std::thread::sleep(Duration::from_millis(20));
        assert!(recent.is_quiet(window));
    }
}

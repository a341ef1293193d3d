//! Reclaiming on demand, and what reclaiming has done since the mount.

use super::{Result, Volume, VolumeError};
use crate::control::ReclaimStatus;
use crate::store::{Reclaim, ReclaimReport};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// A segment of which less than this is dead is left alone even when somebody waits for space.
const MIN_DEAD_PERCENT: u8 = 10;
/// Live bytes that one round copies; progress is told between rounds.
const ROUND: u64 = 64 << 20;
/// How often it is looked whether the store can be reclaimed, while somebody holds it.
const RETRY: Duration = Duration::from_millis(100);

/// What reclaiming has done.
#[derive(Debug, Default)]
pub struct Reclaimed {
    running: AtomicUsize,
    freed: AtomicU64,
    copied: AtomicU64,
}

impl Reclaimed {
    pub fn status(&self) -> ReclaimStatus {
        ReclaimStatus {
            running: self.running.load(Relaxed) > 0,
            freed_bytes: self.freed.load(Relaxed),
            copied_bytes: self.copied.load(Relaxed),
        }
    }
}

impl Volume {
    /// Gives back the space of everything that no file needs, down to segments of which less than a
    /// tenth is dead. `progress` gets bytes given back and the dead bytes there were. Settling and
    /// writing go on meanwhile. Waits while the store is held, as long as it is being sent.
    pub fn reclaim(&self, progress: &dyn Fn(u64, u64)) -> Result<ReclaimReport> {
        self.writable()?;
        if self.frozen().is_some() {
            return Err(VolumeError::Frozen);
        }
        let dead = self.store()?.usage()?.dead_bytes;
        let mut all = ReclaimReport::default();
        while !self.is_stopping() {
            let round = self.reclaim_once(Reclaim {
                max_copy_bytes: ROUND,
                min_dead_percent: MIN_DEAD_PERCENT,
            })?;
            // Without a pass, so that a freeze need not wait for whoever holds the store.
            let Some(round) = round else {
                progress(all.bytes_freed.saturating_sub(all.bytes_copied), dead);
                std::thread::sleep(RETRY);
                continue;
            };
            all.segments_dropped += round.segments_dropped;
            all.bytes_freed += round.bytes_freed;
            all.bytes_copied += round.bytes_copied;
            progress(all.bytes_freed.saturating_sub(all.bytes_copied), dead);
            if round.bytes_freed <= round.bytes_copied {
                break;
            }
        }
        Ok(all)
    }

    /// One round of reclaiming, counted. `None` if the store is held.
    pub(super) fn reclaim_once(&self, want: Reclaim) -> Result<Option<ReclaimReport>> {
        let _pass = self.gate.enter()?;
        self.reclaimed.running.fetch_add(1, Relaxed);
        let report = self.store().and_then(|store| Ok(store.try_reclaim(want)?));
        self.reclaimed.running.fetch_sub(1, Relaxed);
        let report = report?;
        if let Some(report) = &report {
            self.reclaimed.freed.fetch_add(report.bytes_freed, Relaxed);
            let copied = &self.reclaimed.copied;
            copied.fetch_add(report.bytes_copied, Relaxed);
        }
        Ok(report)
    }
}

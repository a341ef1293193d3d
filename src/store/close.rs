//! Closing a store: everything durable, and as little as possible left on disk.

use super::engine::{CHECKPOINT_LEVEL, Maintenance, Store};
use super::index::Index;
use super::{Reclaim, ReclaimReport, Result};

/// Segments of which this share is dead are copied out at close, within [`CLOSE_COPY`].
const CLOSE_DEAD_PERCENT: u8 = 25;
const CLOSE_COPY: u64 = 32 << 20;

impl Store {
    /// Makes everything durable and leaves the store small and quick to open. Nothing can be changed
    /// afterwards. A store that is dropped without this is recovered at the next opening.
    ///
    /// Only the sync must succeed. The rest saves space and time, and a full disk may prevent it.
    pub fn close(&self) -> Result<()> {
        if self.log.read_only || self.log.is_closed() {
            return Ok(());
        }
        self.sync()?;
        self.space.release_reserve(&*self.log.storage);
        let mut maintenance = self.maintenance.lock();
        if let Err(error) = self.tidy(&mut maintenance) {
            log::warn!("the store is safe, but could not be made small: {error}");
        }
        self.sync()?;
        self.log.close();
        Ok(())
    }

    fn tidy(&self, maintenance: &mut Maintenance) -> Result<()> {
        let unchanged =
            self.last_lsn() == maintenance.checkpoint.lsn && self.journal.active_seq().is_none();
        // A checkpoint with one good copy is replaced in any case: nothing else guards against its loss.
        if !maintenance.whole || !unchanged && self.checkpoint_pays(maintenance) {
            let want = Reclaim {
                max_copy_bytes: CLOSE_COPY,
                min_dead_percent: CLOSE_DEAD_PERCENT,
            };
            self.reclaim_locked(maintenance, want, 0)?;
            self.journal.rotate()?;
            self.checkpoint_locked(maintenance, self.checkpoint_level())?;
            self.drop_dead(maintenance, &mut ReclaimReport::default())?;
        }
        self.blocks.rotate()?;
        self.index
            .close(&self.log, &self.clean_state(maintenance.checkpoint))
    }

    /// Unless the index is large and hardly anything has changed, the journal is worth a checkpoint.
    fn checkpoint_pays(&self, maintenance: &Maintenance) -> bool {
        !self.index.is_sled() || self.commit.lock().journal_bytes > maintenance.checkpoint_bytes / 4
    }

    /// How hard to compress the last checkpoint: a small one takes no time at any level.
    fn checkpoint_level(&self) -> i32 {
        match self.index.memory_bytes() {
            _ if self.index.is_sled() => CHECKPOINT_LEVEL,
            0..0x40_0000 => 19,
            _ => 9,
        }
    }
}

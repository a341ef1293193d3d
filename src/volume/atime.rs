//! Access times, as relatime has them: a read moves the access time only if it is not newer than the
//! last change, or older than a day.
//!
//! It moves in memory. It is stored by the next change of the inode, together with whatever else is
//! committed within the sync interval, or at the unmount; a read never costs a transaction.

use super::attr::{Attr, Timestamp};
use super::change::Change;
use super::inode::{Inode, Locked, State};
use super::{Result, Volume};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Seconds after which an access time is moved in any case.
const DAY: i64 = 86_400;
/// Inodes whose access times wait in memory.
const WAITING: usize = 1024;

fn is_due(attr: &Attr, now: Timestamp) -> bool {
    attr.atime <= attr.mtime
        || attr.atime <= attr.ctime
        || attr.atime.secs.saturating_add(DAY) <= now.secs
}

impl Volume {
    fn keeps_access_times(&self) -> bool {
        self.relatime.load(Relaxed) && !self.options.read_only
    }

    /// Whether reading would move the access time, so that the kernel must not answer reads from its
    /// cache alone.
    pub fn access_is_due(&self, ino: u64) -> bool {
        self.keeps_access_times()
            && self
                .getattr(ino)
                .is_ok_and(|stat| is_due(&stat.attr, Timestamp::now()))
    }

    /// Notes that somebody read from an inode.
    pub fn accessed(&self, ino: u64) {
        if self.keeps_access_times()
            && let Ok(inode) = self.inode(ino)
        {
            self.note_access(&inode);
        }
    }

    fn note_access(&self, inode: &Arc<Inode>) {
        let now = Timestamp::now();
        let mut state = inode.state.lock();
        if state.gone || !is_due(&state.attr, now) {
            return;
        }
        // As on other file systems, reading what is frozen leaves no trace. Under a lock this is the one
        // way to get a pass, because it never waits.
        let Some(_pass) = self.gate.try_enter() else {
            return;
        };
        state.attr.atime = now;
        if state.access_waits {
            return;
        }
        state.access_waits = true;
        drop(state);
        let mut waiting = self.accesses.lock();
        waiting.push(inode.clone());
        let full = waiting.len() >= WAITING;
        drop(waiting);
        if full {
            self.store_accesses();
        }
    }

    /// Stores the access times that wait. They are not worth failing anything for.
    pub(super) fn store_accesses(&self) {
        let waiting = std::mem::take(&mut *self.accesses.lock());
        if waiting.is_empty() {
            return;
        }
        let mut states = Locked::new(&waiting);
        if let Err(error) = self.put_accesses(&mut states, &waiting) {
            log::debug!("access times: {error}");
        }
    }

    fn put_accesses(&self, states: &mut Locked<'_>, waiting: &[Arc<Inode>]) -> Result<()> {
        let mut change = Change::new(self);
        for inode in waiting {
            let state: &mut State = states.get(inode.ino)?;
            if std::mem::take(&mut state.access_waits) && !state.gone {
                change.put_inode(inode.ino, &state.attr, state.disk_size);
            }
        }
        change.commit()
    }
}

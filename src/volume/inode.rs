//! Inodes in memory: attributes, dirty data and open counts of the files that are in use.

use super::VolumeError;
use super::attr::{Attr, FileKind, Stat};
use super::dirty::Pieces;
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Instant;

/// One inode. See the lock order in `volume`.
#[derive(Debug)]
pub struct Inode {
    pub ino: u64,
    /// Held while dirty data moves into the log, and by whatever must not run beside that.
    pub stage: Mutex<()>,
    pub state: Mutex<State>,
}

/// What changes of an inode.
#[derive(Debug)]
pub struct State {
    /// Attributes as applications see them.
    pub attr: Attr,
    /// Size up to which data is in the log: the size that is stored.
    pub disk_size: u64,
    /// Newest data, not in the log.
    pub dirty: Pieces,
    /// Data on its way into the log: older than `dirty`, newer than extents.
    pub staging: Option<Arc<Pieces>>,
    pub dirty_since: Option<Instant>,
    /// A staging worker has this inode in its queue.
    pub stage_queued: bool,
    pub opens: u32,
    /// The inode no longer exists in the store.
    pub gone: bool,
    /// Failure of background staging that no fsync or close has reported yet.
    pub error: Option<VolumeError>,
    /// Whether a `security.capability` attribute exists, once known.
    pub has_caps: Option<bool>,
    /// The access time is newer than what is stored, and is in the list of those to store.
    pub access_waits: bool,
    /// Where the last read ended, to recognise sequential reading.
    pub next_read: u64,
    /// Up to where read-ahead was asked for.
    pub ahead: u64,
}

impl State {
    pub fn new(attr: Attr) -> State {
        State {
            disk_size: attr.size,
            attr,
            dirty: Pieces::default(),
            staging: None,
            dirty_since: None,
            stage_queued: false,
            opens: 0,
            gone: false,
            error: None,
            has_caps: None,
            access_waits: false,
            next_read: 0,
            ahead: 0,
        }
    }

    pub fn stat(&self, ino: u64) -> Stat {
        stat_of(ino, &self.attr, self.unstored_bytes())
    }

    /// Bytes in memory that are not in the log.
    pub fn unstored_bytes(&self) -> u64 {
        self.dirty.bytes() + self.staging.as_ref().map_or(0, |s| s.bytes())
    }

    /// Everything written is in the log, and nobody waits to hear of a failure.
    pub fn is_staged(&self) -> bool {
        self.dirty.is_empty() && self.staging.is_none() && self.error.is_none()
    }

    fn evictable(&self) -> bool {
        self.opens == 0 && self.is_staged() && !self.stage_queued && !self.access_waits
    }
}

/// The stat of an inode with `unstored` bytes of data in memory only.
pub fn stat_of(ino: u64, attr: &Attr, unstored: u64) -> Stat {
    let stored = match attr.kind {
        FileKind::Regular => attr.stored + unstored,
        _ => 0,
    };
    Stat {
        ino,
        attr: attr.clone(),
        blocks: stored.div_ceil(512),
    }
}

#[cfg(all(test, feature = "shuttle"))]
impl Inode {
    pub fn for_test(ino: u64) -> Arc<Inode> {
        let attr = Attr::new(FileKind::Regular, 0o644, 0, 0, super::ROOT);
        Arc::new(Inode {
            ino,
            stage: Mutex::new(()),
            state: Mutex::new(State::new(attr)),
        })
    }
}

const SHARDS: usize = 16;

/// The inodes in memory, least recently used first out.
pub struct InodeTable {
    shards: Vec<Mutex<LruCache<u64, Arc<Inode>>>>,
    per_shard: usize,
}

impl InodeTable {
    pub fn new(capacity: usize) -> InodeTable {
        InodeTable {
            shards: (0..SHARDS)
                .map(|_| Mutex::new(LruCache::unbounded()))
                .collect(),
            per_shard: (capacity / SHARDS).max(1),
        }
    }

    fn shard(&self, ino: u64) -> MutexGuard<'_, LruCache<u64, Arc<Inode>>> {
        self.shards[ino as usize % SHARDS].lock()
    }

    /// The inode, loaded by `load` if it is not in memory. Loading happens under the table's lock, so
    /// that an inode number has at most one `Inode`.
    pub fn get_or_load(
        &self,
        ino: u64,
        load: impl FnOnce() -> Result<Attr, VolumeError>,
    ) -> Result<Arc<Inode>, VolumeError> {
        let mut shard = self.shard(ino);
        if let Some(inode) = shard.get(&ino) {
            return Ok(inode.clone());
        }
        let inode = Arc::new(Inode {
            ino,
            stage: Mutex::new(()),
            state: Mutex::new(State::new(load()?)),
        });
        evict(&mut shard, self.per_shard);
        shard.put(ino, inode.clone());
        Ok(inode)
    }

    /// The inode if it is in memory; does not count as use.
    pub fn peek(&self, ino: u64) -> Option<Arc<Inode>> {
        self.shard(ino).peek(&ino).cloned()
    }

    pub fn remove(&self, ino: u64) {
        self.shard(ino).pop(&ino);
    }
}

/// Makes room for one more. An inode that anybody holds, or that has anything to lose, stays: the
/// table's own reference is the only one of an idle inode, and no new one can appear under the lock.
fn evict(shard: &mut LruCache<u64, Arc<Inode>>, limit: usize) {
    let mut tries = 8;
    while shard.len() >= limit && tries > 0 {
        tries -= 1;
        let Some((ino, inode)) = shard.pop_lru() else {
            return;
        };
        let idle = Arc::strong_count(&inode) == 1
            && inode
                .state
                .try_lock()
                .is_some_and(|state| state.evictable());
        if !idle {
            shard.put(ino, inode);
        }
    }
}

/// The states of several inodes, locked in the order of their numbers.
pub struct Locked<'a> {
    guards: Vec<(u64, MutexGuard<'a, State>)>,
}

impl<'a> Locked<'a> {
    pub fn new(inodes: impl IntoIterator<Item = &'a Arc<Inode>>) -> Locked<'a> {
        let mut inodes: Vec<&Arc<Inode>> = inodes.into_iter().collect();
        inodes.sort_by_key(|i| i.ino);
        inodes.dedup_by_key(|i| i.ino);
        Locked {
            guards: inodes
                .into_iter()
                .map(|i| (i.ino, i.state.lock()))
                .collect(),
        }
    }

    /// The state of one of the inodes.
    pub fn get(&mut self, ino: u64) -> Result<&mut State, VolumeError> {
        match self.guards.binary_search_by_key(&ino, |(i, _)| *i) {
            Ok(at) => Ok(&mut self.guards[at].1),
            Err(_) => Err(VolumeError::Stale(ino)),
        }
    }
}

//! Which inodes the kernel knows, so that an inode without names lives as long as anybody can ask for it.

use super::Volume;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};

const SHARDS: usize = 16;

/// How often the kernel was told of each inode that it knows. As large as the kernel's own cache of
/// inodes, which takes some twenty times the memory for each.
#[derive(Debug, Default)]
pub struct Known {
    counts: [Mutex<HashMap<u64, u64>>; SHARDS],
    /// Inodes without names that somebody still uses.
    orphans: Mutex<HashSet<u64>>,
}

impl Known {
    pub fn contains(&self, ino: u64) -> bool {
        self.shard(ino).lock().contains_key(&ino)
    }

    /// Notes that an inode has no name. Must happen before asking whether it is still known, or its
    /// last forget could go unnoticed.
    pub fn add_orphan(&self, ino: u64) {
        self.orphans.lock().insert(ino);
    }

    pub fn remove_orphan(&self, ino: u64) {
        self.orphans.lock().remove(&ino);
    }

    /// The kernel is gone: forgets everything, and returns the inodes without names.
    fn end(&self) -> Vec<u64> {
        for shard in &self.counts {
            *shard.lock() = HashMap::new();
        }
        self.orphans.lock().drain().collect()
    }

    fn shard(&self, ino: u64) -> &Mutex<HashMap<u64, u64>> {
        &self.counts[ino as usize % SHARDS]
    }

    /// Returns whether an inode without names is now unknown.
    fn forget(&self, ino: u64, times: u64) -> bool {
        let mut counts = self.shard(ino).lock();
        match counts.get_mut(&ino) {
            Some(count) if *count > times => {
                *count -= times;
                return false;
            }
            _ => counts.remove(&ino),
        };
        if counts.len() < counts.capacity() / 8 {
            counts.shrink_to_fit();
        }
        drop(counts);
        self.orphans.lock().contains(&ino)
    }
}

impl Volume {
    /// The kernel is told of an inode once more.
    pub fn remember(&self, ino: u64) {
        *self.known.shard(ino).lock().entry(ino).or_default() += 1;
    }

    /// The kernel forgets `times` of those. An inode that has no name goes with the last.
    pub fn forget(&self, ino: u64, times: u64) {
        if self.known.forget(ino, times)
            && let Ok(inode) = self.inode(ino)
        {
            self.reap_if_unused(&inode);
        }
    }

    /// Removes the inodes without names that only the kernel knew, which does not say goodbye to each
    /// inode when it unmounts.
    pub(super) fn forget_everything(&self) {
        for ino in self.known.end() {
            if let Ok(inode) = self.inode(ino) {
                self.reap_if_unused(&inode);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_is_reported_by_its_last_forget_only() {
        let known = Known::default();
        for _ in 0..3 {
            *known.shard(7).lock().entry(7).or_default() += 1;
        }
        known.add_orphan(7);
        assert!(!known.forget(7, 2));
        assert!(known.contains(7));
        assert!(known.forget(7, 1));
        assert!(!known.contains(7));
        assert!(!known.forget(8, 1));
    }
}

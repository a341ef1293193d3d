//! The index: the ordered map of keys and values that the log describes. It is a cache of the log.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::Result;

/// One key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// One physical change of the map: a new value, or `None` to delete the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// An ordered map. Implementations are free to lose everything in a crash.
pub(crate) trait Index: Send + Sync {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;
    /// At most `limit` pairs of `[from, to)` in ascending order; an empty `to` is the end of the map.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>>;
    fn apply(&self, changes: &[Change]) -> Result<()>;
    /// Estimate of the memory that the map needs, for the decision to move it to sled.
    fn memory_bytes(&self) -> u64;
}

/// What a pair costs in memory beyond its own bytes: two vectors, their allocations, its share of a tree node.
const PAIR_OVERHEAD: u64 = 112;

/// The index of a store whose metadata fits the memory that the index may use.
#[derive(Default)]
pub(crate) struct MemoryIndex {
    map: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
    bytes: AtomicU64,
}

impl Index for MemoryIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.map.read().get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>> {
        if !to.is_empty() && from >= to {
            return Ok(Vec::new());
        }
        let end = if to.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Excluded(to)
        };
        let map = self.map.read();
        let range = map.range::<[u8], _>((Bound::Included(from), end));
        Ok(range
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn apply(&self, changes: &[Change]) -> Result<()> {
        let mut map = self.map.write();
        let mut bytes = self.bytes.load(Ordering::Relaxed);
        for change in changes {
            let cost = |value: &Vec<u8>| (change.key.len() + value.len()) as u64 + PAIR_OVERHEAD;
            let old = match &change.value {
                Some(value) => {
                    bytes += cost(value);
                    map.insert(change.key.clone(), value.clone())
                }
                None => map.remove(&change.key),
            };
            bytes -= old.as_ref().map_or(0, cost);
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

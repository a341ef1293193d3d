//! The index of a store whose metadata does not fit the memory it may use: sled, as a cache of the log.
//!
//! sled may panic, lose what it flushed, or be stale. So every call is made under `catch_unwind`,
//! and what is on disk is used again only if the store was closed after it was written: then
//! `index/clean` names the state of the log that it stands for, and sled holds the same nonce.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::index::{Change, Index, Pair};
use super::{Result, StoreError};

/// sled allocates a file of a few of these at once, so they are small.
const SEGMENT_SIZE: usize = 32 << 10;
/// Holds the nonce of the last clean close. Sorts before all keys of the store.
const STATE_KEY: &[u8] = b"\0";
const FIRST_KEY: &[u8] = b"\x01";

pub(crate) struct SledIndex {
    db: sled::Db,
}

/// Calls into sled, which panics where others return errors.
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(StoreError::Index(error.to_string())),
        Err(panic) => {
            let why = panic.downcast_ref::<String>().map(String::as_str);
            let why = why
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            Err(StoreError::Index(format!("sled panicked: {why}")))
        }
    }
}

impl SledIndex {
    /// Opens or creates the database at `path`. A `temporary` one is removed when it is dropped.
    pub(crate) fn open(path: &Path, cache_bytes: u64, temporary: bool) -> Result<SledIndex> {
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_bytes.max(1 << 20))
            .segment_size(SEGMENT_SIZE)
            .flush_every_ms(None)
            .temporary(temporary);
        guarded(|| config.open()).map(|db| SledIndex { db })
    }

    /// The nonce of the clean close that wrote this database.
    pub(crate) fn nonce(&self) -> Result<Option<Vec<u8>>> {
        guarded(|| self.db.get(STATE_KEY)).map(|value| value.map(|value| value.to_vec()))
    }

    /// Writes everything out under a new nonce. The caller syncs the files.
    pub(crate) fn flush(&self, nonce: &[u8]) -> Result<()> {
        guarded(|| {
            self.db.insert(STATE_KEY, nonce)?;
            self.db.flush().map(|_| ())
        })
    }
}

impl Index for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        guarded(|| self.db.get(key)).map(|value| value.map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>> {
        let from = from.max(FIRST_KEY);
        if !to.is_empty() && from >= to {
            return Ok(Vec::new());
        }
        guarded(|| {
            let range = if to.is_empty() {
                self.db.range(from..)
            } else {
                self.db.range(from..to)
            };
            range
                .take(limit)
                .map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())))
                .collect()
        })
    }

    fn apply(&self, changes: &[Change]) -> Result<()> {
        let mut batch = sled::Batch::default();
        for change in changes {
            match &change.value {
                Some(value) => batch.insert(&change.key[..], &value[..]),
                None => batch.remove(&change.key[..]),
            }
        }
        guarded(|| self.db.apply_batch(batch))
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

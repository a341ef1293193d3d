//! The index of a store whose metadata does not fit the memory it may use: sled, as a cache of the log.
//!
//! sled may panic, lose what it flushed, or be stale. So every call is made under `catch_unwind`,
//! and what is on disk is used again only if the store was closed after it was written: then
//! `index/clean` names the state of the log that it stands for, and sled holds the same nonce.
//!
//! sled spends 150 to 200 bytes on a small key, so neighbouring pairs are packed into pages of a few
//! hundred bytes. The key of a page is a lower bound of the keys in it; a key lies in the last page
//! whose key is not greater.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parking_lot::RwLock;

use super::index::{Change, Index, Pair};
use super::varint::{self, Reader};
use super::{Result, StoreError};

/// sled allocates a file of a few of these at once, so they are small.
const SEGMENT_SIZE: usize = 32 << 10;
/// sled uses several times what it is told its cache may have: 700 MB with a cache of 64 MiB and
/// 1.2 million pairs, 380 MB with 8 MiB. So it is told a part of what the index may have.
const CACHE_SHARE: u64 = 4;
/// Holds the nonce of the last clean close. Sorts before all pages.
const STATE_KEY: &[u8] = b"\0";
/// Key of the first page, which always exists unless the index is empty.
const FIRST_PAGE: &[u8] = b"\x01";
/// A page that would become longer is split; one pair may be longer.
const PAGE_BYTES: usize = 480;

pub(crate) struct SledIndex {
    db: sled::Db,
    /// Held while pages are replaced, so that no reader sees a split half done.
    pages: RwLock<()>,
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

/// A page: its key and its pairs in ascending order.
struct Page {
    start: Vec<u8>,
    pairs: Vec<Pair>,
}

impl Page {
    fn decode(start: &[u8], bytes: &[u8]) -> Result<Page> {
        let pairs = decode_pairs(start, bytes)
            .ok_or_else(|| StoreError::Index(format!("page {start:02x?} makes no sense")))?;
        Ok(Page {
            start: start.to_vec(),
            pairs,
        })
    }

    /// Applies changes in ascending order of keys, all of which lie in this page.
    fn merge(&mut self, changes: &[&Change]) {
        for change in changes {
            let found = self
                .pairs
                .binary_search_by(|(key, _)| key.as_slice().cmp(&change.key));
            match (found, &change.value) {
                (Ok(at), Some(value)) => self.pairs[at].1.clone_from(value),
                (Ok(at), None) => {
                    self.pairs.remove(at);
                }
                (Err(at), Some(value)) => {
                    self.pairs.insert(at, (change.key.clone(), value.clone()))
                }
                (Err(_), None) => {}
            }
        }
    }

    /// Puts the page, or the pages it has to be split into, into `batch`.
    fn write(&self, batch: &mut sled::Batch) {
        let mut start = self.start.as_slice();
        let mut last = start;
        let mut bytes = Vec::new();
        for (key, value) in &self.pairs {
            let before = bytes.len();
            encode_pair(&mut bytes, last, key, value);
            if bytes.len() > PAGE_BYTES && before > 0 {
                bytes.truncate(before);
                batch.insert(start, std::mem::take(&mut bytes));
                start = key;
                encode_pair(&mut bytes, start, key, value);
            }
            last = key;
        }
        if bytes.is_empty() && start != FIRST_PAGE {
            batch.remove(start);
        } else {
            batch.insert(start, bytes);
        }
    }
}

fn encode_pair(out: &mut Vec<u8>, last: &[u8], key: &[u8], value: &[u8]) {
    let shared = last.iter().zip(key).take_while(|(a, b)| a == b).count();
    varint::put(out, shared as u64);
    varint::put(out, (key.len() - shared) as u64);
    out.extend_from_slice(&key[shared..]);
    varint::put(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn decode_pairs(start: &[u8], bytes: &[u8]) -> Option<Vec<Pair>> {
    let mut reader = Reader::new(bytes);
    let mut pairs: Vec<Pair> = Vec::new();
    while !reader.is_empty() {
        let last = pairs.last().map_or(start, |(key, _)| key.as_slice());
        let mut key = last.get(..reader.varint_usize()?)?.to_vec();
        let suffix_len = reader.varint_usize()?;
        key.extend_from_slice(reader.bytes(suffix_len)?);
        let value_len = reader.varint_usize()?;
        pairs.push((key, reader.bytes(value_len)?.to_vec()));
    }
    Some(pairs)
}

impl SledIndex {
    /// Opens or creates the database at `path`. A `temporary` one is removed when it is dropped.
    pub(crate) fn open(path: &Path, cache_bytes: u64, temporary: bool) -> Result<SledIndex> {
        let config = sled::Config::new()
            .path(path)
            .cache_capacity((cache_bytes / CACHE_SHARE).max(1 << 20))
            .segment_size(SEGMENT_SIZE)
            .flush_every_ms(None)
            .temporary(temporary);
        guarded(|| config.open()).map(|db| SledIndex {
            db,
            pages: RwLock::new(()),
        })
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

    /// The page in which `key` lies.
    fn page_of(&self, key: &[u8]) -> Result<Page> {
        let found = guarded(|| self.db.range(FIRST_PAGE..=key).next_back().transpose())?;
        match found {
            Some((start, bytes)) => Page::decode(&start, &bytes),
            None => Ok(Page {
                start: FIRST_PAGE.to_vec(),
                pairs: Vec::new(),
            }),
        }
    }

    /// The key of the page after the one with the key `start`.
    fn next_start(&self, start: &[u8]) -> Result<Option<sled::IVec>> {
        guarded(|| self.db.get_gt(start)).map(|found| found.map(|(key, _)| key))
    }
}

impl Index for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let _reading = self.pages.read();
        let mut pairs = self.page_of(key)?.pairs;
        let found = pairs.binary_search_by(|(at, _)| at.as_slice().cmp(key));
        Ok(found.ok().map(|at| pairs.swap_remove(at).1))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>> {
        let from = from.max(FIRST_PAGE);
        let _reading = self.pages.read();
        let mut page = self.page_of(from)?;
        let mut found = Vec::new();
        loop {
            for pair in page.pairs {
                let beyond = !to.is_empty() && pair.0.as_slice() >= to;
                if beyond || found.len() >= limit {
                    return Ok(found);
                }
                if pair.0.as_slice() >= from {
                    found.push(pair);
                }
            }
            let Some((start, bytes)) = guarded(|| self.db.get_gt(&page.start))? else {
                return Ok(found);
            };
            page = Page::decode(&start, &bytes)?;
        }
    }

    fn apply(&self, changes: &[Change]) -> Result<()> {
        // Of several changes of one key, the last one counts: the sort is stable.
        let mut sorted: Vec<&Change> = changes.iter().collect();
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        let mut batch = sled::Batch::default();
        let mut rest = sorted.as_slice();
        let _writing = self.pages.write();
        while let Some(first) = rest.first() {
            let mut page = self.page_of(&first.key)?;
            let next = self.next_start(&page.start)?;
            let inside = next.map_or(rest.len(), |next| {
                rest.partition_point(|c| c.key.as_slice() < &next[..])
            });
            let (here, later) = rest.split_at(inside);
            page.merge(here);
            page.write(&mut batch);
            rest = later;
        }
        guarded(|| self.db.apply_batch(batch))
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::MemoryIndex;
    use super::*;
    use proptest::prelude::*;

    fn change() -> impl Strategy<Value = Change> {
        let key = (0u8..4, 0u8..60).prop_map(|(a, b)| vec![b'A' + a, b, b / 7]);
        let value = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..90));
        (key, value).prop_map(|(key, value)| Change { key, value })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn pages_hold_what_a_plain_map_holds(
            batches in prop::collection::vec(prop::collection::vec(change(), 0..60), 1..12),
            from in prop::collection::vec(64u8..70, 0..3), to in prop::collection::vec(64u8..70, 0..3),
            limit in 0usize..200,
        ) {
            let dir = tempfile::tempdir().expect("tempdir");
            let sled = SledIndex::open(&dir.path().join("index"), 1 << 20, false).expect("open");
            let plain = MemoryIndex::default();
            for batch in &batches {
                sled.apply(batch).expect("apply");
                plain.apply(batch).expect("apply");
            }
            prop_assert_eq!(sled.scan(&[], &[], 10_000).expect("scan"), plain.scan(&[], &[], 10_000).expect("scan"));
            prop_assert_eq!(sled.scan(&from, &to, limit).expect("scan"), plain.scan(&from, &to, limit).expect("scan"));
            for change in batches.iter().flatten() {
                prop_assert_eq!(sled.get(&change.key).expect("get"), plain.get(&change.key).expect("get"));
            }
        }
    }
}

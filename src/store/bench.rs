//! Entry points for measuring the parts of the store. See [`crate::benching`].

use std::path::Path;

use uuid::Uuid;

use super::Result;
use super::index::{Change, MemoryIndex};
use super::record::{self, HEADER_LEN, Place, RecordHeader, RecordKind};
use super::sled_index::SledIndex;
use super::transaction;

fn place() -> Place {
    Place {
        store: Uuid::nil(),
        seq: 7,
        offset: 4096,
    }
}

/// A whole record with this body.
pub fn encode_record(body: &[u8]) -> Vec<u8> {
    let header = RecordHeader {
        kind: RecordKind::Staged,
        tag: 1,
        body_len: body.len() as u32,
        object: 5,
        version: 9,
    };
    [&header.encode(place(), &[body])[..], body].concat()
}

/// Length of the body of a record whose checksums are right, as reading does it.
pub fn decode_record(bytes: &[u8]) -> Option<usize> {
    RecordHeader::parse(bytes, place()).filter(|_| record::verify_body(bytes))?;
    Some(bytes.len() - HEADER_LEN)
}

/// Changes of the index, as a transaction has them.
pub struct Changes(Vec<Change>);

impl Changes {
    /// New values for these keys.
    pub fn puts(pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Changes {
        let change = |(key, value)| Change {
            key,
            value: Some(value),
        };
        Changes(pairs.into_iter().map(change).collect())
    }

    /// The body of a transaction's record.
    pub fn encode(&self) -> Vec<u8> {
        transaction::encode_body(0, &self.0)
    }

    /// How many changes the body of a transaction's record has.
    pub fn decode(body: &[u8]) -> Option<usize> {
        transaction::decode_body(body).map(|changes| changes.len())
    }
}

/// An index of either kind.
pub struct Index(Box<dyn super::index::Index>);

impl Index {
    pub fn in_memory() -> Index {
        Index(Box::new(MemoryIndex::default()))
    }

    /// sled in a directory that is removed with it.
    ///
    /// # Errors
    /// If sled does not open it.
    pub fn in_sled(dir: &Path) -> Result<Index> {
        Ok(Index(Box::new(SledIndex::open(dir, 64 << 20, true)?)))
    }

    /// # Errors
    /// If sled fails.
    pub fn apply(&self, changes: &Changes) -> Result<()> {
        self.0.apply(&changes.0)
    }

    /// # Errors
    /// If sled fails.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.0.get(key)
    }

    /// How many of at most `limit` pairs there are from `from` on.
    ///
    /// # Errors
    /// If sled fails.
    pub fn scan(&self, from: &[u8], limit: usize) -> Result<usize> {
        self.0.scan(from, &[], limit).map(|pairs| pairs.len())
    }
}
